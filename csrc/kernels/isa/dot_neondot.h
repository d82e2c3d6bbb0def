/* Products of bytes with NEON's dot product instructions. */
#define DOT_VECTORS 2 /* the weights take 16 of the 32 registers */
#define INT8_OFFSET 0
#define INT4_SUMS_ARE_32_BITS 1

INLINE vi dot_int8(vi sum, vi w, vi x) {
    int8x16_t value = veorq_s8(vreinterpretq_s8_s32(w), vdupq_n_s8(-128));
    return vdotq_s32(sum, value, vreinterpretq_s8_s32(x));
}

INLINE vi dot_int4(vi sum, vi w, vi x) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}

INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return vmulq_s32(a, b); }
