/* The operating system: memory, threads, sleep, clocks and CPUs. In csrc, only os/ includes the
 * system's headers. csrc/sources.py says which files of os/ each system compiles. */
#ifndef GPT2C_OS_H
#define GPT2C_OS_H

#include <stdatomic.h>
#include <stddef.h>
#if !defined(_WIN32)
#include <pthread.h>
#endif

#define OS_CACHE_LINE 64 /* bytes */

/* Zeroed memory for weights and the KV cache, aligned to a cache line. Sizes of 2 MiB and more are
 * backed by huge pages if the system has them. NULL if out of memory. */
void *os_arena_alloc(size_t bytes);
void os_arena_free(void *memory, size_t bytes);
/* Gives the whole pages in a part of an arena back to the system, if the system allows it. The
 * part's content is lost. */
void os_arena_discard(void *memory, size_t bytes);
/* Offers an arena's memory to the system, which takes it, with its content, only if it needs memory.
 * Writing to the memory takes the offer back. Returns 0 if the system has no such offer. */
int os_arena_offer(void *memory, size_t bytes);

/* Uninitialised memory, aligned to a cache line. NULL if out of memory. */
void *os_aligned_alloc(size_t bytes);
void os_aligned_free(void *memory);

#define OS_FILE_UNIT 4096 /* the size of a file that os_file_map maps is a multiple of this */

/* Maps a whole file of memory that several processes share, on huge pages if the system has them.
 * A writable mapping is of a new file; it gives the file its pages, and a forked child lacks it.
 * NULL if out of memory, or if the system cannot share memory in this way. */
void *os_file_map(int descriptor, size_t bytes, int is_writable);
void os_file_unmap(void *memory, size_t bytes);

/* Starts a detached thread with all signals blocked. Returns 0 if the system refuses. */
int os_start_thread(void (*function)(void *), void *argument);
/* Registers a function that runs in the child after every fork. Windows has no fork. */
void os_after_fork_in_child(void (*function)(void));

#if defined(_WIN32)
typedef struct {
    void *state;
} os_lock;
#define OS_LOCK_INITIAL {NULL}
#else
typedef pthread_mutex_t os_lock;
#define OS_LOCK_INITIAL PTHREAD_MUTEX_INITIALIZER
#endif
void os_lock_take(os_lock *lock);
void os_lock_release(os_lock *lock);
/* Takes the lock if it is free, and returns whether it did. */
int os_lock_try(os_lock *lock);

/* Sleeps until woken, if *word still equals old. It may return early. */
void os_sleep_while(atomic_uint *word, unsigned old);
/* The same, for at most `seconds`. */
void os_sleep_while_for(atomic_uint *word, unsigned old, double seconds);
/* Wakes all threads that sleep on the word. The caller changes the word's value first. */
void os_wake_all(atomic_uint *word);

/* Tells the CPU that this thread spins. */
static inline void os_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Seconds of a monotonic clock. */
double os_seconds(void);

/* CPU time of the calling thread, in seconds; the time of os_seconds if the system counts CPU time
 * only in ticks of many milliseconds. */
double os_thread_seconds(void);

/* How many CPUs the calling thread may run on; INT_MAX if the system does not say. */
int os_n_cpus(void);
/* How many physical cores have such CPUs; 0 if the system does not say here. */
int os_physical_cores(void);
/* How many performance cores are among them; 0 if all cores are alike, and if the system does not
 * say. */
int os_performance_cores(void);
/* The CPU time per second that this process may use, in CPUs; 0 without a limit, and if the system
 * does not say here. */
double os_cpu_quota(void);

#if defined(__aarch64__)
/* Whether this AArch64 CPU supports the int8 dot product instructions (FEAT_DotProd). */
int os_has_dot_product(void);
/* Whether it supports the int8 matrix instructions (FEAT_I8MM). */
int os_has_int8_matrices(void);
#endif

#endif
