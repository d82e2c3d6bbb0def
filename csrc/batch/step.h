/* One step of the running batch: a forward call for several jobs, and the choice of their
 * tokens. */
#ifndef GPT2C_STEP_H
#define GPT2C_STEP_H

#include "draft/draft.h"
#include "gpt2c.h"

/* The most prompt tokens that a step feeds if it also decodes for another caller. Measured: see
 * docs/scheduler.md. */
#define PROMPT_ROWS_BESIDE 64

/* The memory of a step. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    gpt2c_job *jobs[GPT2C_MAX_ROWS]; /* as they were resumed; the step reorders them */
    int32_t n_jobs;
    int is_shared;                    /* the jobs belong to several callers or tasks */
    gpt2c_feed feeds[GPT2C_MAX_ROWS]; /* of the first n_feeds jobs */
    int32_t n_feeds;
    int32_t n_decoding;               /* the first n_decoding jobs decode */
    draft job_drafts[GPT2C_MAX_ROWS]; /* of the decoding jobs */
    size_t first_row[GPT2C_MAX_ROWS]; /* each job's first row of the logits */
    int32_t choosing[GPT2C_MAX_ROWS]; /* indices of the jobs that get a token */
    int32_t n_choosing;
    float *logits; /* owned by the scratch */
} step_space;

/* ---- feeds.c ---- */

/* Whether the next token to feed is the job's last one, so that its logits choose a token. */
int is_decoding(const gpt2c_job *job);

/* How many of the job's tokens were fed, and how many were not. */
int32_t n_fed(const gpt2c_job *job);
int32_t n_unfed(const gpt2c_job *job);
/* Moves the decoding jobs before the others, in stable order. */
void decoding_first(step_space *s);
/* Plans the feeds: the decoding jobs with their drafts, and then prompts. */
void plan_feeds(step_space *s);
int32_t rows_wanted(const gpt2c_feed *feed);
/* Drops feed f from the step. The job's status says why; with GPT2C_OK the job sits out. */
void drop_feed(step_space *s, int32_t f, gpt2c_status status);

/* ---- room.c ---- */

/* Reserves the pages of all feeds, the oldest job's first. */
void reserve_feeds(step_space *s);

/* ---- step.c ---- */

/* Runs a step. A job for which it fails gets a status, and is left as it was before
 * the step. */
void run_step(step_space *s);

#endif
