/* Eight floats in an AVX2 register, with FMA and F16C. vec.h defines the operations. */
#include <immintrin.h>
#include <stdint.h>

#define VF_WIDTH 8
/* 6 x 2 accumulators, 2 weights and a broadcast: 15 of 16 registers. */
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define ROW_VECTORS 4 /* vectors per tile when the tile has one row */

typedef __m256 vf;
typedef __m256i vi;

/* All ones in the first n lanes. */
INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_load_first(const float *p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
INLINE void vf_store_first(float *p, vf a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
INLINE vf vf_keep_first(vf a, int n) {
    return _mm256_and_ps(a, _mm256_castsi256_ps(first_lanes(n)));
}
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE float vf_reduce_add(vf a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_select_less(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vf vf_propagate_nan(vf a, vf x) {
    return _mm256_blendv_ps(x, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

INLINE vi vi_bits(vf a) { return _mm256_castps_si256(a); }
INLINE vf vf_from_bits(vi a) { return _mm256_castsi256_ps(a); }
INLINE vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
INLINE vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vi vi_select_equal(vi a, vi b, vi x, vi y) {
    return _mm256_blendv_epi8(y, x, _mm256_cmpeq_epi32(a, b));
}
INLINE vi vi_shift_right_unsigned(vi a, int n) { return _mm256_srli_epi32(a, n); }
INLINE vi vi_mul_wide_unsigned(vi a, vi b, vi *upper) {
    vi even = _mm256_mul_epu32(a, b);
    vi odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    *upper = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
INLINE vi vi_shift_right(vi a, int n) { return _mm256_srai_epi32(a, n); }
INLINE vi vi_shift_left(vi a, int n) { return _mm256_slli_epi32(a, n); }
INLINE vf vf_from_int(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
INLINE int32_t vi_reduce_max(vi a) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
}
INLINE int32_t vi_reduce_add(vi a) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half);
}
INLINE void vi_store(int32_t *p, vi a) { _mm256_storeu_si256((__m256i *)(void *)p, a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packs_epi16(words, words));
}
INLINE void vi_store_u16(uint16_t *p, vi a) {
    vi lower = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(lower), _mm256_extracti128_si256(lower, 1));
    _mm_storeu_si128((__m128i *)(void *)p, words);
}
INLINE vi vi_load_u16(const uint16_t *p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE vf vf_load_float16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE vi vi_load_first_u16(const uint16_t *p, int n) {
    if (n >= VF_WIDTH)
        return vi_load_u16(p);
    uint16_t tail[VF_WIDTH] = {0};
    for (int i = 0; i < n; i++)
        tail[i] = p[i];
    return vi_load_u16(tail);
}
