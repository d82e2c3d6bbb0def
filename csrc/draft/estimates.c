#include "draft/drafter.h"

/* So much the prior counts, and after so many the past is forgotten by half. */
#define PRIOR_WEIGHT 1.5
#define MAX_VERIFIED 64.0
#define MIN_WAIT 16
#define MAX_WAIT 1024

/* How sure a model was of a guess tells how likely it is right: by how much, in logits with their noise, the
 * guess was ahead of the next best. Upper ends of the ranges, and what is believed of each at first; the last
 * is of guesses of which nobody knows. */
static const float margin_ends[N_MARGINS - 2] = {0.1f, 0.2f, 0.4f, 0.7f, 1.0f, 1.5f, 2.5f};
static const double margin_priors[N_MARGINS] = {0.5,  0.6,   0.75,  0.85, 0.93,
                                                0.97, 0.985, 0.995, 0.9};

static acceptance acceptance_prior(double prior) {
    return (acceptance){.prior = prior, .wait = MIN_WAIT};
}

void estimates_reset_model(gpt2c_drafter *d) {
    d->by_model = acceptance_prior(0.9);
    for (int i = 0; i < N_MARGINS; i++)
        d->by_margin[i] = acceptance_prior(margin_priors[i]);
}

void estimates_reset(gpt2c_drafter *d) {
    d->by_lookup[0] = acceptance_prior(0.4);
    d->by_lookup[1] = acceptance_prior(0.65);
    d->by_lookup[2] = acceptance_prior(0.9);
    estimates_reset_model(d);
    for (int n = 0; n <= MAX_DRAFTING_JOBS; n++)
        d->costs[n] = (pass_costs){0};
}

double acceptance_rate(const acceptance *e) {
    double rate = (e->accepted + PRIOR_WEIGHT * e->prior) / (e->verified + PRIOR_WEIGHT);
    return rate < 0.995 ? rate : 0.995;
}

static void acceptance_record(acceptance *e, int32_t n_accepted, int32_t n_verified) {
    if (e->verified > MAX_VERIFIED) {
        e->accepted *= 0.5;
        e->verified *= 0.5;
    }
    e->accepted += n_accepted;
    e->verified += n_verified;
    e->n_waited = 0;
    if (n_accepted)
        e->wait = MIN_WAIT;
    else if (e->wait < MAX_WAIT)
        e->wait *= 2;
}

acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match) {
    if (source == DRAFT_BY_MODEL)
        return &d->by_model;
    return &d->by_lookup[match.length <= LOOKUP_MIN ? 0 : match.length < 8 ? 1 : 2];
}

double cost_smoothed(double old, double new) {
    if (old == 0)
        return new;
    double max = 3 * old; /* an interruption says nothing */
    return 0.8 * old + 0.2 * (new < max ? new : max);
}

void draft_record_pass(gpt2c_drafter *d, int32_t n_jobs, int32_t n_drafts, double seconds) {
    pass_costs *c = &d->costs[n_jobs];
    if (n_drafts == 0) {
        /* The first pass may have met cold caches. */
        c->plain = c->n_plain < 2 ? seconds : cost_smoothed(c->plain, seconds);
        c->n_plain += c->n_plain < 2;
    } else if (c->plain > 0) {
        double more = (seconds - c->plain) / n_drafts;
        c->row = cost_smoothed(c->row, more > 0.005 * c->plain ? more : 0.005 * c->plain);
    }
}

int margin_range(float margin) {
    if (margin != margin)
        return N_MARGINS - 1;
    int i = 0;
    while (i < N_MARGINS - 2 && margin >= margin_ends[i])
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
        acceptance_record(&d->by_margin[drafted->margins[i]], i < drafted->n_accepted, 1);
}

double cost_of_row(const pass_costs *c, int32_t n_jobs) {
    return c->row > 0 ? c->row : 0.04 * c->plain / n_jobs;
}
