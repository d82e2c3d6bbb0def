#include "crowding.h"

#include <stdatomic.h>
#include <stddef.h>

/* A call is crowded if lost_seconds * n_threads exceeds this share of its wall time: with two
 * threads, if lost_seconds exceeds a quarter of the wall time. With more threads the same loss
 * weighs more, because all threads wait for the late one. */
#define CROWDED_SHARE 0.5
/* Shorter losses have other causes: an interrupt, or a thread that wakes slowly. */
#define MIN_LOST_SECONDS 500e-6
/* Calls back off only after two crowded calls that are less than this time apart. */
#define NEAR_SECONDS 0.02

/* How long calls back off. The first time is about as long as a short pass, and seven more crowded
 * calls raise it to its limit. Once the machine is quiet, calls stop backing off after about
 * fifteen calls and a third of a second. */
#define MIN_BACKOFF_SECONDS 1e-3
#define MAX_BACKOFF_SECONDS 0.1
#define BACKOFF_GROWTH 2.0
#define BACKOFF_DECAY 0.7

/* CPU seconds per second of wall time, summed over the threads: a mean over about 50 calls. */
typedef struct {
    double seconds, cpu_seconds;
} cpu_share;
#define SHARE_KEPT 0.98
/* Each call with all workers raises the assumed CPU share of calls with idle workers a little, so
 * that backing off is tried again after some time. */
#define REDUCED_SHARE_GROWTH 1.0005

static struct {
    double last_crowded; /* the end of the last crowded call */
    int n_idle;          /* workers that a call leaves idle while calls back off */
    double backoff_seconds, backoff_end;
    cpu_share all, reduced; /* of calls with all workers, and of calls with idle workers */
} crowding = {.last_crowded = -NEAR_SECONDS};
static atomic_int recently_crowded;

static double cpus_used(const cpu_share *s, double if_unknown) {
    return s->seconds > 0 ? s->cpu_seconds / s->seconds : if_unknown;
}

static void add_to(cpu_share *s, const call_report *call) {
    s->seconds = SHARE_KEPT * s->seconds + (call->end - call->begin);
    s->cpu_seconds = SHARE_KEPT * s->cpu_seconds + call->cpu_seconds;
}

/* Whether calls with idle workers get as much CPU time as calls with all workers. */
static int fewer_workers_pay(int n_threads) {
    return cpus_used(&crowding.reduced, n_threads) >= cpus_used(&crowding.all, 0);
}

static int is_crowded(const call_report *call) {
    double seconds = call->end - call->begin;
    return call->lost_seconds > MIN_LOST_SECONDS &&
           call->lost_seconds * call->n_threads > CROWDED_SHARE * seconds;
}

int crowding_n_idle(double now, int n_workers) {
    if (now >= crowding.backoff_end)
        return 0;
    return crowding.n_idle < n_workers ? crowding.n_idle : n_workers;
}

/* After a call with idle workers: decides whether to leave more workers idle, or none. */
static void learn_from_reduced_call(const call_report *call) {
    add_to(&crowding.reduced, call);
    if (is_crowded(call) && call->n_threads > 1 && crowding.n_idle == call->n_idle)
        crowding.n_idle *= 2;
    if (!fewer_workers_pay(call->n_threads))
        crowding.backoff_end = call->end;
}

/* After a call with all workers: sets for how long the next calls back off. */
static void set_backoff(int crowded) {
    if (crowded) {
        double seconds = crowding.backoff_seconds * BACKOFF_GROWTH;
        if (crowding.backoff_seconds == 0)
            crowding.n_idle = 1;
        seconds = seconds < MIN_BACKOFF_SECONDS ? MIN_BACKOFF_SECONDS : seconds;
        crowding.backoff_seconds = seconds < MAX_BACKOFF_SECONDS ? seconds : MAX_BACKOFF_SECONDS;
    } else {
        crowding.backoff_seconds *= BACKOFF_DECAY;
        if (crowding.backoff_seconds < MIN_BACKOFF_SECONDS / 4)
            crowding.backoff_seconds = 0;
    }
    atomic_store_explicit(&recently_crowded, crowding.backoff_seconds > 0, memory_order_relaxed);
}

void crowding_learn(const call_report *call) {
    if (call->n_idle) {
        learn_from_reduced_call(call);
        return;
    }
    int crowded = is_crowded(call), is_near = call->begin - crowding.last_crowded < NEAR_SECONDS;
    if (crowded)
        crowding.last_crowded = call->end;
    if (crowding.backoff_seconds == 0 && !(crowded && is_near))
        return;
    add_to(&crowding.all, call);
    crowding.reduced.cpu_seconds *= REDUCED_SHARE_GROWTH;
    set_backoff(crowded);
    if (crowding.backoff_seconds > 0 && fewer_workers_pay(call->n_threads - 1))
        crowding.backoff_end = call->end + crowding.backoff_seconds;
}

int crowding_is_recent(void) {
    return atomic_load_explicit(&recently_crowded, memory_order_relaxed);
}

void crowding_forget(void) {
    crowding.n_idle = 0;
    crowding.backoff_seconds = crowding.backoff_end = 0;
    crowding.last_crowded = -NEAR_SECONDS;
    crowding.all = crowding.reduced = (cpu_share){0, 0};
    atomic_store_explicit(&recently_crowded, 0, memory_order_relaxed);
}
