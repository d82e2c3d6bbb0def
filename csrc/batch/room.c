/* Room in the KV cache for the jobs of a step.
 *
 * The pages for a job's whole prompt are reserved with its first chunk. Each page of its new tokens
 * is reserved when the page before is full. A job that finds the cache full preempts the youngest
 * job that arrived after it, that is, takes its pages. Without a younger job it sits out steps
 * until pages are free. The oldest job thus always makes progress. A job that lost its pages feeds
 * its tokens again once they fit. */
#include "batch/batch.h"

#include "cache.h"
#include "model/model.h"

#include <string.h>

/* How long a job may find the cache full before it fails: long if unfinished jobs may give pages
 * back, short if only finished texts or sessions hold them. */
#define FULL_SECONDS 10.0
#define SHORT_FULL_SECONDS 1.0
/* How long the leader sleeps before the next attempt if no job of a step had room. */
#define FULL_SLEEP_SECONDS 2e-3
/* How often a job without room asks its caller to free pages that no call needs. */
#define ASK_SECONDS 0.05

/* Whether `job` may take the pages of `other`. Jobs that only feed are spared, because they cannot
 * feed the tokens before their prompt again. */
static int may_preempt(const gpt2c_job *job, const gpt2c_job *other) {
    return !other->is_feed && gpt2c_sequence_length(other->sequence) > 0 &&
           other->member.arrival > job->member.arrival;
}

/* Whether n_tokens would fit if the job took the pages of all younger jobs. If not, taking pages
 * would only destroy the others' work, at each of the job's attempts. */
static int fits_with_preemption(const step_space *s, const gpt2c_job *job, int32_t n_tokens) {
    size_t page_bytes = gpt2c_model_page_bytes(s->model);
    size_t bytes = gpt2c_model_cache_bytes(s->model) + cache_bytes_needed(job->sequence, n_tokens);
    size_t limit = gpt2c_model_cache_limit(s->model);
    for (int32_t j = 0; j < s->n_jobs && bytes > limit; j++) {
        size_t freed = (size_t)s->jobs[j]->sequence->n_pages * page_bytes;
        if (may_preempt(job, s->jobs[j]))
            bytes -= freed < bytes ? freed : bytes;
    }
    return bytes <= limit;
}

/* Takes the pages of the youngest job that arrived after `job`. Returns 0 if there is none. */
static int preempt_younger_than(step_space *s, const gpt2c_job *job) {
    int32_t youngest = -1;
    for (int32_t j = 0; j < s->n_jobs; j++)
        if (may_preempt(job, s->jobs[j]) &&
            (youngest < 0 || s->jobs[j]->member.arrival > s->jobs[youngest]->member.arrival))
            youngest = j;
    if (youngest < 0)
        return 0;
    gpt2c_sequence_truncate(s->jobs[youngest]->sequence, 0);
    if (youngest < s->n_feeds)
        drop_feed(s, youngest, GPT2C_OK);
    return 1;
}

/* Reserves the pages of feed f. May drop the feeds of younger jobs. */
static gpt2c_status reserve_feed(step_space *s, int32_t f) {
    gpt2c_job *job = s->jobs[f];
    int32_t n_tokens = f < s->n_decoding ? s->feeds[f].n_tokens : n_unfed(job);
    if (n_tokens > s->model->config.n_positions - gpt2c_sequence_length(job->sequence))
        return GPT2C_CONTEXT_FULL;
    gpt2c_status status = cache_reserve(job->sequence, n_tokens);
    if (status != GPT2C_CACHE_FULL || !fits_with_preemption(s, job, n_tokens))
        return status;
    while (status == GPT2C_CACHE_FULL && preempt_younger_than(s, job))
        status = cache_reserve(job->sequence, n_tokens);
    return status;
}

/* Returns the index of a job's feed, or n_feeds if the job has none. */
static int32_t find_feed(const step_space *s, const gpt2c_job *job) {
    int32_t f = 0;
    while (f < s->n_feeds && s->jobs[f] != job)
        f++;
    return f;
}

static uint64_t arrival_of(const gpt2c_job *job) { return job->member.arrival; }

/* Reserves the pages of all feeds, the oldest job's first. If `reports`, the oldest job without room
 * reports a full cache; the others sit out. */
