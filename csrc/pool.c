/* Threads and barriers.
 *
 * Everything waits on an event: a count that only goes up. A waiter reads the count, and waits
 * while it is unchanged; an announcer raises it and wakes sleepers. A call announces its orders to
 * each worker, and each worker announces when it is done. A barrier counts arrivals: the last
 * worker to arrive resets the count for the next barrier, and then announces that the barrier is
 * passed. The order matters, since the others may arrive at the next barrier immediately. Each
 * worker reads the event's count before it arrives, so it cannot miss the announcement.
 *
 * A large team has a tree of barriers, one for each group of workers and one for all groups. The
 * last worker to arrive at its group's barrier goes on to that of all groups, and then opens its
 * group's barrier.
 *
 * The team lies on the caller's stack: a worker does not touch the team after announcing that it is
 * done, and the call returns only after all workers have announced that. tools/soak/pool.pml is a
 * model of this protocol, with forks, in which every interleaving is checked.
 *
 * A wait spins for a short time and then sleeps. Workers that have just finished are likely to be
 * needed again within microseconds, but a thread that spins beside another busy process may take
 * the CPU from the thread that it waits for. Data is handed over through the counts alone, without
 * fences, so that ThreadSanitizer can follow it. */
#include "pool.h"

#include "crowding.h"
#include "fpenv.h"
#include "os/os.h"

#include <stddef.h>

/* How long a wait spins before it sleeps; less while other programs keep the CPUs busy. If threads
 * spin for less than 15 microseconds, Linux considers them idle, and puts two of them on one CPU
 * beside a busy process. */
#define SPIN_SECONDS 50e-6
#define CROWDED_SPIN_SECONDS 15e-6
#define PAUSES_PER_CLOCK_READ 32
/* On a quiet machine a sleeping thread takes at most about this long to wake. */
#define WAKE_SECONDS 100e-6

/* A count that only goes up, on which threads wait. */
typedef struct {
    atomic_uint count;
    atomic_uint n_sleepers;      /* 0: announcing needs no system call */
    _Atomic double announced_at; /* set if there seem to be sleepers */
} event;

/* The max number of workers in a group. The largest team has as many groups. So no more threads
 * than this raise or await any count. */
#define GROUP_WORKERS 16
#define MAX_GROUPS ((GPT2C_MAX_THREADS + GROUP_WORKERS - 1) / GROUP_WORKERS)

/* A barrier of a group, or of the last workers of all groups. Threads that wait for `passed` keep
 * reading its cache line. Arrivals would be delayed if they were counted in the same line. */
typedef struct {
    _Alignas(64) atomic_uint arrived; /* workers at the barrier */
    _Alignas(64) event passed;        /* all have arrived */
} barrier;

struct pool_team {
    team_function function;
    void *context;
    int n_workers;
    unsigned process;     /* pool.process when the call began */
    double begin;         /* the time at which the workers were called */
    atomic_int has_slept; /* a worker slept at a barrier, so another one may be late */
    int n_groups;
    barrier all; /* of the last worker of each group */
    barrier groups[MAX_GROUPS];
};

/* How one thread spent a call's time. */
typedef struct {
    double cpu_seconds;
    double lost_seconds; /* it was runnable but had no CPU */
} thread_times;

/* Workers are never freed, so a call may return while its last worker is still in announce. */
typedef struct {
    _Alignas(64) event orders; /* there is something to do */
    _Alignas(64) event done;
    pool_team *team;
    int index;          /* within the team */
    thread_times times; /* of the worker's last call */
    int is_taken;       /* by a call; guarded by the pool's lock */
} worker;

static struct {
    os_lock lock;
    int n_workers;    /* started so far; guarded by the lock */
    unsigned process; /* this process's number: the forks that led to it */
    worker workers[POOL_MAX_WORKERS];
} pool = {.lock = OS_LOCK_INITIAL};

/* Seconds that this thread slept in its current call because it had nothing to do. */
static _Thread_local double idle_seconds;

static unsigned count_of(event *e) { return atomic_load_explicit(&e->count, memory_order_acquire); }

/* These operations and those in announce are sequentially consistent: either the sleeper sees the
 * new count, or the announcer sees the sleeper. */
