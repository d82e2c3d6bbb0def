/* Checks each function of os.h on the system that runs it. It is built without Python, so that it
 * can run where gpt2c cannot be installed. Prints a line for each check that passed, and exits with
 * 1 after the first one that failed. */
#define _GNU_SOURCE /* mkstemp, ftruncate */
#include "os/os.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <unistd.h>
#endif

#define N_THREADS 4
#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            printf("%s, line %d: this does not hold: %s\n", __func__, __LINE__, #condition); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* ---- memory ---- */

static int all_bytes_are(const char *memory, size_t n, char value) {
    for (size_t i = 0; i < n; i++)
        if (memory[i] != value)
            return 0;
    return 1;
}

static int is_aligned(const void *memory) { return (uintptr_t)memory % OS_CACHE_LINE == 0; }

static void check_aligned_memory(void) {
    const size_t sizes[] = {0, 1, 63, 64, 65, 100 * KIB};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *memory = os_aligned_alloc(sizes[i]);
        CHECK(memory && is_aligned(memory));
        memset(memory, 1, sizes[i]);
        os_aligned_free(memory);
    }
    os_aligned_free(NULL);
    CHECK(!os_aligned_alloc(SIZE_MAX));
    CHECK(!os_aligned_alloc(SIZE_MAX / 2));
}

/* Around the sizes at which the systems choose another kind of memory. Freed memory may come back,
 * so each size is tried twice: it must be zeroed again. */
static void check_arenas(void) {
    const size_t sizes[] = {1, 64 * KIB - 1, 64 * KIB, 2 * MIB - 1, 2 * MIB, 5 * MIB + 123};
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i / 2];
        char *memory = os_arena_alloc(n);
        CHECK(memory && is_aligned(memory));
        CHECK(all_bytes_are(memory, n, 0));
        memset(memory, 1, n);
        os_arena_free(memory, n);
    }
    os_arena_free(NULL, 1);
    os_arena_free(NULL, 5 * MIB);
    CHECK(!os_arena_alloc(SIZE_MAX));
    CHECK(!os_arena_alloc(SIZE_MAX / 2));
}

/* Discards parts that begin and end within pages. The rest keeps its content. */
static void check_discarding(void) {
    const size_t n = 5 * MIB, begin = MIB + 100, end = 4 * MIB + 300;
    char *memory = os_arena_alloc(n);
    CHECK(memory);
    memset(memory, 1, n);
    os_arena_discard(memory + begin, end - begin);
    os_arena_discard(memory + 10, 20); /* has no whole page */
    CHECK(all_bytes_are(memory, begin, 1));
    CHECK(all_bytes_are(memory + end, n - end, 1));
    memset(memory + begin, 2, end - begin);
    CHECK(all_bytes_are(memory + begin, end - begin, 2));
    os_arena_free(memory, n);
}

/* Offered memory holds its bytes or, if the system took a page, zeros. Once written, it stays. */
static void check_offering(void) {
    const size_t n = 5 * MIB;
    char *memory = os_arena_alloc(n);
    CHECK(memory);
    memset(memory, 1, n);
    int is_offered = os_arena_offer(memory, n);
#if defined(__linux__)
    CHECK(is_offered);
#endif
    for (size_t i = 0; i < n; i++)
        CHECK(memory[i] == 1 || (is_offered && memory[i] == 0));
    memset(memory, 2, n);
    CHECK(all_bytes_are(memory, n, 2));
    os_arena_free(memory, n);
    char *small = os_arena_alloc(100); /* lies on a page with other memory */
    CHECK(small && !os_arena_offer(small, 100));
    os_arena_free(small, 100);
}

#if defined(__linux__)
/* A new file of memory, without memfd_create, which old C libraries lack. */
static int new_file(size_t bytes) {
    char name[] = "/dev/shm/os_checks.XXXXXX";
    int descriptor = mkstemp(name);
    CHECK(descriptor >= 0 && unlink(name) == 0 && ftruncate(descriptor, (off_t)bytes) == 0);
    return descriptor;
}
#endif

