/* The batch itself, and its jobs: when they become ready, and when they come to rest. */
#include "batch/batch.h"

#include <stdlib.h>

static gpt2c_status create_space(const gpt2c_model *model, step_space **space) {
    step_space *s = calloc(1, sizeof *s);
    if (!s)
        return GPT2C_NO_MEMORY;
    gpt2c_status status = gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &s->scratch);
    if (status) {
        free(s);
        return status;
    }
    s->model = model;
    *space = s;
    return GPT2C_OK;
}

gpt2c_status gpt2c_batch_create(const gpt2c_model *model, gpt2c_batch **batch) {
    gpt2c_batch *b = calloc(1, sizeof *b);
    if (!b)
        return GPT2C_NO_MEMORY;
    gpt2c_status status = create_space(model, &b->space);
    if (status) {
        free(b);
        return status;
    }
    b->lock = (os_lock)OS_LOCK_INITIAL;
    b->model = model;
    b->gathering = b->process = 1;
    *batch = b;
    return GPT2C_OK;
}

void gpt2c_batch_free(gpt2c_batch *batch) {
    if (!batch)
        return;
    gpt2c_scratch_free(batch->space->scratch);
    free(batch->space);
    free(batch->ready);
    free(batch);
}

/* The thread that forked was in no function of the batch, so it has no state here to lose. If
 * another thread was in a step, the step's buffers may be in any state: they are leaked, not
 * freed. */
gpt2c_status gpt2c_batch_forget(gpt2c_batch *b) {
    if (b->is_led) {
        gpt2c_status status = create_space(b->model, &b->space);
        if (status)
            return status;
    }
    b->lock = (os_lock)OS_LOCK_INITIAL;
    b->is_led = b->last_was_turn = b->is_gathering = 0;
    b->n_ready = b->n_resting = b->n_expected = b->n_leaving = 0;
    b->gathering++;
    b->process++;
    b->first_turn = b->last_turn = NULL;
    return GPT2C_OK;
}

/* ---- jobs that come to rest; all need the lock ---- */

/* Makes the caller's wait return: the wait in progress, or else the next one. */
static void notify(gpt2c_caller *caller) {
    if (!caller->is_notified && caller->n_waiting)
        wake(&caller->n_wakes);
    caller->is_notified = 1;
}

/* Stops expecting a job that returns, leaves or was cancelled. After the last such job, a leader
 * that gathers goes on. */
static void stop_expecting(gpt2c_batch *b, gpt2c_job *job) {
    b->n_resting -= job->member.resting_process == b->process;
    job->member.resting_process = 0;
    if (job->member.expecting_gathering != b->gathering)
        return;
    job->member.expecting_gathering = 0;
    if (--b->n_expected == 0 && b->is_gathering)
        wake(&b->n_returns);
}

static void bring_to_rest(gpt2c_batch *b, gpt2c_job *job) {
    job->member.is_ready = 0;
    job->member.caller->n_ready--;
    job->member.caller = NULL;
    if (job->finish == GPT2C_RUNNING && !job->member.is_cancelled && !job->status) {
        job->member.resting_process = b->process;
        job->member.expecting_gathering = b->gathering;
        b->n_resting++;
        b->n_expected++;
    }
}

static int needs_caller(const gpt2c_job *job) {
    return job->finish != GPT2C_RUNNING || job->status || job->member.is_cancelled ||
           job->n_tokens >= job->rest_at || job->member.is_leaving;
}

void rest_jobs(gpt2c_batch *b) {
    for (int32_t i = 0; i < b->n_ready; i++)
        if (needs_caller(b->ready[i])) {
            notify(b->ready[i]->member.caller);
            bring_to_rest(b, b->ready[i]);
        }
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_job *job = b->ready[i];
        if (!job->member.is_ready)
            continue;
        if (job->member.caller->rests_together && job->member.caller->is_notified)
            bring_to_rest(b, job);
        else
            b->ready[n++] = job;
    }
    b->n_ready = n;
}

/* ---- jobs that become ready or leave ---- */

/* Whether a job can be resumed: it rests, is unfinished, has a token to feed, and has room for a
 * new one. */
static int job_is_valid(const gpt2c_job *job) {
    int has_room = job->is_feed || job->n_tokens < job->max_new_tokens;
    return job->finish == GPT2C_RUNNING && !job->member.is_ready && job->n_prompt > 0 &&
           n_fed(job) >= 0 && job->n_tokens >= 0 && n_unfed(job) > 0 && has_room;
}

/* Allocates `ready` for n jobs. Returns 0 if out of memory. */
static int grow_ready(gpt2c_batch *b, int32_t n) {
    if (n <= b->max_ready)
        return 1;
    gpt2c_job **larger = realloc(b->ready, (size_t)n * 2 * sizeof *larger);
    if (!larger)
        return 0;
    b->ready = larger;
    b->max_ready = n * 2;
    return 1;
}

static void add_ready(gpt2c_batch *b, gpt2c_caller *caller, gpt2c_job *job) {
    stop_expecting(b, job);
    if (!job->member.arrival)
        job->member.arrival = ++b->n_arrived;
    job->status = GPT2C_OK;
    job->member.caller = caller;
    job->member.is_ready = 1;
    job->member.is_in_step = 0;
    job->member.ready_process = b->process;
    b->ready[b->n_ready++] = job;
    caller->n_ready++;
}

static void remove_ready(gpt2c_batch *b, gpt2c_job *job) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        if (b->ready[i] != job)
            b->ready[n++] = b->ready[i];
    b->n_ready = n;
    job->member.is_ready = 0;
    job->member.caller->n_ready--;
}

gpt2c_status gpt2c_batch_resume(gpt2c_batch *b, gpt2c_caller *caller, gpt2c_job *const *jobs,
                                int32_t n_jobs) {
    gpt2c_status status = GPT2C_OK;
    os_lock_take(&b->lock);
    int32_t n = 0;
    for (; !status && n < n_jobs; n++) {
        if (!job_is_valid(jobs[n]))
            status = GPT2C_BAD_ARGUMENT;
        else if (!grow_ready(b, b->n_ready + 1))
            status = GPT2C_NO_MEMORY;
        else
            add_ready(b, caller, jobs[n]);
    }
    for (int32_t i = 0; status && i < n - 1; i++)
        remove_ready(b, jobs[i]);
    if (!b->is_led && caller->n_waiting)
        wake(&caller->n_wakes);
    os_lock_release(&b->lock);
    return status;
}

void gpt2c_batch_leave(gpt2c_batch *b, gpt2c_job *const *jobs, int32_t n_jobs) {
    os_lock_take(&b->lock);
    for (int32_t i = 0; i < n_jobs; i++) {
        gpt2c_job *job = jobs[i];
        stop_expecting(b, job);
        if (job->member.is_ready && job->member.ready_process != b->process)
            job->member.is_ready = 0; /* if it was in a step, the step goes on in the parent */
        if (!job->member.is_ready)
            continue;
        job->member.is_leaving = 1; /* so that it rests after the step that it is in */
        b->n_leaving++;
        while (job->member.is_ready && job->member.is_in_step)
            sleep_unlocked(b, &b->n_steps, os_seconds() + 1);
        b->n_leaving--;
        if (job->member.is_ready)
            remove_ready(b, job);
        stop_expecting(b, job);
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
        stop_expecting(b, job);
    os_lock_release(&b->lock);
}

void gpt2c_batch_wake(gpt2c_batch *b, gpt2c_caller *caller) {
    os_lock_take(&b->lock);
    notify(caller);
    os_lock_release(&b->lock);
}
