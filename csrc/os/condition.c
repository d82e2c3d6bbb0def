/* Sleep and wake on POSIX systems without futexes. One lock and one condition variable serve all
 * words. Every wake-up wakes all sleepers, and each then checks its own word. */
#define _GNU_SOURCE /* clock_gettime */
#include "os/os.h"
#include "os/posix.h"

static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_condition = PTHREAD_COND_INITIALIZER;

/* Resets the lock and the condition for a forked child: at the fork, another thread of the parent
 * may have held the lock. */
static void forget_sleepers(void) {
    sleep_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    sleep_condition = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
}

__attribute__((constructor)) static void register_child_handler(void) {
    os_after_fork_in_child(forget_sleepers);
}

void os_sleep_while(atomic_uint *word, unsigned old) {
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load_explicit(word, memory_order_acquire) == old)
        pthread_cond_wait(&sleep_condition, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}

void os_sleep_while_for(atomic_uint *word, unsigned old, double seconds) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now); /* the clock of pthread_cond_timedwait */
    struct timespec end = os_time_after(now, seconds);
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load_explicit(word, memory_order_acquire) == old)
        pthread_cond_timedwait(&sleep_condition, &sleep_lock, &end);
    pthread_mutex_unlock(&sleep_lock);
}

void os_wake_all(atomic_uint *word) {
    (void)word;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&sleep_condition);
    pthread_mutex_unlock(&sleep_lock);
}
