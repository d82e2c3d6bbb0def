/* Chooses a token from logits: the id with the largest logit, or a random draw.
 *
 * A draw uses the Gumbel-max trick: the id with the largest logit + Gumbel noise is a draw from the
 * softmax. The noise is a function of the seed, the sample, the position and the id, made by a
 * counter-based generator. So a draw does not depend on other sequences of the batch, and it needs
 * no sum over the logits. */

/* Finds the tile with the largest logit first, so that only this tile is searched for the id. */
static int arg_max_kernel(const float *logits, int n) {
    const int tile = 1024;
    float best = 0.0f;
    int best_begin = -1;
    for (int begin = 0; begin < n; begin += tile) {
        float max = row_max(logits + begin, n - begin < tile ? n - begin : tile);
        if (max != max)
            return -1;
        if (best_begin < 0 || max > best) {
            best = max;
            best_begin = begin;
        }
    }
    int id = best_begin;
    while (logits[id] != best)
        id++;
    return id;
}

/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random
 * words from a counter and a key. */
INLINE void philox(vi counter[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        vi upper0, upper2;
        vi lower0 = vi_mul_wide_unsigned(counter[0], vi_set1((int32_t)0xD2511F53u), &upper0);
        vi lower2 = vi_mul_wide_unsigned(counter[2], vi_set1((int32_t)0xCD9E8D57u), &upper2);
        counter[0] = vi_xor(vi_xor(upper2, counter[1]), vi_set1((int32_t)key0));
        counter[1] = lower2;
        counter[2] = vi_xor(vi_xor(upper0, counter[3]), vi_set1((int32_t)key1));
        counter[3] = lower0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* The random word of a token id: of the four words that philox makes from the counter (id / 4,
 * position, sample, 0), the one with the index id mod 4. The 0 stands for noise; uniform_kernel
 * uses a 1. */
INLINE vi random_word(const noise_key *key, vi id) {
    vi counter[4] = {vi_shift_right_unsigned(id, 2), vi_set1((int32_t)key->position),
                     vi_set1((int32_t)key->sample), vi_set1(0)};
    philox(counter, (uint32_t)key->seed, (uint32_t)(key->seed >> 32));
    vi which = vi_and(id, vi_set1(3)), word = counter[0];
    for (int w = 1; w < 4; w++)
        word = vi_select_equal(which, vi_set1(w), counter[w], word);
    return word;
}

/* Converts unsigned integers to float, rounded once, because both 16-bit halves are exact. */
INLINE vf vf_from_unsigned(vi r) {
    vf upper = vf_from_int(vi_shift_right_unsigned(r, 16));
    return vf_fma(upper, vf_set1(65536.0f), vf_from_int(vi_and(r, vi_set1(0xffff))));
}

/* -log(u) for u = (r + 1/2) / 2^32. Near u = 1 the logarithm is computed from 1 - u, which keeps
 * all 32 bits of r: there the noise is largest, and the largest noise decides most draws. */
INLINE vf exponential_variate(vi r) {
    const vf unit = vf_set1(2.32830644e-10f), half = vf_set1(0.5f); /* 2^-32 */
    vf u = vf_mul(vf_add(vf_from_unsigned(r), half), unit);
    vf one_minus_u = vf_mul(vf_add(vf_from_unsigned(vi_xor(r, vi_set1(-1))), half), unit);
    vf far_from_one = vf_log(u);
    vf near_one = log_of_one_plus(vf_sub(vf_set1(0.0f), one_minus_u));
    vf log_u = vf_select_less(one_minus_u, vf_set1(0.25f), near_one, far_from_one);
    return vf_sub(vf_set1(0.0f), log_u);
}

/* Returns logit - log(-log u). */
INLINE vf add_gumbel_noise(vf logit, vi id, const noise_key *key) {
    vf exponential = exponential_variate(random_word(key, id));
    return vf_add(logit, vf_sub(vf_set1(0.0f), vf_log(exponential)));
}

/* The best score of each lane so far, and its id as a float, which is exact below 2^24. */
typedef struct {
    vf score, id;
} best_draws;

INLINE void keep_best(best_draws *best, vf logit, vi id, const noise_key *key) {
    vf score = add_gumbel_noise(logit, id, key);
    vf float_id = vf_from_int(id);
    vf lower = vf_select_less(float_id, best->id, float_id, best->id);
    vf otherwise = vf_select_less(score, best->score, best->id, lower);
    best->id = vf_select_less(best->score, score, float_id, otherwise);
    best->score = vf_select_less(best->score, score, score, best->score);
}

/* Noise is at least -log(32 log 2 + log 2) = -3.13 and at most log(2^33) = 22.9. An id whose logit
 * is NOISE_RANGE below the largest cannot win, so a tile of only such ids is skipped. */
#define NOISE_RANGE 26.5f
#define DRAW_TILE 64

static void draw_from_tile(best_draws *best, const float *logits, const int32_t *ids, int n,
                           const noise_key *key) {
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH)
        keep_best(best, vf_load(logits + i), vi_load(ids + i), key);
    if (i == n)
        return;
    /* The last vector is incomplete. Copies of its first element fill the other lanes. */
    float last_logits[VF_WIDTH];
    int32_t last_ids[VF_WIDTH];
    for (int j = 0; j < VF_WIDTH; j++) {
        int at = i + j < n ? i + j : i;
        last_logits[j] = logits[at];
        last_ids[j] = ids[at];
    }
    keep_best(best, vf_load(last_logits), vi_load(last_ids), key);
}

/* Requires that no logit is NaN and the largest is finite. -infinity never wins. */
static int draw_kernel(const float *logits, const int32_t *ids, int n, const noise_key *key,
                       float *best_score) {
    const float lowest = -3.402823466e38f;
    float threshold = row_max(logits, n) - NOISE_RANGE;
    best_draws best = {vf_set1(lowest), vf_set1(16777216.0f)};
    for (int i = 0; i < n; i += DRAW_TILE) {
        int count = n - i < DRAW_TILE ? n - i : DRAW_TILE;
        if (row_max(logits + i, count) >= threshold)
            draw_from_tile(&best, logits + i, ids + i, count, key);
    }
    float scores[VF_WIDTH], float_ids[VF_WIDTH];
    vf_store(scores, best.score);
    vf_store(float_ids, best.id);
    int first = 0;
    for (int lane = 1; lane < VF_WIDTH; lane++)
        if (scores[lane] > scores[first] ||
            (scores[lane] == scores[first] && float_ids[lane] < float_ids[first]))
            first = lane;
    *best_score = scores[first];
    return (int)float_ids[first];
}

/* Returns a uniform number in [0, 1): the upper 24 bits of the first word that philox makes from
 * the counter (0, position, sample, 1), divided by 2^24. */
static float uniform_kernel(const noise_key *key) {
    vi counter[4] = {vi_set1(0), vi_set1((int32_t)key->position), vi_set1((int32_t)key->sample),
                     vi_set1(1)};
    philox(counter, (uint32_t)key->seed, (uint32_t)(key->seed >> 32));
    float lane[VF_WIDTH];
    vf_store(lane, vf_mul(vf_from_unsigned(vi_shift_right_unsigned(counter[0], 8)),
                          vf_set1(5.96046448e-8f))); /* 2^-24 */
    return lane[0];
}
