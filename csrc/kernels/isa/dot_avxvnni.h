/* Products of bytes with AVX-VNNI. */
#define DOT_VECTORS 1 /* the weights take 8 of the 16 registers */
#define INT8_OFFSET 128
#define INT4_SUMS_ARE_32_BITS 1

INLINE vi dot_int8(vi sum, vi w, vi x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
INLINE vi dot_int4(vi sum, vi w, vi x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return _mm256_madd_epi16(a, b); }
