/* Chooses the source and the number of a job's drafts that give the most tokens per second. */
#include "draft/drafter.h"

#include "cache.h"
#include "model/model.h"

/* The number of drafts in a trial, which finds out whether a source has become worthwhile. */
#define TRIAL_DRAFTS 2

/* Tokens per second of n_jobs jobs together, with k drafts for each job. `rate` is the probability
 * that a draft is accepted if all drafts before it were. `step` is the time to make one draft. */
static double tokens_per_second(const pass_costs *c, int32_t n_jobs, int32_t k, double rate,
                                double step) {
    double row = cost_of_row(c, n_jobs), tokens = 1, p_all_accepted = 1;
    for (int32_t i = 0; i < k; i++)
        tokens += p_all_accepted *= rate;
    return tokens / (c->plain / n_jobs + k * (row + step));
}

/* Returns the number of drafts, up to max, that gives the most tokens per second, and sets *gain to
 * the speed-up over no drafts. If no number gains more than MIN_GAIN, returns 0 and sets *gain to
 * MIN_GAIN. */
static int32_t best_n_drafts(const pass_costs *c, int32_t n_jobs, int32_t max, double rate,
                             double step, double *gain) {
    int32_t best = 0;
    double plain = tokens_per_second(c, n_jobs, 0, 0, 0);
    *gain = MIN_GAIN;
    for (int32_t k = 1; k <= max; k++) {
        double this_gain = tokens_per_second(c, n_jobs, k, rate, step) / plain;
        if (this_gain > *gain) {
            *gain = this_gain;
            best = k;
        }
    }
    return best;
}

/* Returns the number of drafts to make from a source. If drafts are not worthwhile, it is 0, except
 * for a trial after every a->wait passes. */
static int32_t choose_n_drafts(gpt2c_drafter *d, int32_t n_jobs, int32_t max, acceptance *a,
                               double step, double *gain) {
    const pass_costs *c = &d->costs[n_jobs];
    int32_t n = best_n_drafts(c, n_jobs, max, acceptance_rate(a), step, gain);
    if (n == 0 && a->n_waited++ >= a->wait)
        n = TRIAL_DRAFTS;
    return min_int32(n, max);
}

int32_t max_drafts_for(const gpt2c_drafter *d, const gpt2c_job *job) {
    int32_t n_positions = job->sequence->model->config.n_positions;
    if (d->model)
        n_positions = min_int32(n_positions, d->model->config.n_positions);
    int32_t room = n_positions - gpt2c_sequence_length(job->sequence) - 1;
    int32_t max = min_int32(min_int32(job->max_new_tokens - job->n_tokens - 1, room), MAX_DRAFTS);
    return max < 0 ? 0 : max;
}

static draft decide_fixed(const gpt2c_drafter *d, lookup_match match, int32_t max) {
    draft result = {.n = min_int32(d->n_fixed, max), .match = match};
    if (result.n == 0)
        return result;
    if (d->model)
        result.source = DRAFT_BY_MODEL;
    else if (match.continuation)
        result.source = DRAFT_BY_LOOKUP;
    else
        result.n = 0;
    return result;
}

/* Decides how many drafts the draft model makes for a job. If `gain` is too small, this is a trial
 * of n drafts. Otherwise drafting continues, up to max drafts, until the next draft is too unlikely
 * to be accepted, as estimated from the margins so far. A draft takes the time of one row and one
 * step. In that time the jobs generate (row + step) * gain * n_jobs / plain tokens on average, so a
 * draft must be accepted with at least this probability. */
static draft decide_by_model(const pass_costs *c, int32_t n_jobs, lookup_match match, int32_t n,
                             int32_t max, double step, double gain) {
    draft result = {.source = DRAFT_BY_MODEL, .n = n, .match = match};
    if (gain <= MIN_GAIN)
        return result;
    result.n = max;
    result.p_all_accepted = 1;
    result.min_probability = (cost_of_row(c, n_jobs) + step) * gain * n_jobs / c->plain;
    return result;
}

draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max) {
    lookup_match match = {0, 0};
    if (d->sources & GPT2C_DRAFT_LOOKUP)
        match = lookup_find(job->lookup, job);
    if (d->n_fixed)
        return decide_fixed(d, match, max);
    const pass_costs *c = &d->costs[n_jobs];
    draft result = {.match = match};
    if (c->n_plain < N_PLAIN_PASSES)
        return result;
    double best = 0, gain;
    if (match.continuation) {
        acceptance *a = acceptance_of(d, DRAFT_BY_LOOKUP, match);
        int32_t n = choose_n_drafts(d, n_jobs, max, a, 0, &gain);
        if (n)
            result = (draft){.source = DRAFT_BY_LOOKUP, .n = n, .match = match};
        best = gain;
    }
    if (d->model) {
        double step = cost_of_step(c, n_jobs);
        int32_t n = choose_n_drafts(d, n_jobs, max, &d->by_model, step, &gain);
        if (n && (gain > best || result.source == NO_DRAFT))
            result = decide_by_model(c, n_jobs, match, n, max, step, gain);
    }
    return result;
}
