/* Products of bytes with AVX-512's VNNI. */
#define DOT_VECTORS 2 /* of 32 registers, 16 hold weights and 4 scales and zero points */
#define INT8_OFFSET 128
#define INT4_SUMS_ARE_32_BITS 1

INLINE vi dot_int8(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi dot_int4(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return _mm512_madd_epi16(a, b); }
