/* Weights in 16 bits: float16 or bfloat16. A matrix is stored in 16 bits only if every weight fits
 * exactly, so its products have the same bits as with weights in float32. */

/* Returns x as float16, in the lower half of each lane. If a value does not fit exactly, its lane
 * is undefined. */
INLINE vi to_float16(vf x) {
    vi bits = vi_bits(x), magnitude = vi_and(bits, vi_set1(0x7fffffff));
    vi sign = vi_and(vi_shift_right_unsigned(bits, 16), vi_set1(0x8000));
    vi normal = vi_shift_right_unsigned(vi_sub(magnitude, vi_set1(112 << 23)), 13);
    vf absolute = vf_from_bits(magnitude);
    /* Floats from 0.5 to 1 are 2^-24 apart, as float16's subnormals are. So the bits of |x| + 0.5,
     * minus those of 0.5, are the bits of the subnormal. */
    vi subnormal = vi_sub(vi_bits(vf_add(absolute, vf_set1(0.5f))), vi_bits(vf_set1(0.5f)));
    vf half =
        vf_select_less(absolute, vf_set1(0x1p-14f), vf_from_bits(subnormal), vf_from_bits(normal));
    const vi infinity = vi_set1(0x7f800000);
    return vi_or(sign, vi_select_equal(magnitude, infinity, vi_set1(0x7c00), vi_bits(half)));
}

INLINE vf load_bfloat16(const uint16_t *p) {
    return vf_from_bits(vi_shift_left(vi_load_u16(p), 16));
}

/* Loads VF_WIDTH weights of the given dtype, from index i on. */
INLINE vf load_weights(const int dtype, const void *weights, size_t i) {
    if (dtype == GPT2C_FLOAT16)
        return vf_load_float16((const uint16_t *)weights + i);
    if (dtype == GPT2C_BFLOAT16)
        return load_bfloat16((const uint16_t *)weights + i);
    return vf_load((const float *)weights + i);
}

/* Stores PANEL floats in 16 bits. Returns zero in all lanes if and only if all values fit. */
INLINE vi narrow_row(const float *from, int dtype, uint16_t *to) {
    vi all_lost = vi_set1(0);
    for (int c = 0; c < PANEL; c += VF_WIDTH) {
        vf x = vf_load(from + c);
        vi lost;
        if (dtype == GPT2C_BFLOAT16) {
            vi_store_u16(to + c, vi_shift_right_unsigned(vi_bits(x), 16));
            lost = vi_and(vi_bits(x), vi_set1(0xffff));
        } else {
            vi_store_u16(to + c, to_float16(x));
            lost = vi_xor(vi_bits(vf_load_float16(to + c)), vi_bits(x));
        }
        all_lost = vi_or(all_lost, lost);
    }
    return all_lost;
}

static int narrow_kernel(const float *rows, size_t stride, int n_rows, int n_columns, int dtype,
                         uint16_t *to) {
    float padded[PANEL] = {0.0f};
    uint16_t narrow[PANEL];
    vi lost = vi_set1(0);
    for (int r = 0; r < n_rows; r++) {
        const float *row = rows + (size_t)r * stride;
        if (n_columns == PANEL) {
            lost = vi_or(lost, narrow_row(row, dtype, to + r * PANEL));
            continue;
        }
        memcpy(padded, row, (size_t)n_columns * sizeof *padded);
        lost = vi_or(lost, narrow_row(padded, dtype, narrow));
        memcpy(to + r * PANEL, narrow, (size_t)n_columns * sizeof *narrow);
    }
    /* With its halves joined no lane is negative, so the max is zero only if all lanes are. */
    vi halves = vi_or(vi_shift_right_unsigned(lost, 16), vi_and(lost, vi_set1(0xffff)));
    return vi_reduce_max(halves) == 0;
}

static void widen_kernel(const void *weights, size_t n, int dtype, float *to) {
    if (dtype == GPT2C_FLOAT16)
        for (size_t i = 0; i < n; i += VF_WIDTH)
            vf_store(to + i, load_weights(GPT2C_FLOAT16, weights, i));
    else
        for (size_t i = 0; i < n; i += VF_WIDTH)
            vf_store(to + i, load_weights(GPT2C_BFLOAT16, weights, i));
}