static void reserve_feeds(step_space *s, int reports) {
    gpt2c_job *jobs[GPT2C_MAX_ROWS];
    int32_t n = s->n_feeds;
    memcpy(jobs, s->jobs, (size_t)n * sizeof *jobs);
    sort_jobs(jobs, n, arrival_of);
    for (int32_t i = 0; i < n; i++) {
        int32_t f = find_feed(s, jobs[i]);
        if (f == s->n_feeds)
            continue; /* an older job has taken its pages */
        gpt2c_status status = reserve_feed(s, f);
        if (status == GPT2C_OK)
            continue;
        jobs[i]->member.lacks_room = status == GPT2C_CACHE_FULL;
        int sits_out = status == GPT2C_CACHE_FULL && !(reports && i == 0);
        drop_feed(s, find_feed(s, jobs[i]), sits_out ? GPT2C_OK : status);
    }
}

/* Makes the jobs that were not tried yet the only candidates; returns whether there are any. */
static int leave_out_tried_jobs(step_space *s) {
    int32_t n = 0;
    for (int32_t j = 0; j < s->n_candidates; j++) {
        gpt2c_job *job = s->jobs[j];
        if (job->member.lacks_room || job->status != GPT2C_OK)
            continue;
        s->jobs[j] = s->jobs[n];
        s->jobs[n++] = job;
    }
    int is_smaller = n < s->n_candidates;
    s->n_candidates = n;
    return n > 0 && is_smaller;
}

/* Jobs without room must not keep the rows from those that have some: a job that sits out because
 * others use all rows may hold the pages that these others wait for. */
void plan_feeds_with_room(step_space *s) {
    s->n_candidates = s->n_jobs;
    plan_feeds(s);
    reserve_feeds(s, 1);
    while (s->n_feeds == 0 && leave_out_tried_jobs(s)) {
        plan_feeds(s);
        reserve_feeds(s, 0);
    }
}

/* Returns how long a job may find the cache full: 0 if its tokens alone exceed the limit. */
static double max_full_seconds(const gpt2c_batch *b, const gpt2c_job *job) {
    int32_t length = job->n_before + job->n_prompt + job->n_tokens;
    int32_t n_pages = (length + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
    if (n_pages > (int32_t)(gpt2c_model_cache_limit(b->model) / gpt2c_model_page_bytes(b->model)))
        return 0;
    int jobs_may_give = b->n_resting > 0 || b->n_ready > b->space->n_jobs;
    return jobs_may_give ? FULL_SECONDS : SHORT_FULL_SECONDS;
}

static void forget_waiting(gpt2c_membership *m) { m->blocked_since = m->oldest_since = 0; }

/* The oldest job that lacks room gives up when the max time has passed since it was first the
 * oldest, although older jobs may have joined for a step meanwhile. It also gives up if no job was
 * fed for that time: otherwise, if nobody gives pages back, the jobs would fail one after another,
 * each after the max time. */
static void report_full(gpt2c_batch *b, gpt2c_job *job, double now) {
    gpt2c_membership *m = &job->member;
    if (m->oldest_since == 0) {
        m->oldest_since = now;
        m->asked_at = 0;
    }
    double stuck_since = m->blocked_since > b->last_fed ? m->blocked_since : b->last_fed;
    double since = stuck_since < m->oldest_since ? stuck_since : m->oldest_since;
    m->has_given_up = now - since >= max_full_seconds(b, job);
    if (m->has_given_up)
        forget_waiting(m);
    if (m->has_given_up || now - m->asked_at >= ASK_SECONDS)
        m->asked_at = now; /* rest_jobs brings it to rest with its status */
    else
        job->status = GPT2C_OK;
}

void handle_full_cache(gpt2c_batch *b, double now) {
    for (int32_t f = 0; f < b->space->n_feeds; f++)
        forget_waiting(&b->space->jobs[f]->member);
    if (b->space->n_feeds)
        b->last_fed = now;
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_membership *m = &b->ready[i]->member;
        if (m->lacks_room && m->blocked_since == 0)
            m->blocked_since = now;
        m->lacks_room = 0;
        if (b->ready[i]->status == GPT2C_CACHE_FULL)
            report_full(b, b->ready[i], now);
    }
    if (b->space->n_feeds == 0)
        sleep_unlocked(b, &b->n_returns, now + FULL_SLEEP_SECONDS);
}
