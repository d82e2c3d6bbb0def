/* From logits to a token: the stages that sampling options ask for, and the draw. */
#include "sample/sample.h"
#include "fpenv.h"
#include "model/model.h"
#include "sample/candidates.h"
#include "sample/scores.h"

#include <math.h>
#include <string.h>

static void fill(candidates *c, const gpt2c_job *job, const float *logits) {
    candidates_fill(c, logits);
    memcpy(c->history, job->prompt, (size_t)job->n_prompt * sizeof(int32_t));
    memcpy(c->history + job->n_prompt, job->tokens, (size_t)job->n_tokens * sizeof(int32_t));
    c->n_prompt = job->n_prompt;
    c->n_history = job->n_prompt + job->n_tokens;
}

/* Runs the stages; where one of them is mirostat, *before is the weights' sum that it saw. */
static void run_stages(candidates *c, const gpt2c_job *job, const noise_key *key, float *before) {
    for (int32_t s = 0; s < job->sampling.n_stages; s++) {
        const gpt2c_stage *stage = &job->sampling.stages[s];
        if (stage->kind == GPT2C_MIROSTAT)
            *before = (float)candidates_weigh(c);
        if (!penalize(c, stage))
            filter(c, stage, key, job->mirostat_mu);
    }
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

/* By how much the greatest of logits, which is at `greatest`, is ahead of the next. */
static float margin_of_argmax(const kernel_table *kernels, const float *logits, int32_t n,
                              int32_t best) {
    float next = -INFINITY;
    const float *parts[] = {logits, logits + best + 1};
    const int32_t lengths[] = {best, n - best - 1};
    for (int i = 0; i < 2; i++) {
        int32_t at = lengths[i] ? kernels->arg_max(parts[i], lengths[i]) : -1;
        if (at >= 0 && parts[i][at] > next)
            next = parts[i][at];
    }
    return logits[best] - next;
}

/* The same of a draw, whose score is the drawn one's logit and noise. */
static float margin_of_draw(candidates *c, const noise_key *key, int32_t token, float score) {
    int32_t index = 0;
    while (c->ids[index] != token)
        index++;
    float logit = c->logits[index], next;
    c->logits[index] = -INFINITY;
    (void)c->kernels->draw(c->logits, c->ids, c->n, key, &next);
    c->logits[index] = logit;
    return c->n > 1 ? score - next : INFINITY;
}

static gpt2c_status draw(candidates *c, gpt2c_job *job, const noise_key *key, int32_t *token) {
    float sum_before = 0.0f;
    run_stages(c, job, key, &sum_before);
    int32_t index = c->n ? candidates_argmax(c) : -1;
    if (index < 0)
        return GPT2C_NOT_A_NUMBER;
    float max = c->logits[index];
    if (isinf(max) && max < 0.0f)
        return GPT2C_NOTHING_LEFT;
    *token = c->ids[index];
    if (!job->sampling.draws || isinf(max))
        return GPT2C_OK;
    float score;
    *token = c->kernels->draw(c->logits, c->ids, c->n, key, &score);
    if (c->wants_margin)
        c->margin = margin_of_draw(c, key, *token, score);
    for (int32_t i = 0; sum_before > 0.0f && i < c->n; i++)
        if (c->ids[i] == *token)
            update_mirostat(job, c->kernels, c->logits[i] - max, sum_before);
    return GPT2C_OK;
}

static noise_key key_of_job(const gpt2c_job *job) {
    return (noise_key){job->sampling.seed, job->sampling.sample,
                       (uint32_t)(job->n_prompt + job->n_tokens)};
}

int is_greedy(const gpt2c_job *job) { return !job->sampling.draws && !job->sampling.n_stages; }

static gpt2c_status choose(const gpt2c_model *m, candidates *c, gpt2c_job *job, const float *logits,
                           int32_t *token) {
    int32_t best = m->kernels->arg_max(logits, m->config.n_vocab);
    if (best < 0)
        return GPT2C_NOT_A_NUMBER;
    *token = best;
    if (isinf(logits[best]) && logits[best] < 0.0f)
        return GPT2C_NOTHING_LEFT;
    if (c && c->wants_margin)
        c->margin =
            is_greedy(job) ? margin_of_argmax(m->kernels, logits, m->config.n_vocab, best) : NAN;
    if (is_greedy(job))
        return GPT2C_OK;
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
static void append(const gpt2c_model *m, gpt2c_job *job, int32_t token, const float *model_logits) {
    if (is_stop(job, token)) {
        job->finish = GPT2C_FINISHED_STOP;
        job->end_id = token;
        return;
    }
    if (job->scores.scores)
        score_token(m, model_logits, token, &job->scores, (size_t)job->n_tokens);
    job->tokens[job->n_tokens++] = token;
    if (job->n_tokens == job->max_new_tokens)
        job->finish = GPT2C_FINISHED_LENGTH;
    else if (job->n_prompt + job->n_tokens > m->config.n_positions)
        job->finish = GPT2C_FINISHED_CONTEXT;
}

void advance_job(const gpt2c_model *m, candidates *c, gpt2c_job *job, const float *logits,
                 const float *model_logits) {
    int32_t token = 0;
    fp_state caller = fp_enter();
    gpt2c_status status = choose(m, c, job, logits, &token);
    if (status == GPT2C_NOT_A_NUMBER)
        job->finish = GPT2C_FINISHED_NOT_A_NUMBER;
    else if (status == GPT2C_NOTHING_LEFT)
        job->finish = GPT2C_FINISHED_NOTHING_LEFT;
    else
        append(m, job, token, model_logits);
    fp_leave(caller);
}

gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *model_logits) {
    if (job->finish != GPT2C_RUNNING) /* there may be no room for another token */
        return GPT2C_BAD_ARGUMENT;
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
    if (!c)
        return GPT2C_NO_MEMORY;
    advance_job(model, c, job, logits, model_logits);
    return GPT2C_OK;
}

gpt2c_status gpt2c_process(const gpt2c_model *model, gpt2c_scratch *scratch, const gpt2c_job *job,
                           float *logits) {
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
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
