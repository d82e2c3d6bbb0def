/* Sleep and wake on Linux, by futex. */
#define _GNU_SOURCE /* syscall */
#include "os/os.h"
#include "os/posix.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

void os_sleep_while(atomic_uint *word, unsigned old) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

void os_sleep_while_for(atomic_uint *word, unsigned old, double seconds) {
    struct timespec time = os_time_after((struct timespec){0, 0}, seconds);
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, &time, NULL, 0);
}

void os_wake_all(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
