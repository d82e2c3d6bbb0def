/* Memory, threads, locks and clocks of Linux, macOS and other POSIX systems. */
#define _GNU_SOURCE /* MAP_ANONYMOUS, madvise */
#include "os/posix.h"
#include "os/os.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Two threads streamed 1.2 times faster from huge pages than from ordinary ones. Linux uses huge
 * pages only for aligned ranges, so this maps one extra huge page and then unmaps both ends. */
void *os_arena_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE)
        return NULL;
    if (bytes < HUGE_PAGE) {
        void *memory = os_aligned_alloc(bytes);
        return memory ? memset(memory, 0, bytes) : NULL;
    }
    size_t length = round_up(bytes, HUGE_PAGE);
    size_t mapped = length + HUGE_PAGE;
    char *raw = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
        return NULL;
    char *aligned = (char *)round_up((size_t)(uintptr_t)raw, HUGE_PAGE);
    size_t before = (size_t)(aligned - raw);
    size_t after = mapped - length - before;
    if (before)
        munmap(raw, before);
    if (after)
        munmap(aligned + length, after);
#ifdef MADV_HUGEPAGE
    /* The rest, which does not fill a huge page, stays on ordinary pages and so takes less
     * memory. */
    (void)madvise(aligned, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return aligned;
}

void os_arena_free(void *memory, size_t bytes) {
    if (bytes < HUGE_PAGE)
        os_aligned_free(memory);
    else if (memory)
        munmap(memory, round_up(bytes, HUGE_PAGE));
}

void os_arena_discard(void *memory, size_t bytes) {
#ifdef MADV_DONTNEED
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t begin = round_up((size_t)(uintptr_t)memory, page),
           end = ((size_t)(uintptr_t)memory + bytes) / page * page;
    if (begin < end)
        (void)madvise((char *)memory + (begin - (size_t)(uintptr_t)memory), end - begin,
                      MADV_DONTNEED);
#endif
}

int os_arena_offer(void *memory, size_t bytes) {
#ifdef MADV_FREE
    return bytes >= HUGE_PAGE && madvise(memory, round_up(bytes, HUGE_PAGE), MADV_FREE) == 0;
#else
    (void)memory;
    (void)bytes;
    return 0;
#endif
}

void *os_aligned_alloc(size_t bytes) {
    void *memory = NULL;
    if (bytes > SIZE_MAX - OS_CACHE_LINE)
        return NULL;
    if (posix_memalign(&memory, OS_CACHE_LINE, round_up(bytes ? bytes : 1, OS_CACHE_LINE)))
        return NULL;
    return memory;
}

void os_aligned_free(void *memory) { free(memory); }

typedef struct {
    void (*function)(void *);
    void *argument;
} thread_start;

static void *run_thread(void *argument) {
    thread_start start = *(thread_start *)argument;
    free(argument);
    os_prefer_performance_cores();
    start.function(start.argument);
    return NULL;
}

int os_start_thread(void (*function)(void *), void *argument) {
    thread_start *start = malloc(sizeof *start);
    if (!start)
        return 0;
    *start = (thread_start){function, argument};
    /* Only the interpreter's threads handle signals. A new thread inherits its creator's mask. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, run_thread, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(start);
        return 0;
    }
    pthread_detach(thread);
    return 1;
}

void os_after_fork_in_child(void (*function)(void)) { pthread_atfork(NULL, NULL, function); }

void os_lock_take(os_lock *lock) { pthread_mutex_lock(lock); }

void os_lock_release(os_lock *lock) { pthread_mutex_unlock(lock); }

int os_lock_try(os_lock *lock) { return pthread_mutex_trylock(lock) == 0; }

/* Longer waits are cut to this time, so that time_t does not overflow. */
#define MAX_SLEEP_SECONDS 1e6

struct timespec os_time_after(struct timespec begin, double seconds) {
    seconds = seconds > 0 ? seconds : 0;
    seconds = seconds < MAX_SLEEP_SECONDS ? seconds : MAX_SLEEP_SECONDS;
    time_t whole = (time_t)seconds;
    long nanoseconds = begin.tv_nsec + (long)((seconds - (double)whole) * 1e9);
    return (struct timespec){.tv_sec = begin.tv_sec + whole + nanoseconds / 1000000000,
                             .tv_nsec = nanoseconds % 1000000000};
}

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double os_seconds(void) { return seconds_of(CLOCK_MONOTONIC); }

double os_thread_seconds(void) { return seconds_of(CLOCK_THREAD_CPUTIME_ID); }
