/* What the operating system gives: memory, threads, sleep and a clock. The only file that includes
 * its headers. */
#ifndef GPT2C_OS_H
#define GPT2C_OS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

/* Zeroed memory in large pieces, for weights and the cache: from 2 MiB on aligned to it and backed by
 * huge pages where the system has them, else aligned to a cache line. NULL where it cannot be had. */
void *os_arena_alloc(size_t bytes);
void os_arena_free(void *memory, size_t bytes);

/* Uninitialised memory aligned to a cache line of 64 bytes. */
void *os_aligned_alloc(size_t bytes);
void os_aligned_free(void *memory);

/* Starts a thread that takes no signals and is never waited for; 0 where it cannot be had. */
int os_start_thread(void (*function)(void *), void *argument);
void os_after_fork_in_child(void (*function)(void));

typedef pthread_mutex_t os_lock;
#define OS_LOCK_INITIAL PTHREAD_MUTEX_INITIALIZER
void os_lock_take(os_lock *lock);
void os_lock_release(os_lock *lock);
/* Takes the lock if it is free: 1, else 0. */
int os_lock_try(os_lock *lock);

/* Sleeps until woken if *word is still old; may return early. */
void os_sleep_while(atomic_uint *word, unsigned old);
/* Wakes all that sleep on the word, whose value has been changed before. */
void os_wake_all(atomic_uint *word);

/* Whether an AArch64 CPU has the dot product of bytes. */
int os_has_dot_product(void);

/* A hint that this thread spins. */
static inline void os_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Seconds of a clock that never goes back. */
double os_seconds(void);

/* CPU time of the calling thread, in seconds. */
double os_thread_seconds(void);

/* How many CPUs the calling thread may run on; a large number if the system does not say. */
int os_n_cpus(void);
/* For tests with many threads on few CPUs: pretends that there are n; 0 undoes that. */
void os_pretend_cpus(int n);

#endif
