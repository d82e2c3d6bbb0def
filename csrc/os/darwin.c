/* The CPUs of macOS. */
#include "os/os.h"
#include "os/posix.h"

#include <limits.h>
#include <pthread/qos.h>
#include <sys/sysctl.h>
#include <unistd.h>

/* A Mac with an ARM CPU has performance and efficiency cores, and macOS chooses between them by a
 * thread's quality of service (QoS). A new thread has the default class, not its creator's.
 * "User-initiated" is the class of work that a user waits for, one below that of user
 * interfaces. */
void os_prefer_performance_cores(void) {
    (void)pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
}

/* Returns a number that macOS reports by name; 0 if it does not know the name. */
static int system_number(const char *name) {
    int number = 0;
    size_t bytes = sizeof number;
    return sysctlbyname(name, &number, &bytes, NULL, 0) == 0 ? number : 0;
}

int os_n_cpus(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < INT_MAX ? (int)n : INT_MAX;
}

int os_physical_cores(void) { return system_number("hw.physicalcpu"); }

int os_performance_cores(void) { return system_number("hw.perflevel0.physicalcpu"); }

double os_cpu_quota(void) { return 0; }

#if defined(__aarch64__)
/* Every Mac with an ARM CPU has these instructions. */
int os_has_dot_product(void) { return 1; }

int os_has_int8_matrices(void) { return system_number("hw.optional.arm.FEAT_I8MM") != 0; }
#endif
