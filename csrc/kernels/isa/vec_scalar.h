/* Vectors of one float: the scalar fallback for every kernel. vec.h defines the operations. */
#include "kernels/half.h"

#include <stdint.h>
#include <string.h>

#define VF_WIDTH 1
/* 2 x 4 accumulators, 4 weights and 2 broadcasts: 14 of 16 registers. */
#define TILE_ROWS 2
#define TILE_VECTORS 4
#define ROW_VECTORS 8 /* vectors per tile when the tile has one row */

typedef float vf;
typedef int32_t vi;

INLINE vf vf_set1(float a) { return a; }
INLINE vf vf_load(const float *p) { return *p; }
INLINE void vf_store(float *p, vf a) { *p = a; }
INLINE vf vf_load_first(const float *p, int n) { return n > 0 ? *p : 0.0f; }
INLINE void vf_store_first(float *p, vf a, int n) {
    if (n > 0)
        *p = a;
}
INLINE vf vf_keep_first(vf a, int n) { return n > 0 ? a : 0.0f; }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_fma(vf a, vf b, vf c) { return __builtin_fmaf(a, b, c); }
INLINE vf vf_sqrt(vf a) { return __builtin_sqrtf(a); }
INLINE float vf_reduce_add(vf a) { return a; }
INLINE vf vf_max(vf a, vf b) { return a > b ? a : b; }
INLINE vf vf_min(vf a, vf b) { return a < b ? a : b; }
INLINE vf vf_select_less(vf a, vf b, vf x, vf y) { return a < b ? x : y; }
INLINE vf vf_propagate_nan(vf a, vf x) { return a != a ? a : x; }

INLINE vi vi_bits(vf a) {
    vi bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
INLINE vf vf_from_bits(vi a) {
    vf value;
    memcpy(&value, &a, sizeof value);
    return value;
}
INLINE vi vi_set1(int32_t a) { return a; }
INLINE vi vi_add(vi a, vi b) { return (vi)((uint32_t)a + (uint32_t)b); }
INLINE vi vi_sub(vi a, vi b) { return (vi)((uint32_t)a - (uint32_t)b); }
INLINE vi vi_and(vi a, vi b) { return a & b; }
INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
INLINE vi vi_load(const int32_t *p) { return *p; }
INLINE vi vi_select_equal(vi a, vi b, vi x, vi y) { return a == b ? x : y; }
INLINE vi vi_shift_right_unsigned(vi a, int n) { return (vi)((uint32_t)a >> n); }
INLINE vi vi_mul_wide_unsigned(vi a, vi b, vi *upper) {
    uint64_t product = (uint64_t)(uint32_t)a * (uint32_t)b;
    *upper = (vi)(uint32_t)(product >> 32);
    return (vi)(uint32_t)product;
}
/* GCC and clang shift negative numbers arithmetically. */
INLINE vi vi_shift_right(vi a, int n) { return a >> n; }
INLINE vi vi_shift_left(vi a, int n) { return (vi)((uint32_t)a << n); }
INLINE vf vf_from_int(vi a) { return (float)a; }
INLINE vi vi_or(vi a, vi b) { return a | b; }
INLINE vi vi_max(vi a, vi b) { return a < b ? b : a; }
INLINE int32_t vi_reduce_max(vi a) { return a; }
INLINE int32_t vi_reduce_add(vi a) { return a; }
INLINE void vi_store(int32_t *p, vi a) { *p = a; }
INLINE void vi_store_i8(int8_t *p, vi a) { *p = (int8_t)a; }
INLINE void vi_store_u16(uint16_t *p, vi a) { *p = (uint16_t)a; }
INLINE vi vi_load_u16(const uint16_t *p) { return *p; }
INLINE vf vf_load_float16(const uint16_t *p) { return float16_value(*p); }
INLINE vi vi_load_first_u16(const uint16_t *p, int n) { return n > 0 ? *p : 0; }
