/* Causal attention of one head for one row, over the positions 0 .. n_positions - 1 of its own
 * sequence.
 *
 * A score is one FMA chain over the head's dimensions, ascending, then scaled. The soft-max is
 * two-pass: the greatest score, then exp of the differences. Its sum, and the sum of values, run
 * over blocks of POSITION_BLOCK positions, block sums added ascending; the sum of values is divided
 * once. */

/* So many chains run side by side, in registers, to hide an FMA's latency. */
#define CHAINS 4

/* scores[i ..] = scale * q . key[i ..] for n_vectors vectors of positions, of which n are real. */
INLINE void score_tile(const attention_args *a, const int n_vectors, const float *key, int n,
                       float *scores) {
    vf sum[CHAINS];
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        sum[v] = vf_set1(0.0f);
    for (int d = 0; d < a->head_dim; d++) {
        vf q = vf_set1(a->q[d]);
        const float *k = key + (size_t)d * PAGE_POSITIONS;
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sum[v] = vf_fma(q, vf_load_first(k + v * VF_WIDTH, n - v * VF_WIDTH), sum[v]);
    }
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        vf_store_first(scores + v * VF_WIDTH, vf_mul(sum[v], vf_set1(a->scale)), n - v * VF_WIDTH);
}

/* The scores of one page's n positions; a masked tail is never stored. */
static void page_scores(const attention_args *a, const float *key, int n, float *scores) {
    int i = 0;
    for (; i + CHAINS * VF_WIDTH <= n; i += CHAINS * VF_WIDTH)
        score_tile(a, CHAINS, key + i, CHAINS * VF_WIDTH, scores + i);
    for (; i < n; i += VF_WIDTH)
        score_tile(a, 1, key + i, n - i, scores + i);
}

static float greatest(const float *x, int n) {
    float m = x[0];
    for (int i = 1; i < n; i++)
        m = m < x[i] ? x[i] : m;
    return m;
}

/* Replaces scores by exp(score - m) and returns their sum. A NaN score makes its own exp and so the
 * sum a NaN, whatever m is. */
static float exponentials(float *scores, int n, float m) {
    float total = 0.0f;
    for (int block = 0; block < n; block += POSITION_BLOCK) {
        int end = n - block < POSITION_BLOCK ? n : block + POSITION_BLOCK;
        lanes sum = lanes_zero();
        for (int i = block; i < end; i += LANES)
            for (int v = 0; v < LANE_VECTORS; v++) {
                int at = i + v * VF_WIDTH;
                if (at < end) {
                    vf e = vf_exp(vf_sub(vf_load_first(scores + at, end - at), vf_set1(m)));
                    e = vf_keep_first(e, end - at);
                    vf_store_first(scores + at, e, end - at);
                    sum.part[v] = vf_add(sum.part[v], e);
                }
            }
        total = block ? total + lanes_total(&sum) : lanes_total(&sum);
    }
    return total;
}

/* out[dim ..] = sum(weight[i] * value[i][dim ..]) / divisor for n_vectors vectors of dimensions, of
 * which n are real. */
INLINE void value_tile(const attention_args *a, const int n_vectors, int dim, int n,
                       float divisor) {
    vf total[CHAINS];
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        total[v] = vf_set1(0.0f); /* replaced by the first block's sum */
    for (int block = 0; block < a->n_positions; block += POSITION_BLOCK) {
        int end = a->n_positions - block < POSITION_BLOCK ? a->n_positions : block + POSITION_BLOCK;
        vf sum[CHAINS];
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sum[v] = vf_set1(0.0f);
        for (int i = block; i < end; i++) {
            const float *page = a->pages[i / PAGE_POSITIONS] + a->values;
            const float *value = page + (size_t)(i % PAGE_POSITIONS) * (size_t)a->head_dim + dim;
            vf weight = vf_set1(a->scores[i]);
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sum[v] = vf_fma(weight, vf_load_first(value + v * VF_WIDTH, n - v * VF_WIDTH),
                                sum[v]);
        }
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            total[v] = block ? vf_add(total[v], sum[v]) : sum[v];
    }
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        vf_store_first(a->out + dim + v * VF_WIDTH, vf_div(total[v], vf_set1(divisor)),
                       n - v * VF_WIDTH);
}

static void attention_kernel(const attention_args *a) {
    for (int i = 0; i < a->n_positions; i += PAGE_POSITIONS) {
        int n = a->n_positions - i < PAGE_POSITIONS ? a->n_positions - i : PAGE_POSITIONS;
        page_scores(a, a->pages[i / PAGE_POSITIONS] + a->keys, n, a->scores + i);
    }
    float sum = exponentials(a->scores, a->n_positions, greatest(a->scores, a->n_positions));
    int dim = 0;
    for (; dim + CHAINS * VF_WIDTH <= a->head_dim; dim += CHAINS * VF_WIDTH)
        value_tile(a, CHAINS, dim, CHAINS * VF_WIDTH, sum);
    for (; dim < a->head_dim; dim += VF_WIDTH)
        value_tile(a, 1, dim, a->head_dim - dim, sum);
}
