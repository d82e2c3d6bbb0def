/* Whether guessing pays is a matter of measured times and of how many guesses were right: both are
 * estimated as texts go on. */
#include "draft/draft.h"

#include "cache.h"
#include "model/model.h"
#include "os/os.h"
#include "sample/candidates.h"
#include "sample/sample.h"

#include <stdlib.h>

/* How often guesses of one kind are right: of those that were decided, since one that follows a wrong
 * one is not. */
typedef struct {
    double accepted, verified;
    double prior;           /* what is believed before any was */
    int32_t n_waited, wait; /* passes without a guess, and after how many one is made to see */
} acceptance;

/* So much the prior counts, and after so many the past is forgotten by half. */
#define PRIOR_WEIGHT 1.5
#define MAX_VERIFIED 64.0
#define MIN_WAIT 16
#define MAX_WAIT 1024
#define TRIAL_DRAFTS 2

/* How sure a model was of a guess tells how likely it is right: by how much, in logits with their noise, the
 * guess was ahead of the next best. Upper ends of the ranges, and what is believed of each at first; the last
 * is of guesses of which nobody knows. */
#define N_MARGINS 9
static const float margin_ends[N_MARGINS - 2] = {0.1f, 0.2f, 0.4f, 0.7f, 1.0f, 1.5f, 2.5f};
static const double margin_priors[N_MARGINS] = {0.5,  0.6,   0.75,  0.85, 0.93,
                                                0.97, 0.985, 0.995, 0.9};

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

static int32_t min_int32(int32_t a, int32_t b) { return a < b ? a : b; }

static acceptance acceptance_prior(double prior) {
    return (acceptance){.prior = prior, .wait = MIN_WAIT};
}

static void estimates_reset_model(gpt2c_drafter *d) {
    d->by_model = acceptance_prior(0.9);
    for (int i = 0; i < N_MARGINS; i++)
        d->by_margin[i] = acceptance_prior(margin_priors[i]);
}

static void estimates_reset(gpt2c_drafter *d) {
    d->by_lookup[0] = acceptance_prior(0.4);
    d->by_lookup[1] = acceptance_prior(0.65);
    d->by_lookup[2] = acceptance_prior(0.9);
    estimates_reset_model(d);
    for (int n = 0; n <= MAX_DRAFTING_JOBS; n++)
        d->costs[n] = (pass_costs){0};
}

gpt2c_status gpt2c_drafter_create(gpt2c_drafter **drafter) {
    gpt2c_drafter *d = calloc(1, sizeof *d);
    if (!d)
        return GPT2C_NO_MEMORY;
    estimates_reset(d);
    *drafter = d;
    return GPT2C_OK;
}

void gpt2c_drafter_free(gpt2c_drafter *drafter) {
    if (!drafter)
        return;
    gpt2c_scratch_free(drafter->scratch);
    free(drafter);
}

gpt2c_status gpt2c_drafter_set(gpt2c_drafter *d, const gpt2c_model *model, int32_t sources,
                               int32_t fixed) {
    d->fixed = min_int32(fixed, MAX_DRAFTS);
    d->sources = sources;
    if (d->model == model)
        return GPT2C_OK;
    gpt2c_scratch_free(d->scratch);
    d->scratch = NULL;
    d->model = NULL;
    if (model) {
        gpt2c_status status = gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &d->scratch);
        if (status)
            return status;
        d->model = model;
    }
    estimates_reset_model(d);
    return GPT2C_OK;
}

/* ---- estimates ---- */