/* What one mapping writes, another one reads. Where nothing can be mapped, the result is NULL. */
static void check_mapping(void) {
    CHECK(!os_file_map(-1, OS_FILE_UNIT, 0) && !os_file_map(-1, OS_FILE_UNIT, 1));
    os_file_unmap(NULL, OS_FILE_UNIT);
#if defined(__linux__)
    const size_t sizes[] = {OS_FILE_UNIT, 2 * MIB, 5 * MIB + OS_FILE_UNIT};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int descriptor = new_file(sizes[i]);
        char *written = os_file_map(descriptor, sizes[i], 1);
        if (!written)
            return; /* no_mapping.c */
        CHECK((uintptr_t)written % (2 * MIB) == 0 && all_bytes_are(written, sizes[i], 0));
        memset(written, 3, sizes[i]);
        char *read = os_file_map(descriptor, sizes[i], 0);
        CHECK(read && read != written && all_bytes_are(read, sizes[i], 3));
        os_file_unmap(written, sizes[i]);
        CHECK(all_bytes_are(read, sizes[i], 3));
        os_file_unmap(read, sizes[i]);
        CHECK(!os_file_map(descriptor, 0, 0) && !os_file_map(descriptor, OS_FILE_UNIT + 1, 0));
        CHECK(!os_file_map(descriptor, SIZE_MAX / OS_FILE_UNIT * OS_FILE_UNIT, 0));
        close(descriptor);
    }
#endif
}

/* ---- threads, locks and sleep ---- */

static os_lock lock = OS_LOCK_INITIAL;
static int counter; /* guarded by the lock */
static atomic_uint n_done;

/* Sleeps until *word is no longer `old`. */
static void sleep_through(atomic_uint *word, unsigned old) {
    while (atomic_load(word) == old)
        os_sleep_while(word, old);
}

static void raise_word(atomic_uint *word) {
    atomic_fetch_add(word, 1);
    os_wake_all(word);
}

static void wait_for_threads(unsigned n) {
    for (unsigned done; (done = atomic_load(&n_done)) < n;)
        os_sleep_while(&n_done, done);
    atomic_store(&n_done, 0);
}

#define N_INCREMENTS 20000

static void increment(void *argument) {
    CHECK(argument == &counter);
    for (int i = 0; i < N_INCREMENTS; i++) {
        os_lock_take(&lock);
        counter++;
        os_lock_release(&lock);
    }
    raise_word(&n_done);
}

static void try_lock(void *argument) {
    *(int *)argument = os_lock_try(&lock);
    if (*(int *)argument)
        os_lock_release(&lock);
    raise_word(&n_done);
}

static void check_threads_and_locks(void) {
    for (int i = 0; i < N_THREADS; i++)
        CHECK(os_start_thread(increment, &counter));
    wait_for_threads(N_THREADS);
    CHECK(counter == N_THREADS * N_INCREMENTS);
    int taken = -1;
    os_lock_take(&lock);
    CHECK(os_start_thread(try_lock, &taken));
    wait_for_threads(1);
    os_lock_release(&lock);
    CHECK(taken == 0);
    CHECK(os_start_thread(try_lock, &taken));
    wait_for_threads(1);
    CHECK(taken == 1);
    lock = (os_lock)OS_LOCK_INITIAL; /* as in a forked child */
    CHECK(os_lock_try(&lock));
    os_lock_release(&lock);
}

#define N_ROUNDS 3000
static atomic_uint ping, pong;

static void answer(void *argument) {
    (void)argument;
    for (unsigned i = 0; i < N_ROUNDS; i++) {
        sleep_through(&ping, i);
        raise_word(&pong);
    }
    raise_word(&n_done);
}

static atomic_uint gate;

static void wait_at_gate(void *argument) {
    (void)argument;
    sleep_through(&gate, 0);
    raise_word(&n_done);
}

