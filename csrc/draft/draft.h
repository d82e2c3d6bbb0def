/* Guessing a text's next tokens, so that one forward call can verify several: whether that pays, how
 * many, and from where. What is drafted never shows in the text (Leviathan et al. 2023; here a token is
 * accepted where it is the very one that the model itself chooses). */
#ifndef GPT2C_DRAFT_H
#define GPT2C_DRAFT_H

#include "draft/lookup.h"
#include "gpt2c.h"

/* Most tokens that are drafted at a time, and most jobs that are drafted for at once. */
#define MAX_DRAFTS 24
#define MAX_DRAFTING_JOBS 32

/* Where guesses come from. */
typedef enum { NO_DRAFT = 0, DRAFT_BY_LOOKUP, DRAFT_BY_MODEL } draft_source;

/* What is drafted for one job: `n` tokens, at job->tokens[job->n_tokens ..]. */
typedef struct {
    draft_source source;
    int32_t n;
    lookup_match match;
    int32_t n_accepted; /* of them, once they are verified */
    /* Of a model's guesses: how sure each was (draft.c); that all so far are right; and the least chance of
     * the next one, with them, at which it is worth its time. 0: any. */
    uint8_t margins[MAX_DRAFTS];
    double all_accepted, min_probability;
} draft;

/* At most `max` guesses each for jobs that all have a token to feed and a `lookup`; at most
 * MAX_DRAFTING_JOBS. */
gpt2c_status draft_tokens(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs, int32_t max,
                          draft *drafts);

/* Takes back what a draft sequence has of guesses that were wrong. */
void draft_roll_back(const gpt2c_job *job);

/* What came of it: the seconds that verifying and choosing took, and how many guesses were right. */
void draft_record_pass(gpt2c_drafter *d, int32_t n_jobs, int32_t n_drafts, double seconds);
void draft_record_job(gpt2c_drafter *d, const draft *drafted);

#endif
