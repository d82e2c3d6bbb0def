/* Who leads: one of the waiting callers runs the steps of all. batch.h describes the protocol. */
#include "batch/batch.h"

/* How long a leader waits for expected jobs: a share of the last step's time, within limits. A
 * caller needs 50 to 100 microseconds of Python per token, and the callers' threads share the
 * interpreter. */
#define GATHER_SHARE 0.25
#define MIN_GATHER_SECONDS 200e-6
#define MAX_GATHER_SECONDS 20e-3

/* Returns a caller that waits for a ready job, or NULL. */
static gpt2c_caller *next_leader(const gpt2c_batch *b) {
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_caller *caller = b->ready[i]->member.caller;
        if (caller->n_waiting && !caller->is_notified)
            return caller;
    }
    return NULL;
}

void hand_over(gpt2c_batch *b) {
    gpt2c_caller *leader = next_leader(b);
    gpt2c_turn *turn = next_turn(b);
    b->is_led = 1;
    if (turn && (!b->last_was_turn || !leader)) {
        b->last_was_turn = 1;
        grant_turn(b, turn);
    } else if (leader) {
        b->last_was_turn = 0;
        leader->leads = 1;
        wake(&leader->n_wakes);
    } else {
        b->is_led = 0;
    }
}

static double gather_seconds(const gpt2c_batch *b) {
    double seconds = GATHER_SHARE * b->step_seconds;
    if (seconds < MIN_GATHER_SECONDS)
        return MIN_GATHER_SECONDS;
    return seconds < MAX_GATHER_SECONDS ? seconds : MAX_GATHER_SECONDS;
}

/* Gives expected jobs a moment to return. Needs the lock, and releases it meanwhile. */
static void gather(gpt2c_batch *b) {
    if (!b->n_expected)
        return;
    double end = os_seconds() + gather_seconds(b);
    b->is_gathering = 1;
    while (b->n_expected && os_seconds() < end)
        sleep_unlocked(b, &b->n_returns, end);
    b->is_gathering = 0;
    b->n_expected = 0;
    b->gathering++; /* no longer expects the jobs that did not return */
}

/* Runs one step. Needs the lock, and releases it meanwhile. */
static void lead_step(gpt2c_batch *b) {
    gather(b);
    rest_jobs(b); /* those that were cancelled */
    if (b->n_ready == 0)
        return;
    choose_step(b);
    b->last_was_turn = 0;
    os_lock_release(&b->lock);
    double begin = os_seconds();
    run_step(b->space);
    double seconds = os_seconds() - begin;
    os_lock_take(&b->lock);
    b->step_seconds = seconds;
    handle_full_cache(b, begin + seconds);
    for (int32_t i = 0; i < b->n_ready; i++)
        b->ready[i]->member.is_in_step = 0;
    rest_jobs(b);
    atomic_fetch_add(&b->n_steps, 1);
    if (b->n_leaving)
        os_wake_all(&b->n_steps);
}

/* Leads until a job of the caller rests, its time is over, or a turn is due; then hands over. */
static void lead(gpt2c_batch *b, gpt2c_caller *caller, double end) {
    caller->leads = 0;
    do
        lead_step(b);
    while (!caller->is_notified && caller->n_ready && !next_turn(b) && os_seconds() < end);
    caller->n_waiting--; /* so that another caller gets the lead */
    hand_over(b);
    caller->n_waiting++;
}

int gpt2c_batch_wait(gpt2c_batch *b, gpt2c_caller *caller, double seconds) {
    double end = os_seconds() + seconds;
    os_lock_take(&b->lock);
    caller->n_waiting++;
    while (!caller->is_notified) {
        if (caller->leads) {
            lead(b, caller, end);
        } else if (!b->is_led && caller->n_ready) {
            b->is_led = 1;
            lead(b, caller, end);
        } else {
            sleep_unlocked(b, &caller->n_wakes, end);
        }
        if (os_seconds() >= end)
            break;
    }
    caller->n_waiting--;
    if (caller->leads && !caller->n_waiting) { /* it was given the lead just as the wait ended */
        caller->leads = 0;
        hand_over(b);
    }
    int is_notified = caller->is_notified;
    caller->is_notified = 0;
    os_lock_release(&b->lock);
    return is_notified;
}
