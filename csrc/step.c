/* A step makes one forward call for its jobs, and then chooses their next tokens. The call feeds
 * tokens that were chosen last, with their drafts (decode), and chunks of prompts (prefill).
 *
 * A job's progress is read from its sequence alone: the tokens beyond the sequence's length are
 * still to be fed. A job whose pages were taken away thus starts again with its prompt and feeds
 * its new tokens like a prompt; by the arithmetic's definition, all bits stay the same. */
#include "step.h"

#include "cache.h"
#include "model/model.h"
#include "os/os.h"
#include "pass/scratch.h"
#include "pool.h"
#include "sample/sample.h"

#include <string.h>

static int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }

/* How many of the job's tokens were fed, and how many were not. */
static int32_t n_fed(const gpt2c_job *job) {
    return gpt2c_sequence_length(job->sequence) - job->n_before;
}

static int32_t n_unfed(const gpt2c_job *job) { return job->n_prompt + job->n_tokens - n_fed(job); }

int is_decoding(const gpt2c_job *job) { return !job->is_feed && n_unfed(job) == 1; }

/* ---- what the step feeds ---- */

/* Moves the decoding jobs before the others, in stable order. */
static void decoding_first(step_space *s) {
    gpt2c_job *others[GPT2C_MAX_ROWS];
    int32_t n_others = 0;
    s->n_decoding = 0;
    for (int32_t j = 0; j < s->n_jobs; j++)
        if (is_decoding(s->jobs[j]))
            s->jobs[s->n_decoding++] = s->jobs[j];
        else
            others[n_others++] = s->jobs[j];
    memcpy(s->jobs + s->n_decoding, others, (size_t)n_others * sizeof *others);
}

/* Sorts jobs [begin, n_jobs) by the tokens that are left to feed: short prompts get their first
 * token soon, however many long ones wait. */
static void shortest_first(step_space *s, int32_t begin) {
    for (int32_t i = begin + 1; i < s->n_jobs; i++) {
        gpt2c_job *job = s->jobs[i];
        int32_t j = i;
        for (; j > begin && n_unfed(s->jobs[j - 1]) > n_unfed(job); j--)
            s->jobs[j] = s->jobs[j - 1];
        s->jobs[j] = job;
    }
}

/* Returns the tokens of a job from its first unfed one: up to n of them that lie together. */
static gpt2c_feed feed_of(const gpt2c_job *job, int32_t n) {
    int32_t at = n_fed(job), rest = n_unfed(job);
    const int32_t *tokens = job->prompt + at;
    if (at >= job->n_prompt)
        tokens = job->tokens + (at - job->n_prompt);
    else
        n = min_of(n, job->n_prompt - at);
    gpt2c_wanted wanted = n == rest ? GPT2C_LOGITS_LAST : GPT2C_LOGITS_NONE;
    if (job->is_feed && job->wanted != GPT2C_LOGITS_LAST)
        wanted = job->wanted;
    return (gpt2c_feed){job->sequence, tokens, n, wanted};
}

/* Plans the feed of the next prompt, of up to `max` tokens. Returns the number of tokens. */
static int32_t plan_prompt(step_space *s, int32_t j, int32_t max) {
    gpt2c_job *job = s->jobs[j];
    if (s->n_jobs > 1 && job->is_feed && job->wanted == GPT2C_LOGITS_ALL)
        max = min_of(max, MAX_DRAFT_ROWS); /* which bounds the memory of the logits */
    s->jobs[j] = s->jobs[s->n_feeds];
    s->jobs[s->n_feeds] = job;
    s->feeds[s->n_feeds] = feed_of(job, min_of(n_unfed(job), max));
    return s->feeds[s->n_feeds++].n_tokens;
}

/* Divides `room` rows among the prompts. The prompts of one call are fed in order. Among several
 * callers' prompts, half of the rows are kept for the oldest, and the others come shortest
 * first. */
