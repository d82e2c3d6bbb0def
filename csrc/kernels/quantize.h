/* Quantises weights. Every machine gives the same bytes.
 *
 * A block (kernels.h) holds the quantised weights and then, for each column, 16 bits of scale data.
 * int8: a scale in bfloat16; a weight is (byte - 128) * scale. int4: a scale with 7 bits of
 * exponent (from 2^-95) and 5 bits of mantissa, and a zero point of 4 bits; a weight is (nibble -
 * zero) * scale.
 *
 * The search for an int4 scale. With the full-range scale, range / 15, the 16 levels reach a
 * column's smallest and largest weight. A smaller scale clips the largest magnitudes, but it rounds
 * all other weights more finely. So choose_int4 tries n_scales scales, range / 15 * f for f from
 * 1.08 down to about 0.7. (f > 1 allows another zero point; a single scale has f = 1.) For each
 * scale, try_scale chooses the zero point that puts the middle of the range at nibble 7.5, and
 * rounds each weight w to a level v = nibble - zero. It then tries the least-squares scale for the
 * same levels, sum(w v) / sum(v^2). The scale and zero point with the lowest cost (defined at
 * BIAS_WEIGHT) win. On GPT-2's weights the error with 16 scales is 0.954 times the error of the
 * full-range scale; 24 scales do not reduce it further. */

/* Limits x to [low, high]; NaN becomes high. */
INLINE vf vf_clamp(vf x, float low, float high) {
    x = vf_select_less(x, vf_set1(high), x, vf_set1(high));
    return vf_select_less(vf_set1(low), x, x, vf_set1(low));
}

/* Stores the columns' 16 bits of scale data. */
INLINE void store_words(uint8_t *words, vi a) {
    int32_t word[VF_WIDTH];
    vi_store(word, a);
    for (int i = 0; i < VF_WIDTH; i++) {
        words[2 * i] = (uint8_t)word[i];
        words[2 * i + 1] = (uint8_t)((uint32_t)word[i] >> 8);
    }
}

/* Packs four values of each column, all from 0 to 255, into the column's lane. */
INLINE vi four_bytes(const vi *values) {
    vi low = vi_or(values[0], vi_shift_left(values[1], 8));
    return vi_or(low, vi_or(vi_shift_left(values[2], 16), vi_shift_left(values[3], 24)));
}

/* Stores four bytes of each column. */
INLINE void store_lanes(uint8_t *packed, int step, int column, vi a) {
    int32_t lane[VF_WIDTH];
    vi_store(lane, a);
    memcpy(packed + (step * PANEL + column) * 4, lane, sizeof lane);
}

static void quantize_int8_kernel(const float *weights, uint8_t *packed) {
    for (int c = 0; c < PANEL; c += VF_WIDTH) {
        vf max = vf_set1(0.0f);
        for (int i = 0; i < GROUP; i++) {
            vf magnitude = vf_abs(vf_load(weights + i * PANEL + c));
            max = vf_select_less(max, magnitude, magnitude, max);
        }
        vi bits = vi_round_mantissa(vi_bits(vf_div(max, vf_set1(127.0f))), 16);
        vf scale = vf_from_bits(bits);
        for (int step = 0; step < GROUP / 4; step++) {
            vi value[4];
            for (int i = 0; i < 4; i++) {
                vf ratio = vf_div(vf_load(weights + (4 * step + i) * PANEL + c), scale);
                ratio = vf_select_less(vf_set1(0.0f), scale, ratio, vf_set1(0.0f));
                value[i] = vi_round(vf_add(vf_clamp(ratio, -127.0f, 127.0f), vf_set1(128.0f)));
            }
            store_lanes(packed, step, c, four_bytes(value));
        }
        store_words(packed + GROUP * PANEL + 2 * c, vi_shift_right_unsigned(bits, 16));
    }
}

/* The range of int4 scales. */
#define INT4_MIN_SCALE 0x1p-95f
#define INT4_MAX_SCALE 0x1.f8p32f

typedef struct {
    vf scale, zero, cost;
} int4_choice;

INLINE vf int4_scale(vf x) {
    vf rounded = vf_from_bits(vi_round_mantissa(vi_bits(x), INT4_SCALE_SHIFT));
    return vf_clamp(rounded, INT4_MIN_SCALE, INT4_MAX_SCALE);
}

INLINE vf vf_round(vf x) { return vf_sub(vf_add(x, vf_set1(ROUND_MAGIC)), vf_set1(ROUND_MAGIC)); }

/* The nibble of a weight, as a float; factor is 1 / scale. */
INLINE vf int4_nibble(vf weight, vf factor, vf zero) {
    return vf_round(vf_clamp(vf_fma(weight, factor, zero), 0.0f, 15.0f));
}

INLINE void keep_better(int4_choice *best, vf scale, vf zero, vf cost) {
    best->scale = vf_select_less(cost, best->cost, scale, best->scale);
    best->zero = vf_select_less(cost, best->cost, zero, best->zero);
    best->cost = vf_select_less(cost, best->cost, cost, best->cost);
}

