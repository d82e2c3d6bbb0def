/* Four floats in a NEON register (AArch64). vec.h defines the operations. */
#include <arm_neon.h>
#include <stdint.h>

#define VF_WIDTH 4
/* 6 x 4 accumulators, 4 weights and a broadcast: 29 of 32 registers. */
#define TILE_ROWS 6
#define TILE_VECTORS 4
#define ROW_VECTORS 8 /* vectors per tile when the tile has one row */

typedef float32x4_t vf;
typedef int32x4_t vi;

/* All ones in the first n lanes. */
INLINE uint32x4_t first_lanes(int n) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n));
}

INLINE vf vf_set1(float a) { return vdupq_n_f32(a); }
INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
INLINE void vf_store(float *p, vf a) { vst1q_f32(p, a); }
/* NEON has no masked load: a tail is copied to memory that may be read whole. */
INLINE vf vf_load_first(const float *p, int n) {
    if (n >= 4)
        return vld1q_f32(p);
    float tail[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < n; i++)
        tail[i] = p[i];
    return vld1q_f32(tail);
}
INLINE void vf_store_first(float *p, vf a, int n) {
    if (n >= 4) {
        vst1q_f32(p, a);
        return;
    }
    float tail[4];
    vst1q_f32(tail, a);
    for (int i = 0; i < n; i++)
        p[i] = tail[i];
}
INLINE vf vf_keep_first(vf a, int n) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), first_lanes(n)));
}
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
INLINE float vf_reduce_add(vf a) {
    float32x2_t two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
INLINE vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE vf vf_select_less(vf a, vf b, vf x, vf y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
INLINE vf vf_propagate_nan(vf a, vf x) { return vbslq_f32(vceqq_f32(a, a), x, a); }

INLINE vi vi_bits(vf a) { return vreinterpretq_s32_f32(a); }
INLINE vf vf_from_bits(vi a) { return vreinterpretq_f32_s32(a); }
INLINE vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
INLINE vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
INLINE vi vi_load(const int32_t *p) { return vld1q_s32(p); }
INLINE vi vi_select_equal(vi a, vi b, vi x, vi y) { return vbslq_s32(vceqq_s32(a, b), x, y); }
INLINE vi vi_shift_right_unsigned(vi a, int n) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}
INLINE vi vi_mul_wide_unsigned(vi a, vi b, vi *upper) {
    uint32x4_t x = vreinterpretq_u32_s32(a), y = vreinterpretq_u32_s32(b);
    uint64x2_t low = vmull_u32(vget_low_u32(x), vget_low_u32(y));
    uint64x2_t high = vmull_u32(vget_high_u32(x), vget_high_u32(y));
    *upper = vreinterpretq_s32_u32(vcombine_u32(vshrn_n_u64(low, 32), vshrn_n_u64(high, 32)));
    return vreinterpretq_s32_u32(vcombine_u32(vmovn_u64(low), vmovn_u64(high)));
}
INLINE vi vi_shift_right(vi a, int n) { return vshlq_s32(a, vdupq_n_s32(-n)); }
INLINE vi vi_shift_left(vi a, int n) { return vshlq_s32(a, vdupq_n_s32(n)); }
INLINE vf vf_from_int(vi a) { return vcvtq_f32_s32(a); }
INLINE vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
INLINE vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
INLINE int32_t vi_reduce_max(vi a) { return vmaxvq_s32(a); }
INLINE int32_t vi_reduce_add(vi a) { return vaddvq_s32(a); }
INLINE void vi_store(int32_t *p, vi a) { vst1q_s32(p, a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
    int16x4_t words = vmovn_s32(a);
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    memcpy(p, &four, sizeof four);
}
INLINE void vi_store_u16(uint16_t *p, vi a) { vst1_u16(p, vmovn_u32(vreinterpretq_u32_s32(a))); }
INLINE vi vi_load_u16(const uint16_t *p) { return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p))); }
INLINE vf vf_load_float16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE vi vi_load_first_u16(const uint16_t *p, int n) {
    if (n >= VF_WIDTH)
        return vi_load_u16(p);
    uint16_t tail[VF_WIDTH] = {0};
    for (int i = 0; i < n; i++)
        tail[i] = p[i];
    return vi_load_u16(tail);
}
