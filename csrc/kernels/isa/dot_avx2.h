/* Products of bytes with AVX2. The only instruction for this, maddubs, multiplies unsigned by
 * signed bytes and saturates at 16 bits. So its unsigned operand is |w| <= 127 in dot_int8, and a
 * nibble in dot_int4. */
#define DOT_VECTORS 1 /* the weights take 8 of the 16 registers */
#define INT8_OFFSET 0
#define INT4_SUMS_ARE_32_BITS 0

/* Multiplies |w| by x with the sign of w. A sum of two products is at most 2 * 127 * 127. */
INLINE vi dot_int8(vi sum, vi w, vi x) {
    vi value = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(value), _mm256_sign_epi8(x, value));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Each lane holds two sums of 16 bits: for a group, each is at most 8 * 2 * 15 * 127. */
INLINE vi dot_int4(vi sum, vi w, vi x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }

INLINE vi int4_sum(vi sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
INLINE vi mul_zero_point(vi a, vi b) { return _mm256_madd_epi16(a, b); }
