/* The running batch: the jobs of all calls of a model, and who runs them.
 *
 * A caller resumes its jobs and waits. One of the waiting callers leads: it runs steps for all
 * ready jobs (step.c) until one of its own jobs has come to rest, and then hands the lead on. The
 * batch has no thread of its own. So a call that is alone runs as it would without a batch, and
 * calls that overlap share their passes. Only the leader touches a ready job, and only its caller
 * touches a resting one.
 *
 * All state is read and written under the batch's lock, which nobody holds during a pass. A caller
 * sleeps on a word of its own. The lead is assigned to one waiting caller with a ready job before
 * that caller wakes: it can be neither lost nor taken twice. A caller that finds the lead free
 * takes it. A caller that times out passes the lead on before it returns.
 *
 * Jobs that come to rest without being finished are expected back soon: their callers look for stop
 * strings, or yield a token. The leader gives them a moment before the next step, since two passes
 * for half of the jobs each take twice as long as one pass. If a caller takes longer, steps go on
 * without it until it comes back.
 *
 * A pass outside the batch (scoring, beam search) takes a turn. Turns are granted in the order
 * of arrival, and alternate with steps. tools/soak/batch.pml is a model of this protocol in
 * which every interleaving is checked. */
#ifndef GPT2C_BATCH_H
#define GPT2C_BATCH_H

#include "batch/step.h"
#include "gpt2c.h"
#include "os/os.h"

struct gpt2c_batch {
    os_lock lock;
    const gpt2c_model *model;
    int is_led;              /* a step or a turn runs, or its thread was chosen */
    int last_was_turn;       /* the last pass was a turn's */
    gpt2c_job **ready;       /* [n_ready], in the order in which they were resumed */
    int32_t n_ready, room;   /* room for `room` ready jobs */
    int32_t first_to_choose; /* with more jobs than rows, the next step begins with this one */
    uint64_t n_arrived;
    gpt2c_turn *first_turn, *last_turn; /* the turns that wait */
    int32_t n_resting;                  /* jobs that rest unfinished */
    int32_t n_expected;                 /* of them, those that are expected back soon */
    unsigned process;                   /* from 1; another one after each fork */
    unsigned gathering;                 /* the number of this gathering, from 1 */
    int is_gathering;                   /* the leader sleeps on n_returns */
    atomic_uint n_returns;
    atomic_uint n_steps; /* steps that ended; gpt2c_batch_leave sleeps on it */
    int n_leaving;       /* threads that wait for a step's end */
    double step_seconds; /* of the last step */
    step_space *space;
};

/* ---- wake-ups; all need the lock ---- */

static inline void wake(atomic_uint *word) {
    atomic_fetch_add(word, 1);
    os_wake_all(word);
}

/* Sleeps without the lock until the word changes or the time is `end`. */
static inline void sleep_unlocked(gpt2c_batch *b, atomic_uint *word, double end) {
    unsigned old = atomic_load(word);
    os_lock_release(&b->lock);
    os_sleep_while_for(word, old, end - os_seconds());
    os_lock_take(&b->lock);
}

/* ---- batch.c; all need the lock ---- */

/* Brings all jobs with news to rest, and those that rest together with them. */
void rest_jobs(gpt2c_batch *b);

/* ---- lead.c; needs the lock ---- */

/* Gives the lead to a turn or to a waiting caller; without either, the lead is free. */
void hand_over(gpt2c_batch *b);

/* ---- choose.c; needs the lock ---- */

/* Chooses the jobs of the next step: all of them, if there are rows enough. */
void choose_step(gpt2c_batch *b);

/* ---- room.c; needs the lock ---- */

/* After a step: a job that found the cache full waits while others may give pages back. From time
 * to time it rests with the status GPT2C_CACHE_FULL, so that its caller can free pages. */
void wait_for_room(gpt2c_batch *b, double now);

/* ---- turns.c; all need the lock ---- */

void grant_turn(gpt2c_batch *b, gpt2c_turn *turn);
/* Returns the first turn whose thread waits, or NULL. A thread that is not in gpt2c_turn_wait
 * may run a signal handler. If it had the turn and the handler called the model, it would wait
 * for itself. */
gpt2c_turn *next_turn(const gpt2c_batch *b);

#endif
