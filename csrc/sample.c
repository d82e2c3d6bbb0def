/* From logits to a token: the stages that sampling options ask for, and the draw. */
#include "candidates.h"
#include "fpenv.h"
#include "model.h"
#include "scores.h"

#include <math.h>
#include <string.h>

static void fill(candidates *c, const gpt2c_job *job, const float *logits) {
    candidates_fill(c, logits);
    memcpy(c->history, job->prompt, (size_t)job->n_prompt * sizeof(int32_t));
    memcpy(c->history + job->n_prompt, job->tokens, (size_t)job->n_tokens * sizeof(int32_t));
    c->n_prompt = job->n_prompt;
    c->n_history = job->n_prompt + job->n_tokens;
}

/* Runs the stages; where one of them is mirostat, *before is log of the weights' sum that it saw. */
static void run_stages(candidates *c, const gpt2c_job *job, const noise_key *key, float *before) {
    for (int32_t s = 0; s < job->sampling.n_stages; s++) {
        const gpt2c_stage *stage = &job->sampling.stages[s];
        if (stage->kind == GPT2C_MIROSTAT)
            *before = (float)candidates_weigh(c);
        if (!penalize(c, stage))
            filter(c, stage, key, job->mirostat_mu);
    }
}

/* Noise is at least -log(32 log 2 + log 2) = -3.13 and at most log(2^33) = 22.9: an id further below the
 * most likely one cannot win, and is not drawn for. */
#define NOISE_RANGE 26.5f

static void drop_hopeless(candidates *c, float greatest) {
    int32_t n = 0;
    for (int32_t i = 0; i < c->n; i++)
        if (c->logits[i] >= greatest - NOISE_RANGE) {
            c->logits[n] = c->logits[i];
            c->ids[n++] = c->ids[i];
        }
    c->n = n;
}

/* Mirostat's step: the surprise, in bits, of what was drawn, by the distribution before its cut, is
 * brought towards tau. */
static void update_mirostat(gpt2c_job *job, const kernel_table *kernels, float below, float sum) {
    kernels->log(&sum, 1);
    float surprise = (sum - below) * 1.44269504f;
    for (int32_t s = 0; s < job->sampling.n_stages; s++) {
        const gpt2c_stage *stage = &job->sampling.stages[s];
        if (stage->kind == GPT2C_MIROSTAT)
            job->mirostat_mu -= stage->other * (surprise - stage->value);
    }
}

/* The lowest id of the greatest score. */
static int32_t best_of(const candidates *c) {
    int32_t best = 0;
    for (int32_t i = 1; i < c->n; i++)
        if (c->logits[i] > c->logits[best] ||
            (c->logits[i] == c->logits[best] && c->ids[i] < c->ids[best]))
            best = i;
    return c->ids[best];
}

static gpt2c_status draw(candidates *c, gpt2c_job *job, const noise_key *key, int32_t *token) {
    float sum_before = 0.0f;
    run_stages(c, job, key, &sum_before);
    int32_t place = c->n ? candidates_greatest(c) : -1;
    if (place < 0)
        return GPT2C_NOT_A_NUMBER;
    float greatest = c->logits[place];
    if (isinf(greatest) && greatest < 0.0f)
        return GPT2C_NOTHING_LEFT;
    *token = c->ids[place];
    if (!job->sampling.draws || isinf(greatest))
        return GPT2C_OK;
    drop_hopeless(c, greatest);
    /* The noise takes the place of the logits, which mirostat still needs. */
    memcpy(c->weights, c->logits, (size_t)c->n * sizeof(float));
    c->kernels->perturb(c->logits, c->ids, c->n, key);
    *token = best_of(c);
    if (sum_before > 0.0f)
        for (int32_t i = 0; i < c->n; i++)
            if (c->ids[i] == *token)
                update_mirostat(job, c->kernels, c->weights[i] - greatest, sum_before);
    return GPT2C_OK;
}

static noise_key key_of_job(const gpt2c_job *job) {
    return (noise_key){job->sampling.seed, job->sampling.sample,
                       (uint32_t)(job->n_prompt + job->n_tokens)};
}

static gpt2c_status choose(const gpt2c_model *m, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, int32_t *token) {
    int32_t greatest = m->kernels->arg_max(logits, m->config.n_vocab);
    if (greatest < 0)
        return GPT2C_NOT_A_NUMBER;
    *token = greatest;
    if (!job->sampling.draws && !job->sampling.n_stages)
        return GPT2C_OK;
    candidates *c = gpt2c_scratch_candidates(scratch, m);
    if (!c)
        return GPT2C_NO_MEMORY;
    noise_key key = key_of_job(job);
    fill(c, job, logits);
    return draw(c, job, &key, token);
}

static int is_stop(const gpt2c_job *job, int32_t token) {
    for (int32_t i = 0; i < job->n_stop_ids; i++)
        if (job->stop_ids[i] == token)
            return 1;
    return 0;
}

/* The token that ends a text is not part of it. The last token need not be fed, so a full context still
 * yields one. */
static void append(const gpt2c_model *m, gpt2c_job *job, int32_t token, const float *own) {
    if (is_stop(job, token)) {
        job->finish = GPT2C_FINISHED_STOP;
        return;
    }
    if (job->scores.scores)
        score_token(m, own, token, &job->scores, (size_t)job->n_tokens);
    job->tokens[job->n_tokens++] = token;
    if (job->n_tokens == job->max_new_tokens)
        job->finish = GPT2C_FINISHED_LENGTH;
    else if (job->n_prompt + job->n_tokens > m->config.n_positions)
        job->finish = GPT2C_FINISHED_CONTEXT;
}

gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *own) {
    int32_t token = 0;
    fp_state caller = fp_enter();
    gpt2c_status status = choose(model, scratch, job, logits, &token);
    if (status == GPT2C_OK)
        append(model, job, token, own);
    else if (status == GPT2C_NOT_A_NUMBER)
        job->finish = GPT2C_FINISHED_NOT_A_NUMBER;
    else if (status == GPT2C_NOTHING_LEFT)
        job->finish = GPT2C_FINISHED_NOTHING_LEFT;
    fp_leave(caller);
    return status == GPT2C_NO_MEMORY ? status : GPT2C_OK;
}

gpt2c_status gpt2c_process(const gpt2c_model *model, gpt2c_scratch *scratch, const gpt2c_job *job,
                           float *logits) {
    candidates *c = gpt2c_scratch_candidates(scratch, model);
    if (!c)
        return GPT2C_NO_MEMORY;
    fp_state caller = fp_enter();
    noise_key key = key_of_job(job);
    float sum_before;
    fill(c, job, logits);
    run_stages(c, job, &key, &sum_before);
    for (int32_t id = 0; id < c->n_vocab; id++)
        logits[id] = -INFINITY;
    for (int32_t i = 0; i < c->n; i++)
        logits[c->ids[i]] = c->logits[i];
    fp_leave(caller);
    return GPT2C_OK;
}
