/* The stages that depend on the distribution: temperature, and stages that remove ids. Each sees
 * the distribution that the earlier stages left.
 *
 * A probability is a weight divided by the sum of all weights. Weights are float, from the engine's
 * own exp; sums are double, added in the order of the candidates. So every machine keeps the same
 * ids. Stages that weigh the candidates change nothing if a logit is NaN or the largest is
 * infinite. */
#include "sample/candidates.h"

#include <math.h>

/* Divides the logits by the temperature. If the largest quotient overflows, keeps only the best id,
 * as greedy decoding would. */
void apply_temperature(candidates *c, const gpt2c_stage *stage) {
    float temperature = stage->value;
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

/* Tang et al. 2024, "Top-nsigma: Not All Logits Are You Need": keeps the logits that are at most n
 * standard deviations below the largest. Banned ids (-infinity) count in neither the mean nor the
 * standard deviation. */
void apply_top_n_sigma(candidates *c, const gpt2c_stage *stage) {
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
    double min = (double)c->logits[best] - (double)stage->value * sqrt(squares / n);
    for (int32_t i = 0; i < c->n; i++)
        c->weights[i] = (double)c->logits[i] >= min ? 1.0f : 0.0f;
    candidates_keep_best_or_at_least(c, 1.0);
}

void apply_top_k(candidates *c, const gpt2c_stage *stage) { candidates_keep_top(c, stage->count); }

/* Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (nucleus sampling): keeps
 * the smallest set of the most likely ids whose probabilities sum to p or more. */
void apply_top_p(candidates *c, const gpt2c_stage *stage) {
    candidates_sort_by_logit(c);
    double sum = candidates_weigh(c), reached = 0.0;
    if (sum < 0.0)
        return;
    int32_t n = 0;
    while (n < c->n && (n == 0 || reached < (double)stage->value * sum))
        reached += (double)c->weights[n++];
    c->n = n;
    c->has_indices = 0;
}

/* Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling": keeps the ids whose probability is at
 * least p times that of the most likely id, whose weight is 1. */
void apply_min_p(candidates *c, const gpt2c_stage *stage) {
    if (candidates_weigh(c) >= 0.0)
        candidates_keep_best_or_at_least(c, (double)stage->value);
}

/* The entropy in nats; `sum` is the result of candidates_weigh. */
static double entropy_of(const candidates *c, double sum) {
    float max = c->logits[candidates_argmax(c)];
    float log_sum = (float)sum;
    c->kernels->log(&log_sum, 1);
    double sum_scaled = 0.0; /* of weight * (logit - max) */
    for (int32_t i = 0; i < c->n; i++)
        if (c->weights[i] > 0.0f)
            sum_scaled += (double)c->weights[i] * (double)(c->logits[i] - max);
    return (double)log_sum - sum_scaled / sum;
}

/* Meister et al. 2022, "Locally Typical Sampling": orders the ids by the distance of their
 * surprisal, -log(probability), from the entropy, and keeps the nearest ids until their
 * probabilities sum to p or more. Ids that tie with the last one of these are kept too. */
void apply_typical_p(candidates *c, const gpt2c_stage *stage) {
    candidates_sort_by_id(c);
    double sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    double entropy = entropy_of(c, sum);
    float max = c->logits[candidates_argmax(c)], log_sum = (float)sum;
    c->kernels->log(&log_sum, 1);
    for (int32_t i = 0; i < c->n; i++) {
        double surprisal = (double)log_sum - (double)(c->logits[i] - max);
        c->keys[i] = (uint64_t)ascending_key((float)fabs(surprisal - entropy)) << 32 | (uint32_t)i;
    }
    candidates_sort_keys(c, c->n);
    double reached = 0.0;
    int32_t n_kept = 0;
    while (n_kept < c->n && (n_kept == 0 || reached < (double)stage->value * sum))
        reached += (double)c->weights[(uint32_t)c->keys[n_kept++]];
    while (n_kept < c->n && c->keys[n_kept] >> 32 == c->keys[n_kept - 1] >> 32)
        n_kept++;
    for (int32_t i = 0; i < c->n; i++)
        c->weights[i] = 0.0f;
    for (int32_t i = 0; i < n_kept; i++)
        c->weights[(uint32_t)c->keys[i]] = 1.0f;
    candidates_keep_at_least(c, 1.0);
}

/* Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing": keeps the ids whose
 * probability is at least epsilon. */
void apply_epsilon_cutoff(candidates *c, const gpt2c_stage *stage) {
    double sum = candidates_weigh(c);
    if (sum >= 0.0)
        candidates_keep_best_or_at_least(c, (double)stage->value * sum);
}

/* Eta sampling, from the same paper: keeps the ids whose probability is at least min(epsilon,
 * sqrt(epsilon) * exp(-entropy)). The bound is lower for a flatter distribution. */
void apply_eta_cutoff(candidates *c, const gpt2c_stage *stage) {
    double epsilon = (double)stage->value, sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    float inverse_perplexity = (float)-entropy_of(c, sum);
    c->kernels->exp(&inverse_perplexity, 1);
    double eta = sqrt(epsilon) * (double)inverse_perplexity;
    candidates_keep_best_or_at_least(c, (eta < epsilon ? eta : epsilon) * sum);
}

/* XTC, "exclude top choices" (p-e-w 2024, oobabooga/text-generation-webui pull request 6335): with
 * the given probability, if several ids reach the threshold, removes all of these ids except the
 * least likely one. The random number for this depends on the seed, sample and position, as noise
 * does. */
void apply_xtc(candidates *c, const gpt2c_stage *stage) {
    float probability = stage->value;
    double threshold = (double)stage->other;
    if (c->kernels->uniform(&c->noise) >= probability)
        return;
    candidates_sort_by_logit(c);
    double sum = candidates_weigh(c);
    if (sum < 0.0)
        return;
    int32_t n_likely = 0;
    while (n_likely < c->n && c->weights[n_likely] > 0.0f &&
           (double)c->weights[n_likely] >= threshold * sum)
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

/* Basu et al. 2021, "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity",
 * version 2: keeps the ids whose surprisal is at most mu bits. sample.c adapts mu after the
 * draw. */
void apply_mirostat(candidates *c, const gpt2c_stage *stage) {
    (void)stage; /* tau and eta only adapt mu */
    double sum = candidates_weigh(c);
    c->mirostat_sum = (float)sum;
    float min = -c->mirostat_mu * 0.693147181f;
    c->kernels->exp(&min, 1);
    if (sum >= 0.0)
        candidates_keep_best_or_at_least(c, (double)min * sum);
}