static void plan_prompts(step_space *s, int32_t room) {
    int32_t oldest = s->n_decoding;
    if (s->is_shared && oldest < s->n_jobs) {
        int32_t kept = min_of(n_unfed(s->jobs[oldest]), (room + 1) / 2);
        gpt2c_job *first = s->jobs[oldest];
        shortest_first(s, oldest + 1);
        memmove(s->jobs + oldest, s->jobs + oldest + 1,
                (size_t)(s->n_jobs - oldest - 1) * sizeof *s->jobs);
        s->jobs[s->n_jobs - 1] = first;
        while (s->n_feeds + 1 < s->n_jobs && room > kept)
            room -= plan_prompt(s, s->n_feeds, room - kept);
        if (room > 0)
            plan_prompt(s, s->n_jobs - 1, room);
        return;
    }
    while (s->n_feeds < s->n_jobs && room > 0)
        room -= plan_prompt(s, s->n_feeds, room);
}

/* Plans the feeds: the decoding jobs with their drafts, and then prompts. */
static void plan_feeds(step_space *s) {
    int32_t n_rows = 0;
    for (s->n_feeds = 0; s->n_feeds < s->n_decoding; s->n_feeds++) {
        gpt2c_feed feed = feed_of(s->jobs[s->n_feeds], 1);
        feed.n_tokens += s->job_drafts[s->n_feeds].n;
        feed.wanted = GPT2C_LOGITS_ALL;
        s->feeds[s->n_feeds] = feed;
        n_rows += feed.n_tokens;
    }
    int32_t room = GPT2C_MAX_ROWS - n_rows;
    if (s->is_shared && s->n_decoding)
        room = min_of(room, PROMPT_ROWS_BESIDE);
    plan_prompts(s, room);
}

static int32_t rows_wanted(const gpt2c_feed *feed) {
    return feed->wanted == GPT2C_LOGITS_ALL ? feed->n_tokens : feed->wanted != GPT2C_LOGITS_NONE;
}

static int32_t count_logits(const step_space *s) {
    int32_t n = 0;
    for (int32_t f = 0; f < s->n_feeds; f++)
        n += rows_wanted(&s->feeds[f]);
    return n;
}

/* ---- drafts ---- */

/* Makes the drafts of the decoding jobs that share the drafter of job `first`. */
static void draft_with(step_space *s, int32_t first, int32_t max) {
    gpt2c_job *jobs[MAX_DRAFTING_JOBS];
    draft made[MAX_DRAFTING_JOBS];
    int32_t index[MAX_DRAFTING_JOBS], n = 0;
    for (int32_t j = first; j < s->n_decoding; j++)
        if (s->jobs[j]->drafter == s->jobs[first]->drafter && s->jobs[j]->n_tokens > 0) {
            index[n] = j;
            jobs[n++] = s->jobs[j];
        }
    memset(made, 0, sizeof made);
    if (n == 0 || draft_tokens(jobs[0]->drafter, jobs, n, s->n_decoding, max, made))
        return; /* without memory for drafts the jobs go on without them */
    for (int32_t i = 0; i < n; i++)
        s->job_drafts[index[i]] = made[i];
}

/* Whether job j has a drafter that no job before it has. */
static int is_first_with_drafter(const step_space *s, int32_t j) {
    for (int32_t i = 0; i < j; i++)
        if (s->jobs[i]->drafter == s->jobs[j]->drafter)
            return 0;
    return s->jobs[j]->drafter != NULL;
}

/* Makes drafts for the decoding jobs that have a drafter, unless too many jobs decode. */
static void make_drafts(step_space *s) {
    int32_t n_drafting = 0;
    memset(s->job_drafts, 0, (size_t)s->n_decoding * sizeof *s->job_drafts);
    if (s->n_decoding > MAX_DRAFTING_JOBS)
        return;
    for (int32_t j = 0; j < s->n_decoding; j++)
        n_drafting += s->jobs[j]->drafter != NULL && s->jobs[j]->n_tokens > 0;
    if (!n_drafting)
        return;
    int32_t max = (MAX_DRAFT_ROWS - s->n_decoding) / n_drafting;
    for (int32_t j = 0; j < s->n_decoding; j++) {
        if (is_first_with_drafter(s, j))
            draft_with(s, j, max);
    }
}

