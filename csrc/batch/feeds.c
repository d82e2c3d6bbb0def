/* What a step feeds.
 *
 * A job's progress is read from its sequence alone: the tokens beyond the sequence's length are
 * still to be fed. A job whose pages were taken away thus starts again with its prompt and feeds
 * its new tokens like a prompt; by the arithmetic's definition, all bits stay the same. */
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
        n = min_int32(n, job->n_prompt - at);
    gpt2c_wanted wanted = n == rest ? GPT2C_LOGITS_LAST : GPT2C_LOGITS_NONE;
    if (job->is_feed && job->wanted != GPT2C_LOGITS_LAST)
        wanted = job->wanted;
    return (gpt2c_feed){job->sequence, tokens, n, wanted};
}

/* Plans the feed of the next prompt, of up to `max` tokens. Returns the number of tokens. */
static int32_t plan_prompt(step_space *s, int32_t j, int32_t max) {
    gpt2c_job *job = s->jobs[j];
    if (s->n_jobs > 1 && job->is_feed && job->wanted == GPT2C_LOGITS_ALL)
        max = min_int32(max, MAX_DRAFT_ROWS); /* which bounds the memory of the logits */
    s->jobs[j] = s->jobs[s->n_feeds];
    s->jobs[s->n_feeds] = job;
    s->feeds[s->n_feeds] = feed_of(job, min_int32(n_unfed(job), max));
    return s->feeds[s->n_feeds++].n_tokens;
}

/* Divides `room` rows among the prompts. The prompts of one call are fed in order. Among several
 * callers' prompts, half of the rows are kept for the oldest, and the others come shortest
 * first. */
static void plan_prompts(step_space *s, int32_t room) {
    int32_t oldest = s->n_decoding;
    if (s->is_shared && oldest < s->n_jobs) {
        int32_t kept = min_int32(n_unfed(s->jobs[oldest]), (room + 1) / 2);
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

void plan_feeds(step_space *s) {
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
        room = min_int32(room, PROMPT_ROWS_BESIDE);
    plan_prompts(s, room);
}

int32_t rows_wanted(const gpt2c_feed *feed) {
    return feed->wanted == GPT2C_LOGITS_ALL ? feed->n_tokens : feed->wanted != GPT2C_LOGITS_NONE;
}

void drop_feed(step_space *s, int32_t f, gpt2c_status status) {
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
