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
#include "gpt2c.h"

#include "cache.h"
#include "os/os.h"
#include "step.h"

#include <stdlib.h>
#include <string.h>

/* How long a leader waits for expected jobs: a share of the last step's time, within limits. A
 * caller needs 50 to 100 microseconds of Python for a token, and callers share the interpreter. */
#define GATHER_SHARE 0.25
#define MIN_GATHER_SECONDS 200e-6
#define MAX_GATHER_SECONDS 20e-3
/* How long a job waits for room in a full cache: long if unfinished jobs may give pages back, short
 * if only finished texts or sessions hold them. If no job has room, the
 * leader sleeps between its attempts. */
#define FULL_SECONDS 10.0
#define SHORT_FULL_SECONDS 1.0
#define FULL_SLEEP_SECONDS 2e-3
/* How often a job that waits for room asks its caller to free pages that no call needs. */
#define ASK_SECONDS 0.05
/* The most jobs that decode in a step that also has prompts. */
#define MAX_DECODING (GPT2C_MAX_ROWS - PROMPT_ROWS_BESIDE)

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

gpt2c_status gpt2c_batch_create(const gpt2c_model *model, gpt2c_batch **batch) {
    gpt2c_batch *b = calloc(1, sizeof *b);
    if (!b)
        return GPT2C_NO_MEMORY;
    b->lock = (os_lock)OS_LOCK_INITIAL;
    b->model = model;
    b->gathering = b->process = 1;
    b->space = calloc(1, sizeof *b->space);
    gpt2c_status status = b->space ? GPT2C_OK : GPT2C_NO_MEMORY;
    if (!status)
        status = gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &b->space->scratch);
    if (status) {
        gpt2c_batch_free(b);
        return status;
    }
    b->space->model = model;
    *batch = b;
    return GPT2C_OK;
}

void gpt2c_batch_free(gpt2c_batch *batch) {
    if (!batch)
        return;
    if (batch->space)
        gpt2c_scratch_free(batch->space->scratch);
    free(batch->space);
    free(batch->ready);
    free(batch);
}

/* The thread that forked is in none of the functions below, so none of its state is lost. If
 * another thread was in a step, its buffers may be in any state; they are leaked, not freed. */
gpt2c_status gpt2c_batch_forget(gpt2c_batch *b) {
    gpt2c_status status = GPT2C_OK;
    if (b->is_led) {
        step_space *space = calloc(1, sizeof *space);
        status = space ? gpt2c_scratch_create(b->model, GPT2C_MAX_ROWS, &space->scratch)
                       : GPT2C_NO_MEMORY;
        if (status) {
            free(space);
            return status;
        }
        space->model = b->model;
        b->space = space;
    }
    b->lock = (os_lock)OS_LOCK_INITIAL;
    b->is_led = b->last_was_turn = b->is_gathering = 0;
    b->n_ready = b->n_resting = b->n_expected = b->n_leaving = 0;
    b->gathering++;
    b->process++;
    b->first_turn = b->last_turn = NULL;
    return status;
}

/* ---- wake-ups; all need the lock ---- */

static void wake(atomic_uint *word) {
    atomic_fetch_add(word, 1);
    os_wake_all(word);
}

/* Sleeps without the lock until the word changes or the time is `end`. */
static void sleep_unlocked(gpt2c_batch *b, atomic_uint *word, double end) {
    unsigned old = atomic_load(word);
    os_lock_release(&b->lock);
    os_sleep_while_for(word, old, end - os_seconds());
    os_lock_take(&b->lock);
}

static void push_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    turn->next = NULL;
    turn->is_queued = 1;
    if (b->last_turn)
        b->last_turn->next = turn;
    else
        b->first_turn = turn;
    b->last_turn = turn;
}

static void remove_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    gpt2c_turn *before = NULL;
    for (gpt2c_turn *t = b->first_turn; t != turn; t = t->next)
        before = t;
    if (before)
        before->next = turn->next;
    else
        b->first_turn = turn->next;
    if (b->last_turn == turn)
        b->last_turn = before;
    turn->is_queued = 0;
}

static void grant_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    remove_turn(b, turn);
    turn->is_granted = 1;
    wake(&turn->n_wakes);
}

/* Returns the first turn whose thread waits, or NULL. A thread that is not in gpt2c_turn_wait
 * may run a signal handler. If it had the turn and the handler called the model, it would wait
 * for itself. */
static gpt2c_turn *next_turn(const gpt2c_batch *b) {
    gpt2c_turn *turn = b->first_turn;
    while (turn && !turn->is_waiting)
        turn = turn->next;
    return turn;
}