/* The cost of a column's errors d = w - scale * v is sum(d^2) + BIAS_WEIGHT * sum(w d)^2 /
 * sum(w^2). The second term penalises errors that scale the whole column: least squares alone
 * shrinks all weights slightly towards zero, and that does not average out over groups and layers.
 * (On a trained model the second term halved the increase in perplexity, although the errors were
 * 0.7 % larger.) */
#define BIAS_WEIGHT 8.0f

typedef struct {
    vf square; /* sum(w^2) */
    vf factor; /* BIAS_WEIGHT / square */
} weight_norm;

/* The cost of a scale, without the constant term sum(w^2). `product` is sum(w v), and `square` is
 * sum(v^2). */
INLINE vf int4_cost(const weight_norm *w, vf scale, vf product, vf square) {
    vf minus_twice_product = vf_sub(vf_set1(0.0f), vf_add(product, product));
    vf error = vf_mul(scale, vf_fma(scale, square, minus_twice_product));
    vf along = vf_sub(w->square, vf_mul(scale, product)); /* sum(w d) */
    return vf_fma(vf_mul(w->factor, along), along, error);
}

/* Tries a scale, and then the least-squares scale for the same levels. `middle` is the middle of
 * the column's range. */
INLINE void try_scale(const float *weights, const weight_norm *w, vf scale, vf middle,
                      int4_choice *best) {
    vf factor = vf_div(vf_set1(1.0f), scale);
    vf zero = vf_fma(middle, vf_sub(vf_set1(0.0f), factor), vf_set1(7.5f));
    zero = vf_round(vf_clamp(zero, 0.0f, 15.0f));
    vf product = vf_set1(0.0f), square = vf_set1(0.0f);
    for (int i = 0; i < GROUP; i++) {
        vf weight = vf_load(weights + i * PANEL);
        vf value = vf_sub(int4_nibble(weight, factor, zero), zero);
        product = vf_fma(weight, value, product);
        square = vf_fma(value, value, square);
    }
    keep_better(best, scale, zero, int4_cost(w, scale, product, square));
    vf refined = int4_scale(vf_div(product, square));
    keep_better(best, refined, zero, int4_cost(w, refined, product, square));
}

/* Chooses the scales and zero points for one group and a vector of columns: see the top of this
 * file. */
INLINE int4_choice choose_int4(const float *weights, int n_scales) {
    vf low = vf_set1(0.0f), high = vf_set1(0.0f);
    weight_norm w = {.square = vf_set1(0.0f)};
    for (int i = 0; i < GROUP; i++) {
        vf weight = vf_load(weights + i * PANEL);
        low = vf_select_less(weight, low, weight, low);
        high = vf_select_less(high, weight, weight, high);
        w.square = vf_fma(weight, weight, w.square);
    }
    /* Omits the second term where sum(w^2) is nearly 0 and therefore imprecise. */
    w.factor = vf_select_less(w.square, vf_set1(0x1p-100f), vf_set1(0.0f),
                              vf_div(vf_set1(BIAS_WEIGHT), w.square));
    vf range = vf_sub(high, low), middle = vf_mul(vf_add(high, low), vf_set1(0.5f));
    int4_choice best = {.scale = vf_set1(INT4_MIN_SCALE), .zero = vf_set1(0.0f)};
    best.cost = int4_cost(&w, best.scale, vf_set1(0.0f), vf_set1(0.0f));
    for (int i = 0; i < n_scales; i++) {
        float f = n_scales == 1 ? 1.0f : 1.08f - 0.4f * (float)i / (float)n_scales;
        try_scale(weights, &w, int4_scale(vf_mul(range, vf_set1(f / 15.0f))), middle, &best);
    }
    return best;
}

static void quantize_int4_kernel(const float *weights, int n_scales, uint8_t *packed) {
    for (int c = 0; c < PANEL; c += VF_WIDTH) {
        int4_choice best = choose_int4(weights + c, n_scales);
        vf factor = vf_div(vf_set1(1.0f), best.scale);
        for (int step = 0; step < GROUP / 8; step++) {
            vi lower[4], upper[4];
            for (int i = 0; i < 4; i++) {
                const float *weight = weights + (4 * step + i) * PANEL + c;
                lower[i] = vi_round(int4_nibble(vf_load(weight), factor, best.zero));
                weight += GROUP / 2 * PANEL;
                upper[i] = vi_round(int4_nibble(vf_load(weight), factor, best.zero));
            }
            vi nibbles = vi_or(four_bytes(lower), vi_shift_left(four_bytes(upper), 4));
            store_lanes(packed, step, c, nibbles);
        }
        vi scale = vi_shift_right_unsigned(vi_bits(best.scale), INT4_SCALE_SHIFT);
        scale = vi_sub(scale, vi_set1(INT4_SCALE_EXPONENT << (23 - INT4_SCALE_SHIFT)));
        vi word = vi_or(vi_shift_left(scale, 4), vi_round(best.zero));
        store_words(packed + GROUP / 2 * PANEL + 2 * c, word);
    }
}
