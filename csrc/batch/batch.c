/* The jobs of the running batch: which are ready and which rest. */
#include "batch/batch.h"

#include <stdlib.h>

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

void rest_jobs(gpt2c_batch *b) {
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
