/* The CPUs of Linux. */
#define _GNU_SOURCE /* syscall */
#include "os/os.h"
#include "os/posix.h"

#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#if !defined(HWCAP_ASIMDDP)
#define HWCAP_ASIMDDP (1 << 20) /* the headers of old systems define neither bit */
#endif
#if !defined(HWCAP2_I8MM)
#define HWCAP2_I8MM (1 << 13)
#endif
#endif

/* Linux chooses by itself. */
void os_prefer_performance_cores(void) {}

/* The affinity mask has one bit per CPU. Linux rejects a buffer that is smaller than its own
 * mask. */
#define MAX_CPUS 8192

int os_n_cpus(void) {
    unsigned long set[MAX_CPUS / (8 * sizeof(unsigned long))];
    long n_bytes = syscall(SYS_sched_getaffinity, 0, sizeof set, set);
    int n = 0;
    for (long i = 0; i < n_bytes / (long)sizeof *set; i++)
        n += __builtin_popcountl(set[i]);
    return n > 0 ? n : INT_MAX;
}

/* engine/threads.py reads cores and quotas from Linux's files. */
int os_physical_cores(void) { return 0; }

int os_performance_cores(void) { return 0; }

double os_cpu_quota(void) { return 0; }

#if defined(__aarch64__)
int os_has_dot_product(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

int os_has_int8_matrices(void) { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#endif
