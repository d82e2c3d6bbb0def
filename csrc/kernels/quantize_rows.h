/* Quantises rows to int8, group by group.
 *
 * The scale is the largest magnitude / 127; a value is x * (1 / scale), rounded to nearest even. If
 * the scale would be denormal, the scale and the values are 0; if an element is not finite, the
 * scale is NaN. */

#define GROUP_VECTORS (GROUP / VF_WIDTH)

/* Quantises one group of row r. */
INLINE void quantize_group(const vf part[GROUP_VECTORS], const quantized_rows *out, int group,
                           int r) {
    int8_t *values = out->values + (size_t)group * out->values_stride + (size_t)r * GROUP;
    const size_t at = (size_t)group * out->stride + (size_t)r;
    vi max = vi_set1(0); /* as bits, where NaN is above all numbers */
    UNROLL
    for (int v = 0; v < GROUP_VECTORS; v++)
        max = vi_max(max, vi_bits(vf_abs(part[v])));
    int32_t bits = vi_reduce_max(max);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    float scale = magnitude / 127.0f;
    if (bits >= 0x7f800000 || scale < FLT_MIN) {
        out->scales[at] = bits >= 0x7f800000 ? NAN : 0.0f;
        out->minus_sums[at] = 0;
        memset(values, 0, GROUP);
        return;
    }
    vf factor = vf_set1(1.0f / scale);
    vi total = vi_set1(0);
    UNROLL
    for (int v = 0; v < GROUP_VECTORS; v++) {
        vi nearest = vi_round(vf_mul(part[v], factor));
        total = vi_sub(total, nearest);
        vi_store_i8(values + v * VF_WIDTH, nearest);
    }
    out->scales[at] = scale;
    out->minus_sums[at] = vi_reduce_add(total);
}

static inline void quantize_rows_kernel(const float *x, size_t x_stride, int begin, int end, int k,
                                        const quantized_rows *out) {
    for (int r = begin; r < end; r++)
        for (int g = 0; g * GROUP < k; g++) {
            const float *group = x + (size_t)r * x_stride + (size_t)g * GROUP;
            int n = k - g * GROUP;
            vf part[GROUP_VECTORS];
            UNROLL
            for (int v = 0; v < GROUP_VECTORS; v++)
                part[v] = n >= GROUP ? vf_load(group + v * VF_WIDTH)
                                     : vf_load_first(group + v * VF_WIDTH, n - v * VF_WIDTH);
            quantize_group(part, out, g, r);
        }
}
