/* The running batch: the jobs of all calls of a model, and who runs them.
 *
 * A caller resumes its jobs and waits. One of the waiting callers leads: it runs steps for all
 * ready jobs (step.c) until one of its own jobs has come to rest, and then hands the lead on. The
 * batch has no thread of its own. So a call that is alone runs as it would without a batch, and
 * calls that overlap share their passes. Only the leader touches a ready job, and only its caller
 * touches a resting one.
 *
 * All state is read and written under the batch's lock, which nobody holds during a pass. A caller
 * sleeps on a word of its own. The lead is given to a waiting caller with a ready job before that
 * caller wakes, so it cannot be lost or taken twice. If no caller can lead, the lead is free, and
 * the next caller that waits takes it. A caller that was given the lead just as its time ran out
 * hands it on before it returns.
 *
 * Jobs that come to rest unfinished are expected back soon, because their callers only look for
 * stop strings, or yield a token. Before a step, the leader gives them a moment to return, which is
 * called gathering: one pass for all jobs takes half as long as two passes, each for half of them.
 * If a caller takes longer, steps go on without its jobs until it resumes them.
 *
 * A pass outside the batch (scoring, beam search) takes a turn. Turns are granted in the order of
 * arrival, and alternate with steps. The pass of a scoring turn also scores the feeds of other
 * turns that wait, if they fit into its rows; a call must not return while such a pass uses its
 * feeds. tools/soak/batch.pml is a model of this protocol in which every interleaving is
 * checked. */
#ifndef GPT2C_BATCH_H
#define GPT2C_BATCH_H

#include "batch/step.h"
#include "gpt2c.h"
#include "os/os.h"

/* An atomic_uint is a word that threads sleep on until it changes. */
struct gpt2c_batch {
    os_lock lock;
    const gpt2c_model *model;
    int is_led;        /* a step or a turn runs, or a thread was chosen to run it */
    int last_was_turn; /* the last pass was a turn's */
    gpt2c_job **ready; /* [n_ready], in the order in which they were resumed */
    int32_t n_ready;
    int32_t max_ready;       /* `ready` is allocated for this many jobs */
    int32_t first_to_choose; /* with more jobs than rows, the next step begins with this one */
    uint64_t n_arrived;      /* jobs that were ever resumed */
    gpt2c_turn *first_turn, *last_turn; /* the queue of turns */
    int32_t n_resting;                  /* jobs that rest unfinished */
    int32_t n_expected;                 /* of them, those that are expected back soon */
    unsigned process;                   /* 1, or in a forked child the parent's number + 1 */
    unsigned gathering;                 /* the number of the next gathering, from 1 */
    int is_gathering;                   /* the leader sleeps on n_returns */
    atomic_uint n_returns;              /* gatherings for which all expected jobs have returned */
    atomic_uint n_steps;                /* steps that ended; gpt2c_batch_leave sleeps on it */
    int n_leaving;                      /* threads that wait for a step's end */
    double step_seconds;                /* of the last step */
    double last_fed;                    /* when the last step ended that fed a job */
    step_space *space;
};

/* All functions below need the lock. Those that sleep release it meanwhile. */

static inline void wake(atomic_uint *word) {
    atomic_fetch_add(word, 1);
    os_wake_all(word);
}

/* Sleeps without the lock until the word changes, or until the time `end`. */
static inline void sleep_unlocked(gpt2c_batch *b, atomic_uint *word, double end) {
    unsigned old = atomic_load(word);
    os_lock_release(&b->lock);
    os_sleep_while_for(word, old, end - os_seconds());
    os_lock_take(&b->lock);
}

/* ---- batch.c ---- */

/* Brings to rest the jobs that need their callers, and all other jobs of such a caller if its jobs
 * rest together. */
void rest_jobs(gpt2c_batch *b);

/* ---- lead.c ---- */

/* Gives the lead to a turn or to a waiting caller; without either, the lead becomes free. */
void hand_over(gpt2c_batch *b);

/* ---- choose.c ---- */

/* Chooses the jobs of the next step: all ready jobs, if there are enough rows. */
void choose_step(gpt2c_batch *b);

/* ---- room.c ---- */

/* After a step: lets the jobs that found the cache full stay ready, so that they try again. From
 * time to time such a job gets the status GPT2C_CACHE_FULL and so comes to rest: its caller can
 * then free pages, or fail. If the step fed nothing, this sleeps before the next attempt. */
void handle_full_cache(gpt2c_batch *b, double now);

/* ---- turns.c ---- */

void grant_turn(gpt2c_batch *b, gpt2c_turn *turn);
/* Returns the first turn whose thread waits, or NULL. A thread that is not in gpt2c_turn_wait
 * may be running a signal handler, and gets no turn: if the handler called the model, the call
 * would wait for the turn's end forever. */
gpt2c_turn *next_turn(const gpt2c_batch *b);

#endif
