#include "crowding.h"

#include <stdatomic.h>
#include <stddef.h>

/* A call is crowded if lost_seconds * n_threads exceeds this share of its wall time: with two
 * threads, if lost_seconds exceeds a quarter of the wall time. With more threads the same loss
 * weighs more, because all threads wait for the late one. */
#define CROWDED_SHARE 0.5
/* Shorter losses have other causes: an interrupt, or a thread that wakes slowly. */
#define MIN_LOST_SECONDS 500e-6
/* Workers begin to rest only after two crowded calls in quick succession: at most this long
 * apart. */
#define NEAR_SECONDS 0.02

/* The first rest period is about as long as a short pass; seven more crowded calls raise it to
 * its limit. Once the machine is quiet, resting stops after about fifteen calls and a third of a
 * second. */
#define MIN_REST_SECONDS 1e-3
#define MAX_REST_SECONDS 0.1
#define REST_GROWTH 2.0
#define REST_DECAY 0.7

/* CPU seconds per second of wall time, summed over the threads: a mean over about 50 calls. */
typedef struct {
    double seconds, cpu_seconds;
} cpu_share;
#define SHARE_KEPT 0.98
/* With each call that uses all workers, the CPU share of resting calls is assumed to be a little
 * larger, so that resting is tried again in time. */
#define RESTING_SHARE_GROWTH 1.0005

static struct {
    double last_crowded; /* the end of the last crowded call */
    int n_resting;
    double rest_seconds, rest_end;
    cpu_share all, resting; /* of calls with all workers, and of calls that rested workers */
} crowding = {.last_crowded = -NEAR_SECONDS};
static atomic_int recently_crowded;

static double cpus_used(const cpu_share *s, double unknown) {
    return s->seconds > 0 ? s->cpu_seconds / s->seconds : unknown;
}

static void add_to(cpu_share *s, const call_report *call) {
    s->seconds = SHARE_KEPT * s->seconds + (call->end - call->begin);
    s->cpu_seconds = SHARE_KEPT * s->cpu_seconds + call->cpu_seconds;
}

/* Whether calls that rest workers get as much CPU time as calls with all workers. */
static int resting_pays(int n_threads) {
    return cpus_used(&crowding.resting, n_threads) >= cpus_used(&crowding.all, 0);
}

static int is_crowded(const call_report *call) {
    double seconds = call->end - call->begin;
    return call->lost_seconds > MIN_LOST_SECONDS &&
           call->lost_seconds * call->n_threads > CROWDED_SHARE * seconds;
}

int crowding_n_resting(double now, int n_workers) {
    if (now >= crowding.rest_end)
        return 0;
    return crowding.n_resting < n_workers ? crowding.n_resting : n_workers;
}

/* After a call that rested workers: decides whether to rest more of them, or to stop resting. */
static void learn_resting(const call_report *call) {
    add_to(&crowding.resting, call);
    if (is_crowded(call) && call->n_threads > 1 && crowding.n_resting == call->n_resting)
        crowding.n_resting *= 2;
    if (!resting_pays(call->n_threads))
        crowding.rest_end = call->end;
}

/* After a call with all workers: sets how long the next calls leave workers resting. */
static void set_rest(int crowded) {
    if (crowded) {
        double seconds = crowding.rest_seconds * REST_GROWTH;
        if (crowding.rest_seconds == 0)
            crowding.n_resting = 1;
        seconds = seconds < MIN_REST_SECONDS ? MIN_REST_SECONDS : seconds;
        crowding.rest_seconds = seconds < MAX_REST_SECONDS ? seconds : MAX_REST_SECONDS;
    } else {
        crowding.rest_seconds *= REST_DECAY;
        if (crowding.rest_seconds < MIN_REST_SECONDS / 4)
            crowding.rest_seconds = 0;
    }
    atomic_store_explicit(&recently_crowded, crowding.rest_seconds > 0, memory_order_relaxed);
}

void crowding_learn(const call_report *call) {
    if (call->n_resting) {
        learn_resting(call);
        return;
    }
    int crowded = is_crowded(call), is_near = call->begin - crowding.last_crowded < NEAR_SECONDS;
    if (crowded)
        crowding.last_crowded = call->end;
    if (crowding.rest_seconds == 0 && !(crowded && is_near))
        return;
    add_to(&crowding.all, call);
    crowding.resting.cpu_seconds *= RESTING_SHARE_GROWTH;
    set_rest(crowded);
    if (crowding.rest_seconds > 0 && resting_pays(call->n_threads - 1))
        crowding.rest_end = call->end + crowding.rest_seconds;
}

int crowding_is_recent(void) {
    return atomic_load_explicit(&recently_crowded, memory_order_relaxed);
}

void crowding_forget(void) {
    crowding.n_resting = 0;
    crowding.rest_seconds = crowding.rest_end = 0;
    crowding.last_crowded = -NEAR_SECONDS;
    crowding.all = crowding.resting = (cpu_share){0, 0};
    atomic_store_explicit(&recently_crowded, 0, memory_order_relaxed);
}