static void sleep_until_changed(event *e, unsigned old) {
    double begin = os_seconds();
    atomic_fetch_add(&e->n_sleepers, 1);
    while (atomic_load(&e->count) == old)
        os_sleep_while(&e->count, old);
    atomic_fetch_sub(&e->n_sleepers, 1);
    double now = os_seconds();
    double end = atomic_load_explicit(&e->announced_at, memory_order_relaxed) + WAKE_SECONDS;
    end = end < now ? end : now;
    idle_seconds += end > begin ? end - begin : 0;
}

/* Waits while the count equals old. Returns whether it slept. */
static int wait_while(event *e, unsigned old) {
    double spin_end = 0, spin_seconds = crowding_is_recent() ? CROWDED_SPIN_SECONDS : SPIN_SECONDS;
    int has_slept = 0;
    while (count_of(e) == old) {
        for (int i = 0; i < PAUSES_PER_CLOCK_READ && count_of(e) == old; i++)
            os_pause();
        double now = os_seconds();
        if (spin_end == 0) {
            spin_end = now + spin_seconds;
        } else if (now >= spin_end) {
            sleep_until_changed(e, old);
            has_slept = 1;
        }
    }
    return has_slept;
}

static void announce(event *e) {
    if (atomic_load_explicit(&e->n_sleepers, memory_order_relaxed))
        atomic_store_explicit(&e->announced_at, os_seconds(), memory_order_relaxed);
    atomic_fetch_add(&e->count, 1);
    if (atomic_load(&e->n_sleepers))
        os_wake_all(&e->count);
}

/* Runs the team's function on this thread, and returns how the thread spent the time. The CPU clock
 * is read again only if a worker slept: otherwise no worker was late, and the thread's CPU time is
 * the wall time. */
static thread_times take_part(pool_team *t, int index) {
    double cpu_begin = os_thread_seconds(), late = os_seconds() - t->begin;
    idle_seconds = late < WAKE_SECONDS ? late : WAKE_SECONDS;
    t->function(t->context, t, index, t->n_workers);
    if (!atomic_load_explicit(&t->has_slept, memory_order_relaxed))
        return (thread_times){os_seconds() - t->begin, 0};
    double cpu = os_thread_seconds() - cpu_begin,
           lost = os_seconds() - t->begin - cpu - idle_seconds;
    return (thread_times){cpu, lost > 0 ? lost : 0};
}

static void worker_main(void *argument) {
    worker *w = argument;
    (void)fp_enter(); /* without fp_leave: nothing else runs on this thread */
    for (unsigned seen = 0;; seen++) {
        wait_while(&w->orders, seen);
        w->times = take_part(w->team, w->index);
        announce(&w->done);
    }
}

/* A forked child has the pool's memory but not its threads, and starts its own. */
static void forget_workers(void) {
    pool.lock = (os_lock)OS_LOCK_INITIAL;
    pool.n_workers = 0;
    crowding_forget();
    pool.process++;
}

/* Runs when the library is loaded. If the first call registered the handler, a fork during that
 * call could leave the child with a held lock and without the handler. */
__attribute__((constructor)) static void register_child_handler(void) {
    os_after_fork_in_child(forget_workers);
}

/* Starts another worker. The caller holds the lock. Returns 0 if the system refuses; the call then
 * runs on fewer threads. */
static int start_worker(void) {
    if (pool.n_workers == POOL_MAX_WORKERS)
        return 0;
    worker *w = &pool.workers[pool.n_workers];
    *w = (worker){.is_taken = 0};
    if (!os_start_thread(worker_main, w))
        return 0;
    pool.n_workers++;
    return 1;
}

/* Takes up to n free workers, and returns how many it took. It starts workers until the pool has n.
 * While calls back off, it takes *n_idle fewer. */
