/* Causal attention of one head for one row, over the positions 0 .. n_positions - 1 of its own
 * sequence.
 *
 * A score is one FMA chain over the head's dimensions, ascending, then scaled. The soft-max is
 * two-pass: the greatest score, then exp of the differences. Its sum, and the sum of values, run
 * over blocks of POSITION_BLOCK positions, block sums added ascending; the sum of values is divided
 * once. */

/* scores[i] = scale * q . key[i] for the positions of one page; a masked tail is never stored. */
static void page_scores(const attention_args *a, const float *key, int n, float *scores) {
    for (int i = 0; i < n; i += VF_WIDTH) {
        vf sum = vf_set1(0.0f);
        for (int d = 0; d < a->head_dim; d++) {
            vf k = vf_load_first(key + (size_t)d * PAGE_POSITIONS + i, n - i);
            sum = vf_fma(vf_set1(a->q[d]), k, sum);
        }
        vf_store_first(scores + i, vf_mul(sum, vf_set1(a->scale)), n - i);
    }
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

/* One vector of dimensions of sum(weight[i] * value[i]) / divisor. */
INLINE vf weighted_values(const attention_args *a, int dim, float divisor) {
    int n_lanes = a->head_dim - dim;
    vf total = vf_set1(0.0f);
    for (int block = 0; block < a->n_positions; block += POSITION_BLOCK) {
        int end = a->n_positions - block < POSITION_BLOCK ? a->n_positions : block + POSITION_BLOCK;
        vf sum = vf_set1(0.0f);
        for (int i = block; i < end; i++) {
            const float *page = a->pages[i / PAGE_POSITIONS] + a->values;
            const float *value = page + (size_t)(i % PAGE_POSITIONS) * (size_t)a->head_dim + dim;
            sum = vf_fma(vf_set1(a->scores[i]), vf_load_first(value, n_lanes), sum);
        }
        total = block ? vf_add(total, sum) : sum;
    }
    return vf_div(total, vf_set1(divisor));
}

static void attention_kernel(const attention_args *a) {
    for (int i = 0; i < a->n_positions; i += PAGE_POSITIONS) {
        int n = a->n_positions - i < PAGE_POSITIONS ? a->n_positions - i : PAGE_POSITIONS;
        page_scores(a, a->pages[i / PAGE_POSITIONS] + a->keys, n, a->scores + i);
    }
    float sum = exponentials(a->scores, a->n_positions, greatest(a->scores, a->n_positions));
    for (int dim = 0; dim < a->head_dim; dim += VF_WIDTH)
        vf_store_first(a->out + dim, weighted_values(a, dim, sum), a->head_dim - dim);
}
