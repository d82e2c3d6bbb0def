/* Speculative decoding: drafting a job's next tokens, so that one forward call verifies several.
 * draft.c describes the algorithm. */
#ifndef GPT2C_DRAFT_H
#define GPT2C_DRAFT_H

#include "draft/lookup.h"
#include "gpt2c.h"

/* The max number of tokens that are drafted for a job at a time. */
#define MAX_DRAFTS 24
/* The max number of rows of logits in a pass that verifies drafts: 13 MB with GPT-2's
 * vocabulary. */
#define MAX_DRAFT_ROWS 64
/* With up to this many jobs, each has a row for its own token and at least one for a draft. */
#define MAX_DRAFTING_JOBS (MAX_DRAFT_ROWS / 2)

/* Where drafts come from. */
typedef enum { NO_DRAFT = 0, DRAFT_BY_LOOKUP, DRAFT_BY_MODEL } draft_source;

/* The drafts of one job: n tokens, stored at job->tokens[job->n_tokens ..]. */
typedef struct {
    draft_source source;
    int32_t n;
    lookup_match match;
    int32_t n_accepted; /* set when the drafts are verified */
    /* For DRAFT_BY_MODEL only: */
    uint8_t margin_ranges[MAX_DRAFTS]; /* of each draft: see drafter.h */
    double p_all_accepted;             /* the probability that all drafts so far are accepted */
    double min_probability;            /* a less likely next draft is not made; 0: no limit */
} draft;

/* Drafts up to `max` tokens for each of n_jobs jobs. The pass decodes these and other jobs,
 * n_decoding in total, at most MAX_DRAFTING_JOBS. Each job must have a new token and a `lookup`. */
gpt2c_status draft_tokens(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                          int32_t n_decoding, int32_t max, draft *job_drafts);

/* Removes rejected drafts from a job's draft sequence. */
void draft_roll_back(const gpt2c_job *job);

/* Records the seconds that a pass took to verify n_drafts drafts in total and to choose tokens. */
void draft_record_pass(gpt2c_drafter *d, int32_t n_jobs, int32_t n_drafts, double seconds);
/* Records how many drafts of a job were accepted. */
void draft_record_job(gpt2c_drafter *d, const draft *drafted);

#endif
