/* The scores of tokens: log-probability, entropy, rank and the most likely alternatives; and more
 * measures of the distributions that predict them. */
#include "sample/scores.h"

#include "fpenv.h"
#include "sample/candidates.h"

/* Writes the values of a position, whose target is `token`; its logits have this log_sum_exp. */
static void measure(const gpt2c_model *m, const float *logits, float log_sum_exp, int32_t token,
                    const gpt2c_measures *measures, size_t at) {
    size_t n_vocab = (size_t)m->config.n_vocab;
    int n = m->config.n_vocab, is_nan = log_sum_exp != log_sum_exp;
    float *value = measures->values + at * (size_t)measures->n_values;
    for (int32_t i = 0; is_nan && i < measures->n_values; i++)
        value[i] = log_sum_exp;
    if (is_nan)
        return;
    if (measures->has_second_moment)
        *value++ = m->kernels->second_moment(logits, n, log_sum_exp);
    for (int32_t i = 0; i < measures->n_orders; i++)
        *value++ = m->kernels->renyi_entropy(logits, n, log_sum_exp, measures->orders[i]);
    for (int32_t i = 0; i < measures->n_sets; i++)
        *value++ =
            m->kernels->set_log_prob(logits, n, log_sum_exp, measures->sets + (size_t)i * n_vocab);
    if (measures->other_logits) {
        const float *other = measures->other_logits + at * n_vocab;
        float other_log_sum_exp, other_entropy;
        m->kernels->log_sum_exp(other, n, &other_log_sum_exp, &other_entropy);
        *value++ = m->kernels->cross_entropy(logits, n, log_sum_exp, other, other_log_sum_exp);
        *value++ = other[token] - other_log_sum_exp;
    }
}

void score_token(const gpt2c_model *m, const float *logits, int32_t token,
                 const gpt2c_scores *scores, size_t at) {
    int32_t n_vocab = m->config.n_vocab, n_top = scores->n_top;
    gpt2c_token_score *score = &scores->scores[at];
    float log_sum_exp;
    m->kernels->log_sum_exp(logits, n_vocab, &log_sum_exp, &score->entropy);
    score->log_prob = logits[token] - log_sum_exp;
    score->rank = m->kernels->rank(logits, n_vocab, token);
    int32_t ids[GPT2C_MAX_TOP];
    top_ids(logits, n_vocab, n_top, ids);
    for (int32_t i = 0; i < n_top; i++) {
        int32_t id = ids[i];
        float log_prob = id == NOT_FOUND ? 0.0f : logits[id] - log_sum_exp;
        scores->top[at * (size_t)n_top + (size_t)i] = (gpt2c_alternative){log_prob, id};
    }
    if (scores->measures)
        measure(m, logits, log_sum_exp, token, scores->measures, at);
}

void gpt2c_log_probs(const gpt2c_model *model, float *logits, int32_t n_rows) {
    int32_t n_vocab = model->config.n_vocab;
    fp_state caller = fp_enter();
    for (int32_t r = 0; r < n_rows; r++) {
        float *row = logits + (size_t)r * (size_t)n_vocab;
        float log_sum_exp, entropy;
        model->kernels->log_sum_exp(row, n_vocab, &log_sum_exp, &entropy);
        for (int32_t id = 0; id < n_vocab; id++)
            row[id] -= log_sum_exp;
    }
    fp_leave(caller);
}