/* Returns a caller that waits for a ready job, or NULL. */
static gpt2c_caller *next_leader(const gpt2c_batch *b) {
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_caller *caller = b->ready[i]->member.caller;
        if (caller->n_waiting && !caller->n_news)
            return caller;
    }
    return NULL;
}

/* Gives the lead to a turn or to a waiting caller; without either, the lead is free. */
static void hand_over(gpt2c_batch *b) {
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

/* ---- jobs that become ready or come to rest; all need the lock ---- */

/* A job that returns, or leaves, is no longer expected; after the last one, the leader may go
 * on. */
static void note_return(gpt2c_batch *b, gpt2c_job *job) {
    b->n_resting -= job->member.resting == b->process;
    job->member.resting = 0;
    if (job->member.expected != b->gathering)
        return;
    job->member.expected = 0;
    if (--b->n_expected == 0 && b->is_gathering)
        wake(&b->n_returns);
}

/* Brings a job to rest. With is_news, its caller wakes up. */
static void bring_to_rest(gpt2c_batch *b, gpt2c_job *job, int is_news) {
    gpt2c_caller *caller = job->member.caller;
    job->member.is_ready = 0;
    job->member.caller = NULL;
    caller->n_ready--;
    if (is_news && caller->n_news++ == 0 && caller->n_waiting)
        wake(&caller->n_wakes);
    if (job->finish == GPT2C_RUNNING && !job->member.is_cancelled && !job->status) {
        job->member.resting = b->process;
        job->member.expected = b->gathering;
        b->n_resting++;
        b->n_expected++;
    }
}

/* Whether the job has something for its caller. */
static int has_news(const gpt2c_job *job) {
    return job->finish != GPT2C_RUNNING || job->status || job->member.is_cancelled ||
           job->n_tokens >= job->rest_at || job->member.is_leaving;
}

/* Brings all jobs with news to rest, and those that rest together with them. */
static void rest_jobs(gpt2c_batch *b) {
    for (int32_t i = 0; i < b->n_ready; i++)
        if (has_news(b->ready[i]))
            bring_to_rest(b, b->ready[i], 1);
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_job *job = b->ready[i];
        if (!job->member.is_ready)
            continue;
        if (job->member.caller->rests_together && job->member.caller->n_news)
            bring_to_rest(b, job, 0);
        else
            b->ready[n++] = job;
    }
    b->n_ready = n;
}

static void remove_ready(gpt2c_batch *b, const gpt2c_job *job) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        if (b->ready[i] != job)
            b->ready[n++] = b->ready[i];
    b->n_ready = n;
}

/* A job must rest, be unfinished, and have a token to feed and room for a new one. */
static int job_is_valid(const gpt2c_job *job) {
    int32_t n_fed = gpt2c_sequence_length(job->sequence) - job->n_before;
    int has_room = job->is_feed || job->n_tokens < job->max_new_tokens;
    return job->finish == GPT2C_RUNNING && !job->member.is_ready && job->n_prompt > 0 &&
           n_fed >= 0 && job->n_tokens >= 0 && n_fed < job->n_prompt + job->n_tokens && has_room;
}

static int make_room(gpt2c_batch *b, int32_t n) {
    if (n <= b->room)
        return 1;
    gpt2c_job **larger = realloc(b->ready, (size_t)n * 2 * sizeof *larger);
    if (!larger)
        return 0;
    b->ready = larger;
    b->room = n * 2;
    return 1;
}

static void add_ready(gpt2c_batch *b, gpt2c_caller *caller, gpt2c_job *job) {
    note_return(b, job);
    if (!job->member.arrival)
        job->member.arrival = ++b->n_arrived;
    job->status = GPT2C_OK;
    job->member.caller = caller;
    job->member.is_ready = 1;
    job->member.is_in_step = 0;
    job->member.process = b->process;
    b->ready[b->n_ready++] = job;
    caller->n_ready++;
}

gpt2c_status gpt2c_batch_resume(gpt2c_batch *b, gpt2c_caller *caller, gpt2c_job *const *jobs,
                                int32_t n_jobs) {
    gpt2c_status status = GPT2C_OK;
    os_lock_take(&b->lock);
    int32_t n = 0;
    for (; !status && n < n_jobs; n++) {
        if (!job_is_valid(jobs[n]))
            status = GPT2C_BAD_ARGUMENT;
        else if (!make_room(b, b->n_ready + 1))
            status = GPT2C_NO_MEMORY;
        else
            add_ready(b, caller, jobs[n]);
    }
    for (int32_t i = 0; status && i < n - 1; i++) {
        remove_ready(b, jobs[i]);
        jobs[i]->member.is_ready = 0;
        caller->n_ready--;
    }
    if (!b->is_led && caller->n_waiting)
        wake(&caller->n_wakes);
    os_lock_release(&b->lock);
    return status;
}

