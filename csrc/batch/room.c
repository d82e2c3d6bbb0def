/* Room in the KV cache for the jobs of the running batch.
 *
 * A job's pages for its whole prompt are reserved with its first chunk, and a page for its new
 * tokens every 64 of them. A job that finds the cache full takes the pages of the youngest job
 * that arrived after it. Without a younger job it sits out until pages are free. The oldest job
 * thus always makes progress, and a job that lost its pages feeds its tokens again once they
 * fit. */
#include "batch/batch.h"

#include "cache.h"
#include "model/model.h"

/* How long a job waits for room in a full cache: long if unfinished jobs may give pages back, short
 * if only finished texts or sessions hold them. If no job has room, the
 * leader sleeps between its attempts. */
#define FULL_SECONDS 10.0
#define SHORT_FULL_SECONDS 1.0
#define FULL_SLEEP_SECONDS 2e-3
/* How often a job that waits for room asks its caller to free pages that no call needs. */
#define ASK_SECONDS 0.05

/* Takes the pages of the youngest job that arrived after `job`. Returns 0 if there is none. It
 * spares jobs that only feed: they could not feed again the tokens before their prompt. */
static int preempt_younger_than(step_space *s, const gpt2c_job *job) {
    int32_t youngest = -1;
    for (int32_t j = 0; j < s->n_jobs; j++) {
        const gpt2c_job *other = s->jobs[j];
        if (!other->is_feed && gpt2c_sequence_length(other->sequence) > 0 &&
            other->member.arrival > job->member.arrival &&
            (youngest < 0 || other->member.arrival > s->jobs[youngest]->member.arrival))
            youngest = j;
    }
    if (youngest < 0)
        return 0;
    gpt2c_sequence_truncate(s->jobs[youngest]->sequence, 0);
    if (youngest < s->n_feeds)
        drop_feed(s, youngest, GPT2C_OK);
    return 1;
}

/* Reserves the pages of feed f; the feeds of younger jobs may be dropped. */
static gpt2c_status reserve(step_space *s, int32_t f) {
    gpt2c_job *job = s->jobs[f];
    int32_t n_tokens = f < s->n_decoding ? s->feeds[f].n_tokens : n_unfed(job);
    if (n_tokens > s->model->config.n_positions - gpt2c_sequence_length(job->sequence))
        return GPT2C_CONTEXT_FULL;
    gpt2c_status status = cache_reserve(job->sequence, n_tokens);
    while (status == GPT2C_CACHE_FULL && preempt_younger_than(s, job))
        status = cache_reserve(job->sequence, n_tokens);
    return status;
}

/* Returns the index of a job's feed, or n_feeds if the job has none. */
static int32_t feed_of_job(const step_space *s, const gpt2c_job *job) {
    int32_t f = 0;
    while (f < s->n_feeds && s->jobs[f] != job)
        f++;
    return f;
}

void reserve_feeds(step_space *s) {
    gpt2c_job *jobs[GPT2C_MAX_ROWS];
    int32_t n = s->n_feeds;
    for (int32_t i = 0; i < n; i++) {
        gpt2c_job *job = s->jobs[i];
        int32_t j = i;
        for (; j > 0 && jobs[j - 1]->member.arrival > job->member.arrival; j--)
            jobs[j] = jobs[j - 1];
        jobs[j] = job;
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t f = feed_of_job(s, jobs[i]);
        if (f == s->n_feeds)
            continue; /* an older job took its pages */
        gpt2c_status status = reserve(s, f);
        if (status == GPT2C_OK)
            continue;
        /* Only the oldest job reports a full cache; the others sit out. */
        drop_feed(s, feed_of_job(s, jobs[i]),
                  status == GPT2C_CACHE_FULL && i > 0 ? GPT2C_OK : status);
    }
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

void wait_for_room(gpt2c_batch *b, double now) {
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
