/* Decides how many tokens are drafted for a job and from which source: the choice with the most
 * tokens per second. */
#include "draft/drafter.h"

#include "cache.h"
#include "model/model.h"

/* Drafts in a trial of a source that was not worthwhile when last tried. */
#define TRIAL_DRAFTS 2

/* Tokens per second of one of n_jobs jobs with k drafts. A draft is accepted at `rate`, provided
 * that the one before it was. `step` is the time to make one draft. */
static double tokens_per_second(const pass_costs *c, int32_t n_jobs, int32_t k, double rate,
                                double step) {
    double row = cost_of_row(c, n_jobs), tokens = 1, all_accepted = 1;
    for (int32_t i = 0; i < k; i++)
        tokens += all_accepted *= rate;
    return tokens / (c->plain / n_jobs + k * (row + step));
}

/* The number of drafts, up to max, with the most tokens per second; *gain is the ratio to the
 * tokens per second without drafts. Returns 0, and MIN_GAIN as *gain, if no number is
 * worthwhile. */
static int32_t best_length(const pass_costs *c, int32_t n_jobs, int32_t max, double rate,
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

/* The number of drafts from a source. If none is worthwhile, a trial is made after each wait. */
static int32_t draft_length(gpt2c_drafter *d, int32_t n_jobs, int32_t max, acceptance *e,
                            double step, double *gain) {
    const pass_costs *c = &d->costs[n_jobs];
    int32_t n = best_length(c, n_jobs, max, acceptance_rate(e), step, gain);
    if (n == 0 && e->n_waited++ >= e->wait)
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
    draft result = {.n = min_int32(d->fixed, max), .match = match};
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

/* Decides on n drafts by the model. If n drafts are worthwhile at the average rate, drafting
 * instead continues, up to max, while the next draft is worth its time at the rate of its own
 * margin. A draft takes the time of a row and of a step. In that time the job makes a fraction of a
 * token, at gain * n_jobs / plain tokens per second: the draft must be accepted with at least this
 * probability. A trial always has n drafts. */
static draft decide_by_model(const pass_costs *c, int32_t n_jobs, lookup_match match, int32_t n,
                             int32_t max, double step, double gain) {
    draft result = {.source = DRAFT_BY_MODEL, .n = n, .match = match};
    if (gain <= MIN_GAIN)
        return result;
    result.n = max;
    result.all_accepted = 1;
    result.min_probability = (cost_of_row(c, n_jobs) + step) * gain * n_jobs / c->plain;
    return result;
}

draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max) {
    lookup_match match = {0, 0};
    if (d->sources & GPT2C_DRAFT_LOOKUP)
        match = lookup_find(job->lookup, job);
    if (d->fixed)
        return decide_fixed(d, match, max);
    const pass_costs *c = &d->costs[n_jobs];
    draft result = {.match = match};
    if (c->n_plain < N_PLAIN_PASSES)
        return result;
    double best = 0, gain;
    if (match.continuation) {
        acceptance *e = acceptance_of(d, DRAFT_BY_LOOKUP, match);
        int32_t n = draft_length(d, n_jobs, max, e, 0, &gain);
        if (n)
            result = (draft){.source = DRAFT_BY_LOOKUP, .n = n, .match = match};
        best = gain;
    }
    if (d->model) {
        double step = cost_of_step(c, n_jobs);
        int32_t n = draft_length(d, n_jobs, max, &d->by_model, step, &gain);
        if (n && (gain > best || result.source == NO_DRAFT))
            result = decide_by_model(c, n_jobs, match, n, max, step, gain);
    }
    return result;
}
