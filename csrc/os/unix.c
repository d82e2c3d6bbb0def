/* The CPUs of a POSIX system other than Linux and macOS, such as FreeBSD. */
#include "os/os.h"
#include "os/posix.h"

#include <limits.h>
#include <unistd.h>

void os_prefer_performance_cores(void) {}

int os_n_cpus(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < INT_MAX ? (int)n : INT_MAX;
}

int os_physical_cores(void) { return 0; }

int os_performance_cores(void) { return 0; }

double os_cpu_quota(void) { return 0; }

#if defined(__aarch64__)
int os_has_dot_product(void) { return 0; }

int os_has_int8_matrices(void) { return 0; }
#endif
