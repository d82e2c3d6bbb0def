/* Threads and barriers.
 *
 * Waiting is a short spin and then sleep: workers that have just finished are likely to be needed
 * again within microseconds, but one that spins beside another busy process takes the CPU from the
 * very thread it waits for. All hand-over is through the count waited for, without fences, so that
 * ThreadSanitizer can follow it. */
#include "pool.h"

#include "fpenv.h"
#include "os.h"

#include <stddef.h>

/* Some 50 microseconds of pauses, at most. */
#define SPIN_SECONDS 50e-6
#define PAUSES_PER_LOOK 32

/* A count that only goes up, and that threads wait for. */
typedef struct {
    atomic_uint count;
    atomic_uint n_sleepers; /* spares the system call that wakes where nobody sleeps */
} event;

struct pool_team {
    team_function function;
    void *context;
    int n_workers;
    atomic_uint arrived; /* at the barrier */
    event passed;        /* the barrier, by all */
};

/* Workers are never freed, so a call may end while its last worker is still announcing. */
typedef struct {
    _Alignas(64) event orders; /* something to do */
    _Alignas(64) event done;
    pool_team *team;
    int index;    /* in the team */
    int is_taken; /* by a call; under the pool's lock */
} worker;

static struct {
    os_lock lock;
    int n_workers; /* started; under the lock */
    worker workers[POOL_MAX_WORKERS];
} pool = {.lock = OS_LOCK_INITIAL};

static unsigned count_of(event *e) {
    return atomic_load_explicit(&e->count, memory_order_acquire);
}

/* Sequentially consistent, both here and in announce: either the sleeper sees the new count, or the
 * announcer sees the sleeper. */
static void sleep_until_changed(event *e, unsigned old) {
    atomic_fetch_add(&e->n_sleepers, 1);
    while (atomic_load(&e->count) == old)
        os_sleep_while(&e->count, old);
    atomic_fetch_sub(&e->n_sleepers, 1);
}

/* Returns when the count is no longer old. */
static void wait_while(event *e, unsigned old) {
    double end = 0;
    while (count_of(e) == old) {
        for (int i = 0; i < PAUSES_PER_LOOK && count_of(e) == old; i++)
            os_pause();
        double now = os_seconds();
        if (end == 0)
            end = now + SPIN_SECONDS;
        else if (now >= end)
            sleep_until_changed(e, old);
    }
}

static void announce(event *e) {
    atomic_fetch_add(&e->count, 1);
    if (atomic_load(&e->n_sleepers))
        os_wake_all(&e->count);
}

static void work(void *argument) {
    worker *w = argument;
    (void)fp_enter(); /* for good: nothing else runs on this thread */
    for (unsigned seen = 0;; seen++) {
        wait_while(&w->orders, seen);
        pool_team *t = w->team;
        t->function(t->context, t, w->index, t->n_workers);
        announce(&w->done);
    }
}

/* A forked child has the pool's memory but not its threads: it starts its own. */
static void forget_workers(void) {
    pool.lock = (os_lock)OS_LOCK_INITIAL;
    pool.n_workers = 0;
}

/* Starts another worker; under the lock. 0 where the system gives no thread: a call then runs on
 * fewer. */
static int start_worker(void) {
    static int child_handler_is_set;
    if (pool.n_workers == POOL_MAX_WORKERS)
        return 0;
    if (!child_handler_is_set) {
        os_after_fork_in_child(forget_workers);
        child_handler_is_set = 1;
    }
    worker *w = &pool.workers[pool.n_workers];
    *w = (worker){.is_taken = 0};
    if (!os_start_thread(work, w))
        return 0;
    pool.n_workers++;
    return 1;
}

/* Takes up to n free workers, starting new ones while there are fewer than n. */
static int take_workers(worker **taken, int n) {
    int n_taken = 0;
    os_lock_take(&pool.lock);
    while (pool.n_workers < n && start_worker()) {
    }
    for (int i = 0; i < pool.n_workers && n_taken < n; i++)
        if (!pool.workers[i].is_taken) {
            pool.workers[i].is_taken = 1;
            taken[n_taken++] = &pool.workers[i];
        }
    os_lock_release(&pool.lock);
    return n_taken;
}

static void give_back(worker **taken, int n) {
    os_lock_take(&pool.lock);
    for (int i = 0; i < n; i++)
        taken[i]->is_taken = 0;
    os_lock_release(&pool.lock);
}

void pool_run(team_function function, void *context, int max_workers) {
    worker *taken[POOL_MAX_WORKERS];
    unsigned done_before[POOL_MAX_WORKERS];
    int n = max_workers - 1;
    n = n > POOL_MAX_WORKERS ? POOL_MAX_WORKERS : n;
    n = n > 0 ? take_workers(taken, n) : 0;
    pool_team t = {.function = function, .context = context, .n_workers = n + 1};
    for (int i = 0; i < n; i++) {
        taken[i]->team = &t;
        taken[i]->index = i + 1;
        done_before[i] = count_of(&taken[i]->done);
        announce(&taken[i]->orders);
    }
    function(context, &t, 0, n + 1);
    for (int i = 0; i < n; i++)
        wait_while(&taken[i]->done, done_before[i]);
    if (n)
        give_back(taken, n);
}

void team_barrier(pool_team *t) {
    if (t->n_workers == 1)
        return;
    unsigned passed = count_of(&t->passed);
    unsigned before = atomic_fetch_add(&t->arrived, 1);
    if (before + 1 == (unsigned)t->n_workers) {
        atomic_store(&t->arrived, 0);
        announce(&t->passed);
    } else {
        wait_while(&t->passed, passed);
    }
}
