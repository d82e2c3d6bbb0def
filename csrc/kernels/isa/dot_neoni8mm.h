/* Products of bytes with the instructions of FEAT_I8MM: usdot for one row, usmmla for two. Both
 * take unsigned weights. So, as with VNNI, the offset of 128 is not subtracted from each weight,
 * but corrected once per sum. */
#define DOT_VECTORS 2 /* of 32 registers, 16 hold weights, and 4 hold scales and zero points */
#define INT8_OFFSET 128
#define INT4_SUMS_ARE_32_BITS 1

#if defined(__clang__) && __clang_major__ < 16
/* This clang declares the intrinsics only if the whole file is compiled for such CPUs. */
INLINE vi dot_int8(vi sum, vi w, vi x) {
    __asm__("usdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}

INLINE vi dot_pair(vi sum, vi w, vi x) {
    __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
}
#else
INLINE vi dot_int8(vi sum, vi w, vi x) {
    return vusdotq_s32(sum, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(x));
}

INLINE vi dot_pair(vi sum, vi w, vi x) {
    return vusmmlaq_s32(sum, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(x));
}
#endif

INLINE vi dot_int4(vi sum, vi w, vi x) { return dot_int8(sum, w, x); }
INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return vmulq_s32(a, b); }

#define HAS_DOT_PAIRS

INLINE void interleave_columns(vi *a, vi *b) {
    vi first = vzip1q_s32(*a, *b);
    *b = vzip2q_s32(*a, *b);
    *a = first;
}

INLINE void load_row_pair(const int8_t *first, const int8_t *second, vi x[GROUP / 8]) {
    UNROLL
    for (int s = 0; s < GROUP / 8; s += 2) {
        int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(first + 8 * s));
        int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(second + 8 * s));
        x[s] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
        x[s + 1] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
    }
}

INLINE vi alternate(int32_t a, int32_t b) { return vzip1q_s32(vdupq_n_s32(a), vdupq_n_s32(b)); }

INLINE void split_rows(vi low, vi high, vi *first, vi *second) {
    *first = vuzp1q_s32(low, high);
    *second = vuzp2q_s32(low, high);
}
