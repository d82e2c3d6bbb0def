/* One step of the running batch: a forward call for several jobs, and the choice of their
 * tokens. */
#ifndef GPT2C_STEP_H
#define GPT2C_STEP_H

#include "draft/draft.h"
#include "gpt2c.h"

/* Limits of the number of prompt tokens in a step that also decodes, if several callers share the
 * step. docs/scheduler.md explains them. */
#define MAX_PROMPT_ROWS_BESIDE_DECODING 64
#define MIN_PROMPT_ROWS_BESIDE_DECODING 16

/* The memory of a step. The first n_decoding jobs decode, and the first n_feeds jobs are fed. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    gpt2c_job *jobs[GPT2C_MAX_ROWS]; /* at first as they were resumed; sorted by the step */
    int32_t n_jobs;
    int32_t n_candidates; /* only the first n_candidates jobs may be fed */
    int is_shared;        /* the jobs belong to several callers or tasks */
    int32_t n_decoding;
    gpt2c_feed feeds[GPT2C_MAX_ROWS]; /* [n_feeds] */
    int32_t n_feeds;
    draft job_drafts[GPT2C_MAX_ROWS]; /* of the decoding jobs */
    size_t first_row[GPT2C_MAX_ROWS]; /* each job's first row of the logits */
    int32_t choosing[GPT2C_MAX_ROWS]; /* indices of the jobs that get a token */
    int32_t n_choosing;
    float *logits; /* of the scratch or, for a job that only feeds, of its caller */
} step_space;

/* ---- feeds.c ---- */

/* The number of the job's tokens (of prompt and new ones) that were fed, and that were not. */
int32_t n_fed(const gpt2c_job *job);
int32_t n_unfed(const gpt2c_job *job);
/* Whether only the job's last token is left to feed; its logits choose the next token. */
int is_decoding(const gpt2c_job *job);
/* Sorts up to GPT2C_MAX_ROWS jobs by key_of, in stable order. */
void sort_jobs(gpt2c_job **jobs, int32_t n_jobs, uint64_t (*key_of)(const gpt2c_job *));
/* Moves the decoding jobs before the others, in stable order. */
void decoding_first(step_space *s);
/* Plans the candidates' feeds: the decoding jobs with their drafts, and then prompts. */
void plan_feeds(step_space *s);
/* Drops feed f from the step and sets its job's status. GPT2C_OK means that the job sits out this
 * step. */
void drop_feed(step_space *s, int32_t f, gpt2c_status status);

/* ---- room.c ---- */

/* Plans feeds that have room, and reserves their pages. */
void plan_feeds_with_room(step_space *s);

/* ---- step.c ---- */

/* Runs a step. A job for which it fails gets a status, and is otherwise as it was before. */
void run_step(step_space *s);

#endif
