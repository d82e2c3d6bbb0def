/* What the files of draft/ share: the drafter, and the steps of making drafts. */
#ifndef GPT2C_DRAFTER_H
#define GPT2C_DRAFTER_H

#include "draft/draft.h"

/* How often guesses of one kind are right: of those that were decided, since one that follows a wrong
 * one is not. */
typedef struct {
    double accepted, verified;
    double prior;           /* what is believed before any was */
    int32_t n_waited, wait; /* passes without a guess, and after how many one is made to see */
} acceptance;

#define N_MARGINS 9

/* Seconds: of a pass that verifies nothing, of each further row, of one token of the draft model. For
 * passes of so many jobs. */
typedef struct {
    double plain, row, step;
    int32_t n_plain;
} pass_costs;

/* Matches of 3, of 4 to 7, and of more tokens. */
#define N_MATCH_LENGTHS 3

struct gpt2c_drafter {
    const gpt2c_model *model; /* that guesses, or NULL */
    gpt2c_scratch *scratch;   /* the model's */
    int32_t fixed;            /* guess always so many, from the model where there is one */
    int32_t sources;
    acceptance by_lookup[N_MATCH_LENGTHS], by_model, by_margin[N_MARGINS];
    pass_costs costs[MAX_DRAFTING_JOBS + 1];
    gpt2c_job shadow_jobs[MAX_DRAFTING_JOBS]; /* the jobs, as if what is drafted were theirs */
    gpt2c_feed feeds[MAX_DRAFTING_JOBS];
};

static inline int32_t min_int32(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- estimates.c ---- */

void estimates_reset(gpt2c_drafter *d);
void estimates_reset_model(gpt2c_drafter *d);
double acceptance_rate(const acceptance *e);
acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match);
double cost_smoothed(double old, double new);
double cost_of_row(const pass_costs *c, int32_t n_jobs);
int margin_range(float margin);

/* ---- decide.c ---- */

int32_t max_drafts_for(const gpt2c_drafter *d, const gpt2c_job *job);
draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max);

/* ---- propose.c ---- */

void copy_continuation(gpt2c_job *job, const draft *drafted);
gpt2c_status draft_by_model(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                            draft *drafts);

#endif