/* Records what the step cost and how many drafts were accepted. A pass that also fed prompts says
 * nothing about the cost of decoding. */
static void record_drafts(const step_space *s, double seconds) {
    int is_decode_only = s->n_feeds == s->n_decoding && s->n_decoding <= MAX_DRAFTING_JOBS;
    int32_t n_drafts = 0;
    for (int32_t j = 0; j < s->n_decoding; j++)
        n_drafts += s->job_drafts[j].n;
    for (int32_t j = 0; j < s->n_decoding; j++) {
        gpt2c_drafter *drafter = s->jobs[j]->drafter;
        if (!drafter)
            continue;
        draft_record_job(drafter, &s->job_drafts[j]);
        if (is_decode_only && is_first_with_drafter(s, j))
            draft_record_pass(drafter, s->n_decoding, n_drafts, seconds);
    }
}

/* ---- the choice of tokens ---- */

/* Chooses a job's next tokens: one, and another for each accepted draft. Rolls back the positions
 * of rejected drafts. */
static void choose_for_job(step_space *s, int32_t f, candidates *c) {
    gpt2c_job *job = s->jobs[f];
    const float *logits = s->logits + s->first_row[f] * (size_t)s->model->config.n_vocab;
    int32_t n = f < s->n_decoding ? s->job_drafts[f].n : 0, n_accepted = 0;
    for (;; n_accepted++, logits += s->model->config.n_vocab) {
        int32_t drafted = n_accepted < n ? job->tokens[job->n_tokens] : -1;
        advance_job(s->model, c, job, logits, logits);
        if (job->finish != GPT2C_RUNNING || job->tokens[job->n_tokens - 1] != drafted)
            break;
    }
    if (n == 0)
        return;
    gpt2c_sequence_truncate(job->sequence, gpt2c_sequence_length(job->sequence) - n + n_accepted);
    job->n_drafted += n;
    job->n_accepted += n_accepted;
    s->job_drafts[f].n_accepted = n_accepted;
    draft_roll_back(job);
}

/* Each worker chooses the tokens of its share of the jobs. */
static void choose_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    step_space *s = context;
    for (int32_t i = worker; i < s->n_choosing; i += n_workers) {
        int32_t f = s->choosing[i];
        candidates *c =
            is_greedy(s->jobs[f]) ? NULL : gpt2c_scratch_candidates(s->scratch, s->model, worker);
        choose_for_job(s, f, c);
    }
}

/* Greedy argmax is cheaper than waking the workers. */
static void choose_tokens(step_space *s) {
    int32_t n_costly = 0;
    for (int32_t i = 0; i < s->n_choosing; i++) {
        const gpt2c_job *job = s->jobs[s->choosing[i]];
        n_costly += !is_greedy(job) || job->scores.scores;
    }
    if (n_costly > 1)
        pool_run(choose_share, s, s->model->n_threads);
    else
        choose_share(s, NULL, 0, 1);
}

/* Writes the logits that a job which only feeds wants; `begin` is where its chunk began. */
static void take_logits(const step_space *s, int32_t f, int32_t begin, size_t row) {
    const gpt2c_job *job = s->jobs[f];
    size_t n_vocab = (size_t)s->model->config.n_vocab, n = (size_t)rows_wanted(&s->feeds[f]);
    size_t at = job->wanted == GPT2C_LOGITS_ALL ? (size_t)begin : 0;
    if (n && s->logits + row * n_vocab != job->logits_out + at * n_vocab)
        memcpy(job->logits_out + at * n_vocab, s->logits + row * n_vocab,
               n * n_vocab * sizeof(float));
}

