/* More measures of the distribution p that logits give: the second moment of log p, Renyi
 * entropies, the log-probability of a set of ids, and the cross-entropy with another distribution.
 *
 * Each takes the row's log_sum_exp (log_prob.h), which must not be NaN, so log p is logit -
 * log_sum_exp. As there, sums run over tiles of TILE_IDS ids in 16 lanes, and the sums of the tiles
 * are added ascending. */

typedef enum { MOMENT_TERM, POWER_TERM, SET_TERM, CROSS_TERM } term_kind;

typedef struct {
    const float *logits;
    const float *other; /* set terms: 0 or -infinity, added to each logit; cross terms: logits */
    float shift;        /* subtracted from each logit */
    float factor;       /* power terms: multiplies the result */
    float other_shift;  /* cross terms: subtracted from each element of `other` */
} term_args;

/* Returns the terms of the ids from `at`, of which there are n; the other lanes are 0. */
INLINE vf terms_at(const term_args *a, term_kind kind, int at, int n) {
    vf zero = vf_set1(0.0f), x = vf_load_first(a->logits + at, n), y, e;
    if (kind == SET_TERM)
        x = vf_add(x, vf_load_first(a->other + at, n));
    y = vf_sub(x, vf_set1(a->shift));
    if (kind == POWER_TERM)
        y = vf_mul(y, vf_set1(a->factor));
    e = vf_keep_first(vf_exp(y), n);
    if (kind == POWER_TERM || kind == SET_TERM)
        return e;
    /* 0 * -infinity would be NaN. */
    vf value = kind == MOMENT_TERM
                   ? vf_mul(y, y)
                   : vf_sub(vf_load_first(a->other + at, n), vf_set1(a->other_shift));
    return vf_mul(e, vf_select_less(y, vf_set1(MIN_EXP_ARGUMENT), zero, value));
}

INLINE float sum_of_terms(const term_args *a, term_kind kind, int n) {
    float total = 0.0f;
    for (int begin = 0; begin < n; begin += TILE_IDS) {
        int end = begin + TILE_IDS < n ? begin + TILE_IDS : n;
        lanes sum = lanes_zero();
        for (int i = begin; i < end; i += LANES)
            for (int v = 0; v < LANE_VECTORS; v++) {
                int at = i + v * VF_WIDTH;
                if (at < end)
                    sum.part[v] = vf_add(sum.part[v], terms_at(a, kind, at, end - at));
            }
        total += lanes_total(&sum);
    }
    return total;
}

/* The sum of p * (log p)^2. */
static float second_moment_kernel(const float *logits, int n, float log_sum_exp) {
    term_args a = {.logits = logits, .shift = log_sum_exp};
    return sum_of_terms(&a, MOMENT_TERM, n);
}

/* log(sum of p^order) / (1 - order), for an order above 0 other than 1; -log of the largest p for
 * an infinite order. */
static float renyi_entropy_kernel(const float *logits, int n, float log_sum_exp, float order) {
    term_args a = {.logits = logits, .shift = row_max(logits, n), .factor = order};
    if (order == __builtin_inff())
        return log_sum_exp - a.shift;
    float log_sum = log_scalar(sum_of_terms(&a, POWER_TERM, n));
    return __builtin_fmaf(order, a.shift - log_sum_exp, log_sum) / (1.0f - order);
}

/* The largest of logits[i] + added[i]. */
static float max_of_set(const float *logits, const float *added, int n) {
    vf max = vf_set1(-__builtin_inff());
    float result = -__builtin_inff(), lane[VF_WIDTH];
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH)
        max = vf_max(vf_add(vf_load(logits + i), vf_load(added + i)), max);
    for (; i < n; i++)
        result = logits[i] + added[i] > result ? logits[i] + added[i] : result;
    vf_store(lane, max);
    for (i = 0; i < VF_WIDTH; i++)
        result = lane[i] > result ? lane[i] : result;
    return result;
}

/* log of the sum of p over the ids whose `added` is 0; it is -infinity for the others. */
static float set_log_prob_kernel(const float *logits, int n, float log_sum_exp,
                                 const float *added) {
    term_args a = {.logits = logits, .other = added, .shift = max_of_set(logits, added, n)};
    if (a.shift == -__builtin_inff())
        return a.shift;
    return (a.shift - log_sum_exp) + log_scalar(sum_of_terms(&a, SET_TERM, n));
}

/* Minus the sum of p * log q, where log q is other - other_log_sum_exp. */
static float cross_entropy_kernel(const float *logits, int n, float log_sum_exp, const float *other,
                                  float other_log_sum_exp) {
    term_args a = {
        .logits = logits, .other = other, .shift = log_sum_exp, .other_shift = other_log_sum_exp};
    return -sum_of_terms(&a, CROSS_TERM, n);
}
