/* The drafter, and the functions that the files of draft/ share. */
#ifndef GPT2C_DRAFTER_H
#define GPT2C_DRAFTER_H

#include "draft/draft.h"
#include "min.h"

/* How often one kind of draft is accepted. Drafts after a rejected one are not verified and do not
 * count. */
typedef struct {
    double accepted, verified;
    double prior;           /* the rate that is assumed before any draft is verified */
    int32_t n_waited, wait; /* passes without drafts; after `wait` of them a trial is made */
} acceptance;

/* The margin of a draft is its score (its logit plus any noise) minus the score of the second-best
 * token. A large margin means that the model is confident. Margins are grouped into ranges, whose
 * upper ends are in estimates.c. The last range but one has no upper end, and the last is for
 * unknown margins. */
#define N_MARGIN_ENDS 7
#define N_MARGIN_RANGES (N_MARGIN_ENDS + 2)
#define UNKNOWN_MARGIN_RANGE (N_MARGIN_RANGES - 1)

/* Measured seconds of passes with the same number of decoding jobs. `plain` is the time of a pass
 * without drafts, `row` of each additional row, and `step` of a step in which the draft model
 * drafts one token for every job. 0 means not measured yet. */
typedef struct {
    double plain, row, step;
    int32_t n_plain; /* up to N_PLAIN_PASSES */
} pass_costs;

/* The first passes run without drafts, to measure their time. One pass is not enough, because the
 * CPU's caches may be cold. */
#define N_PLAIN_PASSES 2

/* Drafts after a longer match are accepted more often. So rates are kept separately for three match
 * lengths: LOOKUP_MIN tokens, up to LONG_MATCH - 1 tokens, and LONG_MATCH or more. */
#define N_MATCH_LENGTHS 3
#define LONG_MATCH 8

/* Drafts are worthwhile if they raise the tokens per second by more than this factor. A smaller
 * gain is lost in the noise of the measured times. */
#define MIN_GAIN 1.02

struct gpt2c_drafter {
    const gpt2c_model *model; /* the draft model, or NULL */
    gpt2c_scratch *scratch;   /* of the draft model */
    int32_t n_fixed;          /* if not 0, how many tokens are always drafted */
    int32_t sources;          /* a set of GPT2C_DRAFT_ flags */
    acceptance by_lookup[N_MATCH_LENGTHS], by_model, by_margin[N_MARGIN_RANGES];
    pass_costs costs[MAX_DRAFTING_JOBS + 1];
    gpt2c_job shadow_jobs[MAX_DRAFTING_JOBS]; /* copies of the jobs, to which drafts are appended */
    gpt2c_feed feeds[MAX_DRAFTING_JOBS];
};

/* ---- estimates.c ---- */

void estimates_reset(gpt2c_drafter *d);
/* Resets the acceptance rates of the draft model's drafts. */
void estimates_reset_model(gpt2c_drafter *d);
/* The acceptance rate, estimated from the prior and the verified drafts. */
double acceptance_rate(const acceptance *a);
acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match);
/* The moving average after a new measurement. `old` is 0 before the first one. */
double cost_smoothed(double old, double new);
/* Seconds of one more row in a pass: measured or, before the first measurement, assumed. */
double cost_of_row(const pass_costs *c, int32_t n_jobs);
/* Seconds that the draft model takes for one token of one job, measured or assumed. */
double cost_of_step(const pass_costs *c, int32_t n_jobs);
/* The index of a margin's range. */
int margin_range(float margin);

/* ---- decide.c ---- */

/* The max number of drafts. They leave room for the token after them, in the job and in both
 * models' contexts. */
int32_t max_drafts_for(const gpt2c_drafter *d, const gpt2c_job *job);
/* Decides the source of a job's drafts and their number, up to max. n_jobs jobs decode. */
draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max);

/* ---- propose.c ---- */

/* Drafts the tokens that followed the earlier occurrence. */
void copy_continuation(gpt2c_job *job, const draft *drafted);
/* Makes the drafts of all jobs whose source is DRAFT_BY_MODEL. */
gpt2c_status draft_by_model(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                            int32_t n_decoding, draft *job_drafts);

#endif
