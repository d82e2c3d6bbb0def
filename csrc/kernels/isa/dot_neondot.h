/* Products of bytes with NEON's dot product instructions. */
#define DOT_VECTORS 2 /* the weights take 16 of the 32 registers */
#define INT8_OFFSET 0
#define INT4_SUMS_ARE_32_BITS 1

#if defined(__clang__) && __clang_major__ < 16
/* This clang declares the intrinsic only in a build for CPUs that all have the instruction. */
INLINE vi dot_signed(vi sum, vi w, vi x) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}
#else
INLINE vi dot_signed(vi sum, vi w, vi x) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
#endif

INLINE vi dot_int8(vi sum, vi w, vi x) {
    return dot_signed(sum, veorq_s32(w, vdupq_n_s32((int32_t)0x80808080)), x);
}

INLINE vi dot_int4(vi sum, vi w, vi x) { return dot_signed(sum, w, x); }
INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return vmulq_s32(a, b); }