static double acceptance_rate(const acceptance *e) {
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

static acceptance *acceptance_of(gpt2c_drafter *d, draft_source source, lookup_match match) {
    if (source == DRAFT_BY_MODEL)
        return &d->by_model;
    return &d->by_lookup[match.length <= LOOKUP_MIN ? 0 : match.length < 8 ? 1 : 2];
}

static double cost_smoothed(double old, double new) {
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

static int margin_range(float margin) {
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

/* ---- the decision ---- */

static double cost_of_row(const pass_costs *c, int32_t n_jobs) {
    return c->row > 0 ? c->row : 0.04 * c->plain / n_jobs;
}

/* Tokens a second for one of n_jobs when k are drafted, of a chance each. */
static double tokens_per_second(const pass_costs *c, int32_t n_jobs, int32_t k, double rate,
                                double step) {
    double row = cost_of_row(c, n_jobs), tokens = 1, all_accepted = 1;
    for (int32_t i = 0; i < k; i++)
        tokens += all_accepted *= rate;
    return tokens / (c->plain / n_jobs + k * (row + step));
}

#define MIN_GAIN 1.02 /* times the rate without guesses */

/* How many to guess, up to max, and in *gain what that makes of the rate without. */
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

/* The number for a source. Where guessing does not pay, now and then a few are made to see whether it
 * still does not. */
static int32_t draft_length(gpt2c_drafter *d, int32_t n_jobs, int32_t max, acceptance *e,
                            double step, double *gain) {
    const pass_costs *c = &d->costs[n_jobs];
    int32_t n = best_length(c, n_jobs, max, acceptance_rate(e), step, gain);
    if (n == 0 && e->n_waited++ >= e->wait)
        n = TRIAL_DRAFTS;
    return min_int32(n, max);
}

/* A guess must leave room for the token after it, in the text and in the contexts of both models. */
static int32_t max_drafts_for(const gpt2c_drafter *d, const gpt2c_job *job) {
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

/* Guesses by the model. Where n of them pay by their average chance, as many are made as each is worth its
 * time by its own: a guess takes time in which tokens come at the rate that is gain. */
static draft decide_by_model(const pass_costs *c, int32_t n_jobs, lookup_match match, int32_t n,
                             int32_t max, double step, double gain) {
    draft result = {.source = DRAFT_BY_MODEL, .n = n, .match = match};
    if (gain <= MIN_GAIN) /* to see whether it pays */
        return result;
    result.n = max;
    result.all_accepted = 1;
    result.min_probability = (cost_of_row(c, n_jobs) + step) * gain * n_jobs / c->plain;
    return result;
}

static draft draft_decide(gpt2c_drafter *d, const gpt2c_job *job, int32_t n_jobs, int32_t max) {
    lookup_match match = {0, 0};
    if (d->sources & GPT2C_DRAFT_LOOKUP)
        match = lookup_find(job->lookup, job);
    if (d->fixed)
        return decide_fixed(d, match, max);
    const pass_costs *c = &d->costs[n_jobs];
    draft result = {.match = match};
    if (c->n_plain < 2)
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
        double step = (c->step > 0 ? c->step : 0.2 * c->plain) / n_jobs;
        int32_t n = draft_length(d, n_jobs, max, &d->by_model, step, &gain);
        if (n && (gain > best || result.source == NO_DRAFT))
            result = decide_by_model(c, n_jobs, match, n, max, step, gain);
    }
    return result;
}

/* ---- guessing ---- */

/* What followed the match; past the end, what was drafted itself: a loop goes on. */
static void copy_continuation(gpt2c_job *job, const draft *drafted) {
    for (int32_t i = 0; i < drafted->n; i++)
        job->tokens[job->n_tokens + i] = lookup_token(job, drafted->match.continuation + i);
}

/* The sequence that the draft model continues a job on: its own, or, of the model's own packing, the
 * job's, whose keys and values serve both. */
static gpt2c_sequence *draft_sequence_of(const gpt2c_job *job) {
    return job->draft_sequence ? job->draft_sequence : job->sequence;
}

/* What a draft sequence has not seen of a text, but for the token that is fed next. */
static gpt2c_status catch_up(gpt2c_drafter *d, const gpt2c_job *job) {
    if (!job->draft_sequence)
        return GPT2C_OK;
    int32_t end = job->n_prompt + job->n_tokens - 1;
    int32_t at = gpt2c_sequence_length(job->draft_sequence);
    while (at < end) {
        int in_prompt = at < job->n_prompt;
        int32_t stop = in_prompt && job->n_prompt < end ? job->n_prompt : end;
        int32_t n = min_int32(stop - at, GPT2C_MAX_ROWS);
        const int32_t *tokens = in_prompt ? job->prompt + at : job->tokens + (at - job->n_prompt);
        gpt2c_feed feed = {job->draft_sequence, tokens, n, GPT2C_LOGITS_NONE};
        gpt2c_status status = gpt2c_forward(d->model, d->scratch, &feed, 1, NULL);
        if (status)
            return status;
        at += n;
    }
    return GPT2C_OK;
}

/* Takes note of how sure the i-th guess was, and stops where the next one is not worth its time. */
static void record_margin(const gpt2c_drafter *d, draft *drafted, int32_t i, float margin) {
    int range = margin_range(margin);
    drafted->margins[i] = (uint8_t)range;
    drafted->all_accepted *= acceptance_rate(&d->by_margin[range]);
    if (drafted->all_accepted * acceptance_rate(&d->by_model) < drafted->min_probability)
        drafted->n = i + 1;
}

/* One more token for each job that wants one; returns in *n_fed how many there were. */
static gpt2c_status draft_step(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                               draft *drafts, int32_t i, int32_t *n_fed) {
    int32_t fed[MAX_DRAFTING_JOBS];
    *n_fed = 0;
    for (int32_t j = 0; j < n_jobs; j++)
        if (drafts[j].source == DRAFT_BY_MODEL && i < drafts[j].n) {
            const int32_t *token = &jobs[j]->tokens[jobs[j]->n_tokens - 1 + i];
            d->feeds[*n_fed] =
                (gpt2c_feed){draft_sequence_of(jobs[j]), token, 1, GPT2C_LOGITS_LAST};
            fed[(*n_fed)++] = j;
        }
    float *logits = gpt2c_scratch_logits(d->scratch, d->model, n_jobs);
    candidates *c = gpt2c_scratch_candidates(d->scratch, d->model, 0);
    if (!logits || !c)
        return GPT2C_NO_MEMORY;
    c->wants_margin = 1;
    if (*n_fed == 0)
        return GPT2C_OK;
    gpt2c_status status = gpt2c_forward(d->model, d->scratch, d->feeds, *n_fed, logits);
    for (int32_t f = 0; !status && f < *n_fed; f++) {
        gpt2c_job *shadow = &d->shadow_jobs[fed[f]];
        const float *row = logits + (size_t)f * (size_t)d->model->config.n_vocab;
        int32_t before = shadow->n_tokens;
        advance_job(d->model, c, shadow, row, row);
        record_margin(d, &drafts[fed[f]], i, c->margin);
        /* What ends the text, or is no token, is not drafted; nothing is after it. */
        if (shadow->finish != GPT2C_RUNNING)
            drafts[fed[f]].n = i + shadow->n_tokens - before;
    }
    return status;
}

static gpt2c_status draft_by_model(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                                   draft *drafts) {
    int32_t length[MAX_DRAFTING_JOBS], n_fed = 0;
    gpt2c_status status = GPT2C_OK;
    for (int32_t j = 0; !status && j < n_jobs; j++)
        if (drafts[j].source == DRAFT_BY_MODEL) {
            d->shadow_jobs[j] = *jobs[j];
            d->shadow_jobs[j].scores.scores = NULL;
            status = catch_up(d, jobs[j]);
        }
    for (int32_t j = 0; j < n_jobs; j++)
        length[j] = gpt2c_sequence_length(draft_sequence_of(jobs[j]));
    pass_costs *costs = &d->costs[n_jobs];
    for (int32_t i = 0; !status && i < MAX_DRAFTS; i++) {
        double begin = os_seconds();
        status = draft_step(d, jobs, n_jobs, drafts, i, &n_fed);
        if (n_fed == 0)
            break;
        if (n_fed == n_jobs)
            costs->step = cost_smoothed(costs->step, os_seconds() - begin);
    }
    /* What the packing wrote is overwritten when it is verified. */
    for (int32_t j = 0; j < n_jobs; j++)
        if (drafts[j].source == DRAFT_BY_MODEL && (status || !jobs[j]->draft_sequence))
            gpt2c_sequence_truncate(draft_sequence_of(jobs[j]), length[j]);
    return status;
}

void draft_roll_back(const gpt2c_job *job) {
    int32_t right = job->n_prompt + job->n_tokens - 1;
    if (job->draft_sequence && gpt2c_sequence_length(job->draft_sequence) > right)
        gpt2c_sequence_truncate(job->draft_sequence, right);
}

gpt2c_status draft_tokens(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs, int32_t max,
                          draft *drafts) {
    int by_model = 0;
    for (int32_t j = 0; j < n_jobs; j++) {
        int32_t room = max_drafts_for(d, jobs[j]);
        drafts[j] = draft_decide(d, jobs[j], n_jobs, min_int32(room, max));
        if (drafts[j].source == DRAFT_BY_LOOKUP)
            copy_continuation(jobs[j], &drafts[j]);
        by_model |= drafts[j].source == DRAFT_BY_MODEL;
    }
    return by_model ? draft_by_model(d, jobs, n_jobs, drafts) : GPT2C_OK;
}
