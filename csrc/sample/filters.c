/* The stages that remove unlikely ids. Each sees the distribution that the stages before it left.
 *
 * Probabilities are weights over their sum: weights in float by the engine's own exp, sums in double in
 * the candidates' order, so that every machine keeps the same ids. */
#include "sample/candidates.h"

#include <math.h>

/* Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration": the fewest likeliest ids whose
 * probabilities reach p. */
static void keep_top_p(candidates *c, float p) {
    candidates_sort(c);
    double sum = candidates_weigh(c), reached = 0.0;
    if (sum < 0.0)
        return;
    int32_t n = 0;
    while (n < c->n && (n == 0 || reached < (double)p * sum))
        reached += (double)c->weights[n++];
    c->n = n;
    c->has_indices = 0;
}

/* Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling": at least p times the likeliest's. */
static void keep_min_p(candidates *c, float p) {
    if (candidates_weigh(c) >= 0.0)
        candidates_keep_best_or_at_least(c, (double)p);
}

/* Entropy in nats, given that the weights are set. */
static double entropy_of(const candidates *c, double sum) {
    float max = c->logits[candidates_argmax(c)];
    float log_sum = (float)sum;
    c->kernels->log(&log_sum, 1);
    double scaled = 0.0;
    for (int32_t i = 0; i < c->n; i++)
        if (c->weights[i] > 0.0f)
            scaled += (double)c->weights[i] * (double)(c->logits[i] - max);
    return (double)log_sum - scaled / sum;
}

/* Meister et al. 2022, "Locally Typical Sampling": those whose surprise is nearest to the entropy, as
 * many as reach p. */
static void keep_typical(candidates *c, float p) {
    candidates_unsort(c);
    double sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    double entropy = entropy_of(c, sum);
    float max = c->logits[candidates_argmax(c)], log_sum = (float)sum;
    c->kernels->log(&log_sum, 1);
    for (int32_t i = 0; i < c->n; i++) {
        double surprise = (double)log_sum - (double)(c->logits[i] - max);
        c->keys[i] = (uint64_t)ascending_key((float)fabs(surprise - entropy)) << 32 | (uint32_t)i;
    }
    candidates_sort_keys(c, c->n);
    double reached = 0.0;
    int32_t n_kept = 0;
    while (n_kept < c->n && (n_kept == 0 || reached < (double)p * sum))
        reached += (double)c->weights[(uint32_t)c->keys[n_kept++]];
    /* Of those equally near to the last one none is left out. */
    while (n_kept < c->n && c->keys[n_kept] >> 32 == c->keys[n_kept - 1] >> 32)
        n_kept++;
    for (int32_t i = 0; i < c->n; i++)
        c->weights[i] = 0.0f;
    for (int32_t i = 0; i < n_kept; i++)
        c->weights[(uint32_t)c->keys[i]] = 1.0f;
    candidates_keep_at_least(c, 1.0);
}

/* Tang et al. 2024, "Top-nsigma: Not All Logits Are You Need": logits no further below the greatest
 * than n of their standard deviations. Ids that were ruled out are none of the distribution. */
static void keep_top_n_sigma(candidates *c, float n_sigma) {
    double sum = 0.0, squares = 0.0;
    int32_t n = 0;
    for (int32_t i = 0; i < c->n; i++)
        if (!isinf(c->logits[i])) {
            sum += (double)c->logits[i];
            n++;
        }
    int32_t best = candidates_argmax(c);
    if (best < 0 || n == 0 || isinf(c->logits[best]))
        return;
    double mean = sum / n;
    for (int32_t i = 0; i < c->n; i++)
        if (!isinf(c->logits[i]))
            squares += ((double)c->logits[i] - mean) * ((double)c->logits[i] - mean);
    double min = (double)c->logits[best] - (double)n_sigma * sqrt(squares / n);
    for (int32_t i = 0; i < c->n; i++)
        c->weights[i] = (double)c->logits[i] >= min ? 1.0f : 0.0f;
    candidates_keep_best_or_at_least(c, 1.0);
}

/* Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing": at least epsilon likely. */
static void keep_epsilon(candidates *c, float epsilon) {
    double sum = candidates_weigh(c);
    if (sum >= 0.0)
        candidates_keep_best_or_at_least(c, (double)epsilon * sum);
}

/* The same paper's eta sampling: the bound falls where the distribution is flat. */
static void keep_eta(candidates *c, float epsilon) {
    double sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    float inverse_perplexity = (float)-entropy_of(c, sum);
    c->kernels->exp(&inverse_perplexity, 1);
    double eta = sqrt((double)epsilon) * (double)inverse_perplexity;
    candidates_keep_best_or_at_least(c, (eta < (double)epsilon ? eta : (double)epsilon) * sum);
}

/* "Exclude top choices" (p-e-w 2024, oobabooga/text-generation-webui pull request 6335): with a chance,
 * of the ids that reach a threshold all but the least likely go. The chance is drawn at the token's
 * position, like its noise. */
static void exclude_top_choices(candidates *c, float probability, float threshold,
                                const noise_key *key) {
    if (c->kernels->uniform(key) >= probability)
        return;
    candidates_sort(c);
    double sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    int32_t n_likely = 0;
    while (n_likely < c->n && c->weights[n_likely] > 0.0f &&
           (double)c->weights[n_likely] >= (double)threshold * sum)
        n_likely++;
    if (n_likely < 2)
        return;
    for (int32_t i = n_likely - 1; i < c->n; i++) {
        c->logits[i - n_likely + 1] = c->logits[i];
        c->ids[i - n_likely + 1] = c->ids[i];
    }
    c->n -= n_likely - 1;
    c->has_indices = 0;
}

/* Basu et al. 2021, "Mirostat", version 2: a surprise of at most mu, in bits. */
static void keep_mirostat(candidates *c, float mu) {
    double sum = candidates_weigh(c);
    float min = -mu * 0.693147181f;
    c->kernels->exp(&min, 1);
    if (sum >= 0.0)
        candidates_keep_best_or_at_least(c, (double)min * sum);
}

/* A temperature so low that the logits overflow is the greedy limit. */
static void divide(candidates *c, float temperature) {
    int32_t best = candidates_argmax(c);
    if (best < 0)
        return;
    if (isinf(c->logits[best] / temperature)) {
        c->logits[0] = c->logits[best];
        c->ids[0] = c->ids[best];
        c->n = 1;
        c->has_indices = 0;
        return;
    }
    c->kernels->divide(c->logits, c->n, temperature);
}

int filter(candidates *c, const gpt2c_stage *stage, const noise_key *key, float mirostat_mu) {
    switch (stage->kind) {
    case GPT2C_TEMPERATURE:
        divide(c, stage->value);
        return 1;
    case GPT2C_TOP_N_SIGMA:
        keep_top_n_sigma(c, stage->value);
        return 1;
    case GPT2C_TOP_K:
        candidates_keep_top(c, stage->count);
        return 1;
    case GPT2C_TOP_P:
        keep_top_p(c, stage->value);
        return 1;
    case GPT2C_MIN_P:
        keep_min_p(c, stage->value);
        return 1;
    case GPT2C_TYPICAL_P:
        keep_typical(c, stage->value);
        return 1;
    case GPT2C_EPSILON_CUTOFF:
        keep_epsilon(c, stage->value);
        return 1;
    case GPT2C_ETA_CUTOFF:
        keep_eta(c, stage->value);
        return 1;
    case GPT2C_XTC:
        exclude_top_choices(c, stage->value, stage->other, key);
        return 1;
    case GPT2C_MIROSTAT:
        keep_mirostat(c, mirostat_mu);
        return 1;
    default:
        return 0;
    }
}
