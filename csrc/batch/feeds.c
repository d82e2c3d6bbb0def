/* What a step feeds.
 *
 * Only the length of a job's sequence tells how far the job is: the tokens after this length are
 * not fed yet. So a job that lost its pages begins again with its prompt, and then feeds its new
 * tokens like a prompt. This changes no bit, because logits do not depend on how tokens are
 * divided into passes. */
#include "batch/step.h"

#include "cache.h"
#include "min.h"

#include <string.h>

int32_t n_fed(const gpt2c_job *job) { return gpt2c_sequence_length(job->sequence) - job->n_before; }

int32_t n_unfed(const gpt2c_job *job) { return job->n_prompt + job->n_tokens - n_fed(job); }

int is_decoding(const gpt2c_job *job) { return !job->is_feed && n_unfed(job) == 1; }

void decoding_first(step_space *s) {
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

/* Insertion sort, because the jobs are few and often sorted already. */
void sort_jobs(gpt2c_job **jobs, int32_t n_jobs, uint64_t (*key_of)(const gpt2c_job *)) {
    uint64_t keys[GPT2C_MAX_ROWS];
    for (int32_t i = 0; i < n_jobs; i++) {
        gpt2c_job *job = jobs[i];
        uint64_t key = key_of(job);
        int32_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) {
            jobs[j] = jobs[j - 1];
            keys[j] = keys[j - 1];
        }
        jobs[j] = job;
        keys[j] = key;
    }
}

/* Returns a feed of up to n tokens of a job, from its first unfed one. The tokens of the prompt and
 * the new tokens are in different arrays, so a feed has only one kind. */
static gpt2c_feed make_feed(const gpt2c_job *job, int32_t n) {
    int32_t at = n_fed(job), n_left = n_unfed(job);
    const int32_t *tokens = job->prompt + at;
    if (at >= job->n_prompt)
        tokens = job->tokens + (at - job->n_prompt);
    else
        n = min_int32(n, job->n_prompt - at);
    gpt2c_wanted wanted = n == n_left ? GPT2C_LOGITS_LAST : GPT2C_LOGITS_NONE;
    if (job->is_feed && job->wanted != GPT2C_LOGITS_LAST)
        wanted = job->wanted;
    return (gpt2c_feed){job->sequence, tokens, n, wanted};
}

/* Plans the next feed: up to `max` tokens of job j. The job is swapped to the feed's index, because
 * feed f always belongs to job f. Returns the number of tokens. */
static int32_t plan_prompt(step_space *s, int32_t j, int32_t max) {
    gpt2c_job *job = s->jobs[j];
    if (s->n_jobs > 1 && job->is_feed && job->wanted == GPT2C_LOGITS_ALL)
        max = min_int32(max, MAX_DRAFT_ROWS); /* limits the memory of the logits */
    s->jobs[j] = s->jobs[s->n_feeds];
    s->jobs[s->n_feeds] = job;
    s->feeds[s->n_feeds] = make_feed(job, min_int32(n_unfed(job), max));
    return s->feeds[s->n_feeds++].n_tokens;
}

/* Divides n_rows rows among the prompts of one call, in their order. */
static void plan_prompts(step_space *s, int32_t n_rows) {
    while (s->n_feeds < s->n_candidates && n_rows > 0)
        n_rows -= plan_prompt(s, s->n_feeds, n_rows);
}

static uint64_t unfed_of(const gpt2c_job *job) { return (uint64_t)n_unfed(job); }

/* Divides n_rows rows among the prompts of several callers. Up to half of the rows are kept for the
 * oldest prompt. The other prompts are fed shortest first, so that a short prompt gets its first
 * token soon, even if many long prompts wait. */
static void plan_shared_prompts(step_space *s, int32_t n_rows) {
    gpt2c_job **prompts = s->jobs + s->n_decoding, *oldest = prompts[0];
    int32_t n_others = s->n_candidates - s->n_decoding - 1;
    int32_t n_kept = min_int32(n_unfed(oldest), (n_rows + 1) / 2);
    memmove(prompts, prompts + 1, (size_t)n_others * sizeof *prompts);
    prompts[n_others] = oldest;
    sort_jobs(prompts, n_others, unfed_of);
    while (s->n_feeds + 1 < s->n_candidates && n_rows > n_kept)
        n_rows -= plan_prompt(s, s->n_feeds, n_rows - n_kept);
    if (n_rows > 0)
        plan_prompt(s, s->n_candidates - 1, n_rows);
}

/* Whether one step that also decodes can feed all tokens of the job. */
static int is_short(const gpt2c_job *job) {
    return job->n_prompt + job->n_tokens <= MAX_PROMPT_ROWS_BESIDE_DECODING;
}

/* Returns the max number of prompt rows in a step that also decodes. A long prompt slows many steps
 * in a row. So if few prompts delay many decoding jobs, all long prompts together get only half as
 * many rows as jobs decode, but at least MIN_PROMPT_ROWS_BESIDE_DECODING. With half as many prompt
 * rows as decoding jobs, a step takes about 1.5 times as long as without prompts. */
static int32_t max_prompt_rows(const step_space *s) {
    int32_t n_prompts = s->n_candidates - s->n_decoding, n_long = 0, n_short_rows = 0;
    for (int32_t j = s->n_decoding; j < s->n_candidates; j++)
        if (is_short(s->jobs[j]))
            n_short_rows += n_unfed(s->jobs[j]);
        else
            n_long++;
    if (n_long == 0 || 2 * n_prompts >= s->n_decoding)
        return MAX_PROMPT_ROWS_BESIDE_DECODING;
    int32_t n_long_rows = s->n_decoding / 2;
    if (n_long_rows < MIN_PROMPT_ROWS_BESIDE_DECODING)
        n_long_rows = MIN_PROMPT_ROWS_BESIDE_DECODING;
    return min_int32(n_short_rows + n_long_rows, MAX_PROMPT_ROWS_BESIDE_DECODING);
}

void plan_feeds(step_space *s) {
    int32_t n_rows = 0;
    for (s->n_feeds = 0; s->n_feeds < s->n_decoding; s->n_feeds++) {
        gpt2c_feed feed = make_feed(s->jobs[s->n_feeds], 1);
        feed.n_tokens += s->job_drafts[s->n_feeds].n;
        feed.wanted = GPT2C_LOGITS_ALL;
        s->feeds[s->n_feeds] = feed;
        n_rows += feed.n_tokens;
    }
    int32_t n_left = GPT2C_MAX_ROWS - n_rows;
    if (s->is_shared && s->n_decoding)
        n_left = min_int32(n_left, max_prompt_rows(s));
    if (s->is_shared && s->n_decoding < s->n_candidates)
        plan_shared_prompts(s, n_left);
    else
        plan_prompts(s, n_left);
}

void drop_feed(step_space *s, int32_t f, gpt2c_status status) {
    gpt2c_job *job = s->jobs[f];
    job->status = status;
    /* Gives back pages that were reserved for the feed. */
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
