/* Log-probabilities, entropy and rank from logits.
 *
 * The sums run over tiles of TILE_IDS ids. In a tile whose largest logit is m, each logit x has the
 * weight e = exp(x - m). The sums of e and of e * (x - m) are added in 16 lanes. Tiles are merged
 * ascending. */

#define TILE_IDS 1024

/* exp of a smaller argument is zero. Such terms are left out: 0 * -infinity would be NaN. */
#define MIN_EXP_ARGUMENT -104.0f

typedef struct {
    float max;        /* m */
    float sum;        /* of e */
    float sum_scaled; /* of e * (x - m) */
} softmax_sums;

INLINE float exp_scalar(float x) {
    float lane[VF_WIDTH];
    vf_store(lane, vf_exp(vf_set1(x)));
    return lane[0];
}

INLINE float log_scalar(float x) {
    float lane[VF_WIDTH];
    vf_store(lane, vf_log(vf_set1(x)));
    return lane[0];
}

static softmax_sums sums_of_tile(const float *logits, int n) {
    /* If a logit is NaN, the sum is NaN. */
    softmax_sums tile = {row_max(logits, n), 0.0f, 0.0f};
    if (tile.max == -__builtin_inff())
        return tile;
    lanes sum = lanes_zero(), scaled = lanes_zero();
    for (int i = 0; i < n; i += LANES)
        for (int v = 0; v < LANE_VECTORS; v++) {
            int at = i + v * VF_WIDTH;
            if (at < n) {
                vf below = vf_sub(vf_load_first(logits + at, n - at), vf_set1(tile.max));
                vf e = vf_keep_first(vf_exp(below), n - at);
                below = vf_select_less(below, vf_set1(MIN_EXP_ARGUMENT), vf_set1(0.0f), below);
                below = vf_keep_first(below, n - at);
                sum.part[v] = vf_add(sum.part[v], e);
                scaled.part[v] = vf_fma(e, below, scaled.part[v]);
            }
        }
    tile.sum = lanes_total(&sum);
    tile.sum_scaled = lanes_total(&scaled);
    return tile;
}

/* Rescales b's sums to a's max and adds them to a's sums. b's max is at most a's. */
static softmax_sums merge_smaller(softmax_sums a, softmax_sums b) {
    if (b.sum == 0.0f)
        return a; /* b's largest logit is -infinity */
    float below = b.max - a.max;
    if (below < MIN_EXP_ARGUMENT)
        return a;
    float factor = exp_scalar(below);
    a.sum = __builtin_fmaf(b.sum, factor, a.sum);
    a.sum_scaled = __builtin_fmaf(__builtin_fmaf(b.sum, below, b.sum_scaled), factor, a.sum_scaled);
    return a;
}

static softmax_sums sums_of_row(const float *logits, int n) {
    softmax_sums all = sums_of_tile(logits, n < TILE_IDS ? n : TILE_IDS);
    for (int begin = TILE_IDS; begin < n; begin += TILE_IDS) {
        int length = n - begin < TILE_IDS ? n - begin : TILE_IDS;
        softmax_sums tile = sums_of_tile(logits + begin, length);
        all = tile.max > all.max ? merge_smaller(tile, all) : merge_smaller(all, tile);
    }
    return all;
}

/* Computes the entropy in nats, and log_sum_exp = M + log S, where M is the merged max and S the
 * merged sum. log p(id) is logit - log_sum_exp. Both results are NaN if a logit is NaN or the
 * largest logit is infinite. */
static void log_sum_exp_kernel(const float *logits, int n, float *log_sum_exp, float *entropy) {
    softmax_sums all = sums_of_row(logits, n);
    if (!(all.sum > 0.0f) || all.max - all.max != 0.0f) {
        *log_sum_exp = *entropy = __builtin_nanf("");
        return;
    }
    float log_sum = log_scalar(all.sum);
    *log_sum_exp = all.max + log_sum;
    *entropy = log_sum - all.sum_scaled / all.sum;
}

/* Counts the logits greater than x, or with or_equal greater than or equal to x. */
static int count_above(const float *logits, int n, float x, int or_equal) {
    vf bound = vf_set1(x), one = vf_set1(1.0f), zero = vf_set1(0.0f), count = zero;
    float total = 0.0f; /* exact below 2^24 */
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) {
        vf loaded = vf_load(logits + i);
        count = vf_add(count, or_equal ? vf_select_less(loaded, bound, zero, one)
                                       : vf_select_less(bound, loaded, one, zero));
    }
    for (; i < n; i++)
        total += or_equal ? logits[i] >= x : logits[i] > x;
    float lane[VF_WIDTH];
    vf_store(lane, count);
    for (i = 0; i < VF_WIDTH; i++)
        total += lane[i];
    return (int)total;
}

/* 1 for the most likely id. Of equal logits the lower id comes first. */
static int rank_kernel(const float *logits, int n, int id) {
    return 1 + count_above(logits, id, logits[id], 1) +
           count_above(logits + id + 1, n - id - 1, logits[id], 0);
}
