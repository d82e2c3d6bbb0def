/* What the files of draft/ share: the drafter, and the steps of making drafts. */
#ifndef GPT2C_DRAFTER_H
#define GPT2C_DRAFTER_H

#include "draft/draft.h"

/* How often one kind of draft is accepted. A draft after a rejected one is never verified, and does
 * not count. */
typedef struct {
    double accepted, verified;
    double prior;           /* the rate assumed before any draft was verified */
    int32_t n_waited, wait; /* passes without drafts; after `wait` of them a trial is made */
} acceptance;

/* The margin of a draft is its lead over the second best token, in logits with their noise. It
 * shows how sure the model is. Margins are sorted into ranges by their upper ends (estimates.c);
 * the last range but one has no end, and the last is for unknown margins. */
#define N_MARGIN_ENDS 7
#define N_MARGINS (N_MARGIN_ENDS + 2)
#define UNKNOWN_MARGIN (N_MARGINS - 1)

/* Measured seconds for one number of jobs: of a pass without drafts, of each further row, and of a
 * step, in which the draft model drafts one token for every job. 0 means not measured yet. */
typedef struct {
    double plain, row, step;
    int32_t n_plain; /* up to N_PLAIN_PASSES */
} pass_costs;

/* Passes that run without drafts first. One is not enough: it may meet cold caches. */
#define N_PLAIN_PASSES 2

/* Longer matches of a lookup are accepted more often. Rates are kept for three ranges of length:
 * LOOKUP_MIN tokens, up to LONG_MATCH - 1, and more. */
#define N_MATCH_LENGTHS 3
#define LONG_MATCH 8

/* Drafts are worthwhile if they raise the tokens per second by this factor. A smaller gain is lost
 * in the noise of the measured times. */
#define MIN_GAIN 1.02

struct gpt2c_drafter {
    const gpt2c_model *model; /* the draft model, or NULL */
    gpt2c_scratch *scratch;   /* the draft model's */
    int32_t fixed;            /* if not 0, how many tokens are always drafted */
    int32_t sources;
    acceptance by_lookup[N_MATCH_LENGTHS], by_model, by_margin[N_MARGINS];
    pass_costs costs[MAX_DRAFTING_JOBS + 1];
    gpt2c_job shadow_jobs[MAX_DRAFTING_JOBS]; /* copies of the jobs, to which drafts are appended */
    gpt2c_feed feeds[MAX_DRAFTING_JOBS];
};

static inline int32_t min_int32(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- estimates.c ---- */

void estimates_reset(gpt2c_drafter *d);
void estimates_reset_model(gpt2c_drafter *d);
/* The acceptance rate, estimated from the prior and the record. */
double acceptance_rate(const acceptance *e);
acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match);
/* A moving average; old is 0 before the first measurement. */
double cost_smoothed(double old, double new);
/* Seconds of one more row in a pass; an assumed share of a pass before any was measured. */
double cost_of_row(const pass_costs *c, int32_t n_jobs);
/* Seconds that the draft model takes for one token of one job; an assumed share likewise. */
double cost_of_step(const pass_costs *c, int32_t n_jobs);
int margin_range(float margin);

/* ---- decide.c ---- */

/* The most drafts that leave room for the token after them, in the job and in both models'
 * contexts. */
int32_t max_drafts_for(const gpt2c_drafter *d, const gpt2c_job *job);
/* Decides the source of a job's drafts and their number, up to max. */
draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max);

/* ---- propose.c ---- */

/* Copies the tokens that followed the match. */
void copy_continuation(gpt2c_job *job, const draft *drafted);
/* Drafts for all jobs whose source is the model. */
gpt2c_status draft_by_model(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                            draft *drafts);

#endif
