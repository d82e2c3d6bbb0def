/* Products of bytes with NEON, widened to 16 bits. */
#define DOT_VECTORS 2 /* the weights take 16 of the 32 registers */
#define INT8_OFFSET 0
#define INT4_SUMS_ARE_32_BITS 1

INLINE vi dot_signed(vi sum, int8x16_t w, int8x16_t x) {
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    int16x8_t high = vmull_high_s8(w, x);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

INLINE vi dot_int8(vi sum, vi w, vi x) {
    int8x16_t value = veorq_s8(vreinterpretq_s8_s32(w), vdupq_n_s8(-128));
    return dot_signed(sum, value, vreinterpretq_s8_s32(x));
}

INLINE vi dot_int4(vi sum, vi w, vi x) {
    return dot_signed(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}

INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return vmulq_s32(a, b); }