/* A lost wake-up would make these wait for ever. */
static void check_wake_ups(void) {
    CHECK(os_start_thread(answer, NULL));
    for (unsigned i = 0; i < N_ROUNDS; i++) {
        raise_word(&ping);
        sleep_through(&pong, i);
    }
    wait_for_threads(1);
    for (int i = 0; i < N_THREADS; i++)
        CHECK(os_start_thread(wait_at_gate, NULL));
    atomic_uint other = 5;
    os_sleep_while_for(&other, 5, 0.05); /* lets the threads fall asleep */
    CHECK(atomic_load(&n_done) == 0);
    raise_word(&gate);
    wait_for_threads(N_THREADS);
}

/* Sleeps may end early, so this sleeps until the time is over. */
static void sleep_for(double seconds) {
    atomic_uint word = 7;
    double end = os_seconds() + seconds;
    for (double now; (now = os_seconds()) < end;)
        os_sleep_while_for(&word, 7, end - now);
}

static void check_sleeping(void) {
    atomic_uint word = 7;
    os_sleep_while(&word, 8); /* has another value: returns at once */
    double begin = os_seconds();
    os_sleep_while_for(&word, 8, 100);
    os_sleep_while_for(&word, 7, 0);
    os_sleep_while_for(&word, 7, -1);
    CHECK(os_seconds() - begin < 50);
    double cpu_begin = os_thread_seconds();
    begin = os_seconds();
    sleep_for(0.3);
    double seconds = os_seconds() - begin, cpu = os_thread_seconds() - cpu_begin;
    CHECK(seconds >= 0.3 && seconds < 50);
    /* Slept, instead of calling the system all the time; or there is only a clock of wall time. */
    CHECK(cpu < 0.1 || (cpu > seconds - 0.01 && cpu < seconds + 0.01));
    atomic_uint never = 1;
    os_sleep_while_for(&never, 0, 1e300); /* must not overflow */
}

/* ---- clocks and CPUs ---- */

static double wall_clock(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Compares with the C library's clock, which shows a wrong unit. */
static void check_clocks(void) {
    double begin = os_seconds(), wall_begin = wall_clock(), cpu_begin = os_thread_seconds();
    double last = begin, last_cpu = cpu_begin;
    while (os_seconds() - begin < 0.3) {
        double now = os_seconds(), cpu = os_thread_seconds();
        CHECK(now >= last);
        CHECK(cpu >= last_cpu - 1e-4); /* its unit is measured again and again on Windows */
        last = now;
        last_cpu = cpu;
        os_pause();
    }
    double seconds = os_seconds() - begin, wall = wall_clock() - wall_begin,
           cpu = os_thread_seconds() - cpu_begin;
    CHECK(wall > 0.9 * seconds - 0.05 && wall < 1.1 * seconds + 0.05);
    CHECK(cpu > 0.001 && cpu < seconds + 0.05); /* other programs may have had the CPU */
}

static void check_cpus(void) {
    int n = os_n_cpus(), cores = os_physical_cores(), fast_cores = os_performance_cores();
    CHECK(n >= 1);
    CHECK(cores >= 0 && cores <= n);
    CHECK(fast_cores >= 0 && fast_cores <= n);
    CHECK(os_cpu_quota() >= 0);
    fprintf(stderr, "CPUs: %d, physical cores: %d, performance cores: %d, quota: %g\n", n, cores,
            fast_cores, os_cpu_quota());
}

int main(void) {
    static const struct {
        const char *name;
        void (*run)(void);
    } checks[] = {
        {"aligned memory", check_aligned_memory},
        {"arenas", check_arenas},
        {"discarding", check_discarding},
        {"offering", check_offering},
        {"mapping", check_mapping},
        {"threads and locks", check_threads_and_locks},
        {"wake-ups", check_wake_ups},
        {"sleeping", check_sleeping},
        {"clocks", check_clocks},
        {"CPUs", check_cpus},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        checks[i].run();
        printf("%s\n", checks[i].name);
    }
    return 0;
}