static int take_workers(worker **taken, int n, double now, int *n_idle) {
    int n_taken = 0;
    os_lock_take(&pool.lock);
    *n_idle = crowding_n_idle(now, n);
    n -= *n_idle;
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

static void give_back(worker **taken, int n, call_report *call) {
    for (int i = 0; i < n; i++) {
        call->cpu_seconds += taken[i]->times.cpu_seconds;
        call->lost_seconds += taken[i]->times.lost_seconds;
    }
    call->end = os_seconds();
    os_lock_take(&pool.lock);
    for (int i = 0; i < n; i++)
        taken[i]->is_taken = 0;
    crowding_learn(call);
    os_lock_release(&pool.lock);
}

static atomic_int pretended_cpus;

void pool_pretend_cpus(int n) { atomic_store_explicit(&pretended_cpus, n, memory_order_relaxed); }

/* The number of threads for a call: at most the number of CPUs, since a thread that waits for a CPU
 * delays all others. */
static int usable_threads(int n_threads) {
    int pretended = atomic_load_explicit(&pretended_cpus, memory_order_relaxed);
    int n_cpus = pretended ? pretended : os_n_cpus();
    n_threads = n_threads < n_cpus ? n_threads : n_cpus;
    return n_threads < GPT2C_MAX_THREADS ? n_threads : GPT2C_MAX_THREADS;
}

/* Initialises only the barriers that the team uses: most teams are small. */
static void form_team(pool_team *t, int n_workers) {
    t->process = pool.process;
    t->n_workers = n_workers;
    t->n_groups = (n_workers + GROUP_WORKERS - 1) / GROUP_WORKERS;
    t->all = (barrier){0};
    for (int g = 0; g < t->n_groups; g++)
        t->groups[g] = (barrier){0};
}

void pool_run(team_function function, void *context, int max_workers) {
    worker *taken[POOL_MAX_WORKERS];
    unsigned done_before[POOL_MAX_WORKERS];
    int n = usable_threads(max_workers) - 1, n_idle = 0;
    pool_team t;
    double begin = os_seconds();
    n = n > 0 ? take_workers(taken, n, begin, &n_idle) : 0;
    form_team(&t, n + 1);
    t.function = function;
    t.context = context;
    t.begin = begin;
    /* A call with idle workers reads the CPU clock even if no worker sleeps: the CPU time shows
     * whether backing off pays. */
    atomic_store_explicit(&t.has_slept, n_idle > 0, memory_order_relaxed);
    for (int i = 0; i < n; i++) {
        taken[i]->team = &t;
        taken[i]->index = i + 1;
        done_before[i] = count_of(&taken[i]->done);
        announce(&taken[i]->orders);
    }
    thread_times own_times = take_part(&t, 0);
    if (team_was_lost(&t))
        return; /* the workers are in the parent */
    for (int i = 0; i < n; i++)
        wait_while(&taken[i]->done, done_before[i]);
    if (n == 0 && n_idle == 0)
        return;
    call_report call = {.n_threads = n + 1,
                        .n_idle = n_idle,
                        .begin = t.begin,
                        .cpu_seconds = own_times.cpu_seconds,
                        .lost_seconds = own_times.lost_seconds};
    give_back(taken, n, &call);
}

int team_was_lost(const pool_team *t) { return t->n_workers > 1 && t->process != pool.process; }

/* Arrives at a barrier of n threads. Returns 1 at once in the last thread to arrive, which then
 * must call open_barrier; returns 0 in the others when it has done so. */
static int arrive(pool_team *t, barrier *b, int n) {
    unsigned passed = count_of(&b->passed);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == (unsigned)n)
        return 1;
    if (wait_while(&b->passed, passed))
        atomic_store_explicit(&t->has_slept, 1, memory_order_relaxed);
    return 0;
}

static void open_barrier(barrier *b) {
    atomic_store(&b->arrived, 0);
    announce(&b->passed);
}

void team_barrier(pool_team *t, int index) {
    if (t->n_workers == 1 || team_was_lost(t))
        return;
    int group = index / GROUP_WORKERS, n_before = group * GROUP_WORKERS;
    int n = t->n_workers - n_before < GROUP_WORKERS ? t->n_workers - n_before : GROUP_WORKERS;
    if (!arrive(t, &t->groups[group], n))
        return;
    if (t->n_groups > 1 && arrive(t, &t->all, t->n_groups))
        open_barrier(&t->all);
    open_barrier(&t->groups[group]);
}