/* After the pass: notes where each job's logits are, and which jobs get a token. */
static void distribute_logits(step_space *s) {
    size_t row = 0;
    s->n_choosing = 0;
    for (int32_t f = 0; f < s->n_feeds; f++) {
        gpt2c_job *job = s->jobs[f];
        int32_t n = rows_wanted(&s->feeds[f]);
        s->first_row[f] = row;
        if (job->is_feed) {
            take_logits(s, f, n_fed(job) - s->feeds[f].n_tokens, row);
            if (n_unfed(job) == 0)
                job->finish = GPT2C_FINISHED_FED;
        } else if (n) {
            job->n_passes++;
            s->choosing[s->n_choosing++] = f;
        }
        row += (size_t)n;
    }
}

/* ---- the step ---- */

/* Allocates the workers' candidates if a job needs them. Returns 0 if out of memory. */
static int alloc_candidates(const step_space *s) {
    int n_sampling = 0;
    for (int32_t f = 0; f < s->n_feeds; f++)
        n_sampling += !s->jobs[f]->is_feed && !is_greedy(s->jobs[f]);
    int n_workers = n_sampling ? min_of(s->model->n_threads, s->n_feeds) : 0;
    for (int w = 0; w < n_workers; w++)
        if (!gpt2c_scratch_candidates(s->scratch, s->model, w))
            return 0;
    return 1;
}

/* ---- memory of the KV cache ----
 *
 * A job's pages for its whole prompt are reserved with its first chunk, and a page for its new
 * tokens every 64 of them. A job that finds the cache full takes the pages of the youngest job
 * that arrived after it. Without a younger job it sits out until pages are free. The oldest job
 * thus always makes progress, and a job that lost its pages feeds its tokens again once they
 * fit. */

/* Drops feed f from the step. The job's status says why; with GPT2C_OK the job sits out. */
static void drop_feed(step_space *s, int32_t f, gpt2c_status status) {
    gpt2c_job *job = s->jobs[f];
    job->status = status;
    /* Gives back the reserved pages. */
    gpt2c_sequence_truncate(job->sequence, gpt2c_sequence_length(job->sequence));
    for (int32_t i = f; i + 1 < s->n_feeds; i++) {
        s->jobs[i] = s->jobs[i + 1];
        s->feeds[i] = s->feeds[i + 1];
        if (i + 1 < s->n_decoding)
            s->job_drafts[i] = s->job_drafts[i + 1];
    }
    s->n_feeds--;
    s->jobs[s->n_feeds] = job;
    s->n_decoding -= f < s->n_decoding;
}

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

/* Reserves the pages of all feeds, the oldest job's first. */
static void reserve_feeds(step_space *s) {
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

static void fail_feeds(step_space *s, gpt2c_status status) {
    while (s->n_feeds)
        drop_feed(s, s->n_feeds - 1, status);
}

/* Runs the pass. A job that only feeds, and is alone, gets its logits without a copy. */
static gpt2c_status run_forward(step_space *s) {
    gpt2c_job *only = s->n_feeds == 1 && s->jobs[0]->is_feed ? s->jobs[0] : NULL;
    int32_t n_logits = count_logits(s);
    s->logits = NULL;
    if (only && only->wanted == GPT2C_LOGITS_ALL)
        s->logits = only->logits_out + (size_t)n_fed(only) * (size_t)s->model->config.n_vocab;
    else if (only)
        s->logits = only->logits_out;
    else if (n_logits && !(s->logits = gpt2c_scratch_logits(s->scratch, s->model, n_logits)))
        return GPT2C_NO_MEMORY;
    return gpt2c_forward(s->model, s->scratch, s->feeds, s->n_feeds, s->logits);
}

void run_step(step_space *s) {
    decoding_first(s);
    make_drafts(s);
    double begin = os_seconds();
    plan_feeds(s);
    reserve_feeds(s);
    if (s->n_feeds == 0)
        return;
    gpt2c_status status = alloc_candidates(s) ? run_forward(s) : GPT2C_NO_MEMORY;
    if (status) {
        fail_feeds(s, status);
        return;
    }
    distribute_logits(s);
    choose_tokens(s);
    record_drafts(s, os_seconds() - begin);
}