void gpt2c_batch_leave(gpt2c_batch *b, gpt2c_job *const *jobs, int32_t n_jobs) {
    os_lock_take(&b->lock);
    for (int32_t i = 0; i < n_jobs; i++) {
        gpt2c_job *job = jobs[i];
        note_return(b, job);
        if (job->member.is_ready && job->member.process != b->process)
            job->member.is_ready = 0; /* its step, if it was in one, goes on in the parent */
        if (!job->member.is_ready)
            continue;
        job->member.is_leaving = 1; /* keeps it out of the next step */
        b->n_leaving++;
        while (job->member.is_ready && job->member.is_in_step)
            sleep_unlocked(b, &b->n_steps, os_seconds() + 1);
        b->n_leaving--;
        if (job->member.is_ready) {
            job->member.caller->n_ready--;
            job->member.is_ready = 0;
            remove_ready(b, job);
        }
        note_return(b, job);
        job->member.is_leaving = 0;
    }
    os_lock_release(&b->lock);
}

int gpt2c_batch_has_rested(gpt2c_batch *b, const gpt2c_job *job) {
    os_lock_take(&b->lock);
    int has_rested = !job->member.is_ready;
    os_lock_release(&b->lock);
    return has_rested;
}

void gpt2c_batch_cancel(gpt2c_batch *b, gpt2c_job *job) {
    os_lock_take(&b->lock);
    job->member.is_cancelled = 1;
    if (!job->member.is_ready)
        note_return(b, job);
    os_lock_release(&b->lock);
}

void gpt2c_batch_wake(gpt2c_batch *b, gpt2c_caller *caller) {
    os_lock_take(&b->lock);
    if (caller->n_news++ == 0 && caller->n_waiting)
        wake(&caller->n_wakes);
    os_lock_release(&b->lock);
}

/* ---- steps ---- */

/* Gives expected jobs a moment to return. Needs the lock, and gives it up meanwhile. */
static void gather(gpt2c_batch *b) {
    if (!b->n_expected)
        return;
    double seconds = GATHER_SHARE * b->step_seconds;
    seconds = seconds > MIN_GATHER_SECONDS ? seconds : MIN_GATHER_SECONDS;
    double now = os_seconds(),
           end = now + (seconds < MAX_GATHER_SECONDS ? seconds : MAX_GATHER_SECONDS);
    b->is_gathering = 1;
    while (b->n_expected && (now = os_seconds()) < end)
        sleep_unlocked(b, &b->n_returns, end);
    b->is_gathering = 0;
    b->n_expected = 0;
    b->gathering++; /* latecomers are no longer expected */
}

/* Chooses up to `max` ready jobs that decode (or that do not). The callers share the rows:
 * `quota` is the most jobs of one caller. Marks the jobs as in the step. */
static int32_t choose_jobs(gpt2c_batch *b, int decoding, int32_t max, int32_t quota) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready && n < max; i++) {
        gpt2c_job *job = b->ready[(b->first_to_choose + i) % b->n_ready];
        gpt2c_caller *caller = job->member.caller;
        if (job->member.is_in_step || is_decoding(job) != decoding || caller->n_chosen >= quota)
            continue;
        job->member.is_in_step = 1;
        caller->n_chosen++;
        n++;
    }
    return n;
}

static int32_t count_callers(gpt2c_batch *b, int32_t *n_decoding) {
    int32_t n_callers = 0;
    *n_decoding = 0;
    for (int32_t i = 0; i < b->n_ready; i++) {
        b->ready[i]->member.caller->n_chosen = -1;
        *n_decoding += is_decoding(b->ready[i]);
    }
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_caller *caller = b->ready[i]->member.caller;
        n_callers += caller->n_chosen < 0;
        caller->n_chosen = 0;
    }
    return n_callers;
}

/* Chooses the jobs of the next step: all of them, if there are rows enough. */
static void choose_step(gpt2c_batch *b) {
    step_space *s = b->space;
    int32_t n_decoding, n_callers = count_callers(b, &n_decoding), n_chosen = 0;
    if (b->n_ready <= GPT2C_MAX_ROWS && n_decoding <= MAX_DECODING) {
        for (int32_t i = 0; i < b->n_ready; i++)
            b->ready[i]->member.is_in_step = 1;
    } else {
        int32_t max = n_decoding == b->n_ready ? GPT2C_MAX_ROWS : MAX_DECODING;
        int32_t quota = (max + n_callers - 1) / n_callers;
        n_chosen = choose_jobs(b, 1, max, quota);
        n_chosen += choose_jobs(b, 1, max - n_chosen, INT32_MAX);
        b->first_to_choose = (b->first_to_choose + n_chosen) % b->n_ready;
        for (int32_t i = 0; i < b->n_ready; i++)
            b->ready[i]->member.caller->n_chosen = 0;
        choose_jobs(b, 0, GPT2C_MAX_ROWS - n_chosen, INT32_MAX);
    }
    s->n_jobs = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        if (b->ready[i]->member.is_in_step)
            s->jobs[s->n_jobs++] = b->ready[i];
    s->is_shared = n_callers > 1 || !b->ready[0]->member.caller->rests_together;
}

