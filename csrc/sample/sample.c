/* Turns logits into a token: applies the stages of the sampling options (filters.c, penalties.c),
 * then takes the largest logit or draws. */
#include "sample/sample.h"
#include "fpenv.h"
#include "model/model.h"
#include "pass/scratch.h"
#include "sample/candidates.h"
#include "sample/scores.h"

#include <math.h>
#include <string.h>

/* ---- the stages ---- */

static const struct {
    const char *name;
    void (*apply)(candidates *c, const gpt2c_stage *stage);
} stage_table[] = {
#define ROW(kind, option) [GPT2C_##kind] = {#option, apply_##option},
    GPT2C_PENALTIES(ROW) GPT2C_FILTERS(ROW)
#undef ROW
};

const char *gpt2c_stage_name(gpt2c_stage_kind kind) { return stage_table[kind].name; }

static void fill_for_job(candidates *c, const gpt2c_job *job, const float *logits) {
    candidates_fill(c, logits);
    memcpy(c->history, job->prompt, (size_t)job->n_prompt * sizeof(int32_t));
    if (job->n_tokens) /* without new tokens, job->tokens may be NULL */
        memcpy(c->history + job->n_prompt, job->tokens, (size_t)job->n_tokens * sizeof(int32_t));
    c->n_prompt = job->n_prompt;
    c->n_history = job->n_prompt + job->n_tokens;
    c->noise = (noise_key){job->sampling.seed, job->sampling.sample, (uint32_t)c->n_history};
    c->mirostat_mu = job->mirostat_mu;
    c->mirostat_sum = 0.0f;
}

static void run_stages(candidates *c, const gpt2c_job *job) {
    for (int32_t s = 0; s < job->sampling.n_stages; s++) {
        const gpt2c_stage *stage = &job->sampling.stages[s];
        if (stage->kind <= GPT2C_LAST_PENALTY)
            candidates_sort_by_id(c);
        stage_table[stage->kind].apply(c, stage);
    }
}

/* Changes mu so that the surprisal of the next tokens approaches tau. The surprisal of the drawn
 * token, in bits, is computed from the distribution before mirostat removed ids. `below` is the
 * token's logit minus the largest logit. */
static void update_mirostat(gpt2c_job *job, const candidates *c, float below) {
    float log_sum = c->mirostat_sum;
    c->kernels->log(&log_sum, 1);
    float surprisal = (log_sum - below) * 1.44269504f;
    for (int32_t s = 0; s < job->sampling.n_stages; s++) {
        const gpt2c_stage *stage = &job->sampling.stages[s];
        if (stage->kind == GPT2C_MIROSTAT)
            job->mirostat_mu -= stage->other * (surprisal - stage->value);
    }
}

/* ---- the choice ---- */

/* The largest logit, logits[best], minus the second-largest logit. */
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

/* The score (logit + noise) of the drawn token minus the next best score, which is found by drawing
 * again without the token. */
static float margin_of_draw(candidates *c, int32_t token, float score) {
    int32_t index = 0;
    while (c->ids[index] != token)
        index++;
    float logit = c->logits[index], next;
    c->logits[index] = -INFINITY;
    (void)c->kernels->draw(c->logits, c->ids, c->n, &c->noise, &next);
    c->logits[index] = logit;
    return c->n > 1 ? score - next : INFINITY;
}

/* Runs the stages, and chooses a token from the candidates that are left. */
static gpt2c_status choose_candidate(candidates *c, gpt2c_job *job, int32_t *token) {
    run_stages(c, job);
    int32_t best = c->n ? candidates_argmax(c) : -1;
    if (best < 0)
        return GPT2C_NOT_A_NUMBER;
    float max = c->logits[best];
    if (isinf(max) && max < 0.0f)
        return GPT2C_NOTHING_LEFT;
    *token = c->ids[best];
    if (!job->sampling.do_sample || isinf(max))
        return GPT2C_OK;
    float score;
    *token = c->kernels->draw(c->logits, c->ids, c->n, &c->noise, &score);
    if (c->wants_margin)
        c->margin = margin_of_draw(c, *token, score);
    for (int32_t i = 0; c->mirostat_sum > 0.0f && i < c->n; i++)
        if (c->ids[i] == *token)
            update_mirostat(job, c, c->logits[i] - max);
    return GPT2C_OK;
}

int is_greedy(const gpt2c_job *job) { return !job->sampling.do_sample && !job->sampling.n_stages; }

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
    fill_for_job(c, job, logits);
    return choose_candidate(c, job, token);
}

static int is_stop(const gpt2c_job *job, int32_t token) {
    for (int32_t i = 0; i < job->n_stop_ids; i++)
        if (job->stop_ids[i] == token)
            return 1;
    return 0;
}

/* Appends a token to a job, unless it is a stop id; scores it in both cases. The last token is never
 * fed, so a job may have one token more than the context has positions. */
static void append(const gpt2c_model *m, gpt2c_job *job, int32_t token, const float *raw_logits) {
    if (job->scores.scores)
        score_token(m, raw_logits, token, &job->scores, (size_t)job->n_tokens);
    if (is_stop(job, token)) {
        job->finish = GPT2C_FINISHED_STOP;
        job->end_id = token;
        return;
    }
    job->tokens[job->n_tokens] = token;
    int n_tokens = ++job->n_tokens;
    if (n_tokens == job->max_new_tokens)
        job->finish = GPT2C_FINISHED_LENGTH;
    else if (job->n_prompt + n_tokens > m->config.n_positions)
        job->finish = GPT2C_FINISHED_CONTEXT;
}

void advance_job(const gpt2c_model *m, candidates *c, gpt2c_job *job, const float *logits,
                 const float *raw_logits) {
    int32_t token = 0;
    fp_state caller = fp_enter();
    gpt2c_status status = choose(m, c, job, logits, &token);
    if (status == GPT2C_NOT_A_NUMBER)
        job->finish = GPT2C_FINISHED_NOT_A_NUMBER;
    else if (status == GPT2C_NOTHING_LEFT)
        job->finish = GPT2C_FINISHED_NOTHING_LEFT;
    else
        append(m, job, token, raw_logits);
    fp_leave(caller);
}

void apply_stages(candidates *c, const gpt2c_job *job, float *logits) {
    fp_state caller = fp_enter();
    fill_for_job(c, job, logits);
    run_stages(c, job);
    for (int32_t id = 0; id < c->n_vocab; id++)
        logits[id] = -INFINITY;
    for (int32_t i = 0; i < c->n; i++)
        logits[c->ids[i]] = c->logits[i];
    fp_leave(caller);
}

/* ---- the same outside the running batch ---- */

gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *raw_logits) {
    if (job->finish != GPT2C_RUNNING) /* a finished job may have no room for another token */
        return GPT2C_BAD_ARGUMENT;
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
    if (!c)
        return GPT2C_NO_MEMORY;
    advance_job(model, c, job, logits, raw_logits);
    return GPT2C_OK;
}

gpt2c_status gpt2c_apply_stages(const gpt2c_model *model, gpt2c_scratch *scratch,
                                const gpt2c_job *job, float *logits) {
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
    if (!c)
        return GPT2C_NO_MEMORY;
    apply_stages(c, job, logits);
    return GPT2C_OK;
}
