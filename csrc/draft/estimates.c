/* Estimates acceptance rates and the costs of passes from measurements during generation. */
#include "draft/drafter.h"

/* The prior counts as this many verified drafts, so two verified drafts outweigh it. */
#define PRIOR_WEIGHT 1.5
/* When more drafts than this were verified, both counts are halved, so that the rate follows a text
 * as it changes. */
#define MAX_VERIFIED 64.0
/* The max of estimated rates. With a rate of 1, more drafts would always seem better. */
#define MAX_RATE 0.995

/* The number of passes between two trials of a source that is not worthwhile. Each trial without an
 * accepted draft doubles it, up to MAX_WAIT, where trials cost less than a thousandth of the
 * time. */
#define MIN_WAIT 16
#define MAX_WAIT (MIN_WAIT << 6)

/* The rates that are assumed before any draft is verified. Drafts after a longer match are accepted
 * more often. Measured: 94 to 96 % of the drafts by a model's own 4-bit copy are accepted. */
#define MODEL_PRIOR 0.9
static const double match_priors[N_MATCH_LENGTHS] = {0.4, 0.65, 0.9};

/* A new cost has the weight NEW_SHARE in the moving average. It is clipped to MAX_OUTLIER times the
 * average, because a pass that took even longer was interrupted. */
#define NEW_SHARE 0.2
#define MAX_OUTLIER 3
/* Costs as shares of a plain pass. An additional row costs at least MIN_ROW_SHARE; a smaller
 * measurement is noise. Until the costs are measured, a row of a pass with n jobs is assumed to
 * cost ROW_SHARE / n, and a step STEP_SHARE. A step reads all weights of the draft model; a 4-bit
 * copy has up to MAX_DRAFT_SHARE of the model's bytes (model/model.c). */
#define MIN_ROW_SHARE 0.005
#define ROW_SHARE 0.04
#define STEP_SHARE 0.2

/* The upper ends of the margin ranges, and the acceptance rate assumed for each range. */
static const float margin_ends[N_MARGIN_ENDS] = {0.1f, 0.2f, 0.4f, 0.7f, 1.0f, 1.5f, 2.5f};
static const double margin_priors[N_MARGIN_RANGES] = {0.5,  0.6,   0.75,     0.85,       0.93,
                                                      0.97, 0.985, MAX_RATE, MODEL_PRIOR};

static acceptance acceptance_prior(double prior) {
    return (acceptance){.prior = prior, .wait = MIN_WAIT};
}

void estimates_reset_model(gpt2c_drafter *d) {
    d->by_model = acceptance_prior(MODEL_PRIOR);
    for (int i = 0; i < N_MARGIN_RANGES; i++)
        d->by_margin[i] = acceptance_prior(margin_priors[i]);
}

void estimates_reset(gpt2c_drafter *d) {
    for (int i = 0; i < N_MATCH_LENGTHS; i++)
        d->by_lookup[i] = acceptance_prior(match_priors[i]);
    estimates_reset_model(d);
    for (int n = 0; n <= MAX_DRAFTING_JOBS; n++)
        d->costs[n] = (pass_costs){0};
}

double acceptance_rate(const acceptance *a) {
    double rate = (a->accepted + PRIOR_WEIGHT * a->prior) / (a->verified + PRIOR_WEIGHT);
    return rate < MAX_RATE ? rate : MAX_RATE;
}

static void acceptance_record(acceptance *a, int32_t n_accepted, int32_t n_verified) {
    if (a->verified > MAX_VERIFIED) {
        a->accepted *= 0.5;
        a->verified *= 0.5;
    }
    a->accepted += n_accepted;
    a->verified += n_verified;
    a->n_waited = 0;
    if (n_accepted)
        a->wait = MIN_WAIT;
    else if (a->wait < MAX_WAIT)
        a->wait *= 2;
}

acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match) {
    if (source == DRAFT_BY_MODEL)
        return &d->by_model;
    return &d->by_lookup[match.length <= LOOKUP_MIN ? 0 : match.length < LONG_MATCH ? 1 : 2];
}

double cost_smoothed(double old, double new) {
    if (old == 0)
        return new;
    double max = MAX_OUTLIER * old;
    return (1 - NEW_SHARE) * old + NEW_SHARE * (new < max ? new : max);
}

void draft_record_pass(gpt2c_drafter *d, int32_t n_jobs, int32_t n_drafts, double seconds) {
    pass_costs *c = &d->costs[n_jobs];
    if (n_drafts == 0) {
        c->plain = c->n_plain < N_PLAIN_PASSES ? seconds : cost_smoothed(c->plain, seconds);
        c->n_plain += c->n_plain < N_PLAIN_PASSES;
    } else if (c->plain > 0) {
        double per_draft = (seconds - c->plain) / n_drafts, min = MIN_ROW_SHARE * c->plain;
        c->row = cost_smoothed(c->row, per_draft > min ? per_draft : min);
    }
}

int margin_range(float margin) {
    if (margin != margin)
        return UNKNOWN_MARGIN_RANGE;
    int i = 0;
    while (i < N_MARGIN_ENDS && margin >= margin_ends[i])
        i++;
    return i;
}

void draft_record_job(gpt2c_drafter *d, const draft *drafted) {
    int32_t n_verified = drafted->n_accepted + (drafted->n_accepted < drafted->n);
    if (drafted->source == NO_DRAFT)
        return;
    acceptance_record(acceptance_of(d, drafted->source, drafted->match), drafted->n_accepted,
                      n_verified);
    for (int32_t i = 0; drafted->source == DRAFT_BY_MODEL && i < n_verified; i++)
        acceptance_record(&d->by_margin[drafted->margin_ranges[i]], i < drafted->n_accepted, 1);
}

double cost_of_row(const pass_costs *c, int32_t n_jobs) {
    return c->row > 0 ? c->row : ROW_SHARE * c->plain / n_jobs;
}

double cost_of_step(const pass_costs *c, int32_t n_jobs) {
    return (c->step > 0 ? c->step : STEP_SHARE * c->plain) / n_jobs;
}