/* Returns how long a job may wait for room in the cache: 0 if its tokens alone exceed the limit. */
static double full_seconds(const gpt2c_batch *b, const gpt2c_job *job) {
    int32_t length = job->n_before + job->n_prompt + job->n_tokens;
    int32_t n_pages = (length + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
    if (n_pages > (int32_t)(gpt2c_model_cache_limit(b->model) / gpt2c_model_page_bytes(b->model)))
        return 0;
    int jobs_may_give = b->n_resting > 0 || b->n_ready > b->space->n_jobs;
    return jobs_may_give ? FULL_SECONDS : SHORT_FULL_SECONDS;
}

/* After a step: a job that found the cache full waits while others may give pages back. From time
 * to time it rests with the status GPT2C_CACHE_FULL, so that its caller can free pages. */
static void wait_for_room(gpt2c_batch *b, double now) {
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_job *job = b->ready[i];
        if (job->status != GPT2C_CACHE_FULL) {
            if (job->member.is_in_step)
                job->member.full_since = 0;
            continue;
        }
        gpt2c_membership *m = &job->member;
        if (m->full_since == 0) {
            m->full_since = now;
            m->asked_at = 0;
        }
        m->has_given_up = now - m->full_since >= full_seconds(b, job);
        if (m->has_given_up || now - m->asked_at >= ASK_SECONDS)
            m->asked_at = now; /* the job rests with its status */
        else
            job->status = GPT2C_OK;
    }
    if (b->space->n_feeds == 0)
        sleep_unlocked(b, &b->n_returns, now + FULL_SLEEP_SECONDS);
}

/* Runs one step. Needs the lock, and gives it up meanwhile. */
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
    wait_for_room(b, begin + seconds);
    for (int32_t i = 0; i < b->n_ready; i++)
        b->ready[i]->member.is_in_step = 0;
    rest_jobs(b);
    atomic_fetch_add(&b->n_steps, 1);
    if (b->n_leaving)
        os_wake_all(&b->n_steps);
}

/* Leads until a job of the caller rests, the time is over, or a turn is due; then hands over. */
static void lead(gpt2c_batch *b, gpt2c_caller *caller, double end) {
    caller->leads = 0;
    do
        lead_step(b);
    while (!caller->n_news && caller->n_ready && !next_turn(b) && os_seconds() < end);
    caller->n_waiting--; /* so that another caller gets the lead */
    hand_over(b);
    caller->n_waiting++;
}

int gpt2c_batch_wait(gpt2c_batch *b, gpt2c_caller *caller, double seconds) {
    double end = os_seconds() + seconds;
    os_lock_take(&b->lock);
    caller->n_waiting++;
    while (!caller->n_news) {
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
    if (caller->leads && !caller->n_waiting) { /* chosen just as the wait ended */
        caller->leads = 0;
        hand_over(b);
    }
    int n_news = caller->n_news;
    caller->n_news = 0;
    os_lock_release(&b->lock);
    return n_news;
}

/* ---- turns ---- */

int gpt2c_turn_wait(gpt2c_batch *b, gpt2c_turn *turn, double seconds) {
    double end = os_seconds() + seconds;
    os_lock_take(&b->lock);
    if (!turn->is_granted && !turn->is_queued)
        push_turn(b, turn);
    turn->is_waiting = 1;
    if (!b->is_led)
        hand_over(b);
    while (!turn->is_granted && os_seconds() < end)
        sleep_unlocked(b, &turn->n_wakes, end);
    turn->is_waiting = 0;
    int is_granted = turn->is_granted;
    os_lock_release(&b->lock);
    return is_granted;
}

void gpt2c_turn_end(gpt2c_batch *b, gpt2c_turn *turn) {
    os_lock_take(&b->lock);
    if (turn->is_queued)
        remove_turn(b, turn);
    if (turn->is_granted)
        hand_over(b);
    turn->is_granted = 0;
    os_lock_release(&b->lock);
}

int32_t gpt2c_turn_rows(gpt2c_batch *b) {
    os_lock_take(&b->lock);
    int32_t n_rows = b->n_ready ? PROMPT_ROWS_BESIDE : GPT2C_MAX_ROWS;
    os_lock_release(&b->lock);
    return n_rows;
}

gpt2c_scratch *gpt2c_turn_scratch(gpt2c_batch *b) { return b->space->scratch; }
