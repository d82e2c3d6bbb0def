#define _GNU_SOURCE /* MAP_ANONYMOUS, madvise */
#include "os/os.h"

#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#if !defined(HWCAP2_I8MM)
#define HWCAP2_I8MM (1 << 13) /* the headers of old systems do not define this bit */
#endif
#endif
#if defined(__APPLE__)
#include <pthread/qos.h>
#include <sys/sysctl.h>
#endif

#define CACHE_LINE_BYTES 64
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

void *os_aligned_alloc(size_t bytes) {
    void *memory = NULL;
    if (bytes > SIZE_MAX - CACHE_LINE_BYTES)
        return NULL;
    if (posix_memalign(&memory, CACHE_LINE_BYTES, round_up(bytes ? bytes : 1, CACHE_LINE_BYTES)))
        return NULL;
    return memory;
}

void os_aligned_free(void *memory) { free(memory); }

typedef struct {
    void (*function)(void *);
    void *argument;
} thread_start;

/* A Mac with an ARM CPU has performance and efficiency cores, and macOS chooses between them by a
 * thread's quality of service (QoS). A new thread has the default class, not its creator's. Since
 * all threads wait for the slowest at each barrier, none should run on an efficiency core while a
 * performance core is free. "User-initiated" is the class of work that a user waits for, one below
 * that of user interfaces. */
static void prefer_performance_cores(void) {
#if defined(__APPLE__)
    (void)pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
}

static void *run_thread(void *argument) {
    thread_start start = *(thread_start *)argument;
    free(argument);
    prefer_performance_cores();
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

/* Returns the time `seconds` after `begin`. */
static struct timespec time_after(struct timespec begin, double seconds) {
    seconds = seconds > 0 ? seconds : 0;
    seconds = seconds < MAX_SLEEP_SECONDS ? seconds : MAX_SLEEP_SECONDS;
    time_t whole = (time_t)seconds;
    long nanoseconds = begin.tv_nsec + (long)((seconds - (double)whole) * 1e9);
    return (struct timespec){.tv_sec = begin.tv_sec + whole + nanoseconds / 1000000000,
                             .tv_nsec = nanoseconds % 1000000000};
}

/* Tests define OS_NO_FUTEX to run the code of other systems on Linux. */
#if defined(__linux__) && !defined(OS_NO_FUTEX)
void os_sleep_while(atomic_uint *word, unsigned old) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

void os_sleep_while_for(atomic_uint *word, unsigned old, double seconds) {
    struct timespec time = time_after((struct timespec){0, 0}, seconds);
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, &time, NULL, 0);
}

void os_wake_all(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

#else
/* One lock and one condition variable serve all words. Every wake-up wakes all sleepers, and each
 * then checks its own word. */
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
    struct timespec end = time_after(now, seconds);
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
#endif

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double os_seconds(void) { return seconds_of(CLOCK_MONOTONIC); }

double os_thread_seconds(void) { return seconds_of(CLOCK_THREAD_CPUTIME_ID); }

#if defined(__linux__)
/* The affinity mask has one bit per CPU. Linux rejects a buffer that is smaller than its own
 * mask. */
#define MAX_CPUS 8192

static int allowed_cpus(void) {
    unsigned long set[MAX_CPUS / (8 * sizeof(unsigned long))];
    long n_bytes = syscall(SYS_sched_getaffinity, 0, sizeof set, set);
    int n = 0;
    for (long i = 0; i < n_bytes / (long)sizeof *set; i++)
        n += __builtin_popcountl(set[i]);
    return n > 0 ? n : INT_MAX;
}
#else
static int allowed_cpus(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < INT_MAX ? (int)n : INT_MAX;
}
#endif

static atomic_int pretended_cpus;

void os_pretend_cpus(int n) { atomic_store_explicit(&pretended_cpus, n, memory_order_relaxed); }

int os_n_cpus(void) {
    int pretended = atomic_load_explicit(&pretended_cpus, memory_order_relaxed);
    return pretended ? pretended : allowed_cpus();
}

#if defined(__APPLE__)
/* Returns a number that macOS reports by name; 0 if it does not know the name. */
static int system_number(const char *name) {
    int number = 0;
    size_t bytes = sizeof number;
    return sysctlbyname(name, &number, &bytes, NULL, 0) == 0 ? number : 0;
}
#endif

int os_performance_cores(void) {
#if defined(__APPLE__)
    return system_number("hw.perflevel0.physicalcpu");
#else
    return 0;
#endif
}

int os_has_dot_product(void) {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    return 1; /* every Mac with an ARM CPU has these instructions */
#else
    return 0;
#endif
}

int os_has_int8_matrices(void) {
#if defined(__aarch64__) && defined(__linux__)
    return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    return system_number("hw.optional.arm.FEAT_I8MM") != 0;
#else
    return 0;
#endif
}
