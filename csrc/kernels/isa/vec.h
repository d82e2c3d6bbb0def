/* What a vector header (vec_scalar.h, vec_avx2.h, vec_avx512.h, vec_neon.h) must define, and
 * exactly what each operation returns. All kernels are written in these operations, so if every
 * header keeps this contract, every instruction set gives the same bits.
 *
 * A header defines
 *   VF_WIDTH    the lanes of a vector: 1, 2, 4, 8 or 16
 *   vf, vi      the types of VF_WIDTH floats and of VF_WIDTH int32; their size is a constant
 *   TILE_ROWS, TILE_VECTORS, ROW_VECTORS
 *               the shape of a matmul's tile (matmul.h): a budget of registers
 *   functions   those declared below, as INLINE functions. Kernels include this file after the
 *               header, so the compiler checks the types and reports missing functions.
 * A header may define HAS_VF_LDEXP and vf_ldexp (functions.h) if one instruction computes that.
 *
 * Each operation works lane by lane. Float arithmetic is IEEE 754 binary32, rounded to nearest,
 * ties to even, with denormals (fpenv.h sets the mode). Arithmetic with a NaN returns some NaN,
 * whose bits are unspecified. Pointers need only the alignment of their element. */

_Static_assert(16 % VF_WIDTH == 0, "vectors must divide the 16 lanes of a sum (row.h)");
_Static_assert(sizeof(vf) == VF_WIDTH * sizeof(float), "vf must have VF_WIDTH floats");
_Static_assert(sizeof(vi) == VF_WIDTH * sizeof(int32_t), "vi must have VF_WIDTH integers");
_Static_assert(PANEL % (TILE_VECTORS * VF_WIDTH) == 0,
               "a panel must be a multiple of a tile's columns");
_Static_assert(PANEL % (ROW_VECTORS * VF_WIDTH) == 0,
               "a panel must be a multiple of a one-row tile's columns");
_Static_assert(TILE_ROWS <= ATTENTION_ROWS, "the scores of a tile must have room");

/* ---- loads and stores ---- */

INLINE vf vf_set1(float a);
INLINE vf vf_load(const float *p);
INLINE void vf_store(float *p, vf a);
INLINE vi vi_set1(int32_t a);
INLINE vi vi_load(const int32_t *p);
INLINE void vi_store(int32_t *p, vi a);
/* These load or store the first n lanes; n may be negative or more than VF_WIDTH. A load sets the
 * other lanes to +0, and memory past the n-th element is neither read nor written. */
INLINE vf vf_load_first(const float *p, int n);
INLINE void vf_store_first(float *p, vf a, int n);
INLINE vi vi_load_first_u16(const uint16_t *p, int n);
/* Loads VF_WIDTH elements, zero-extended to 32 bits. */
INLINE vi vi_load_u16(const uint16_t *p);
/* Loads VF_WIDTH float16, widened exactly, subnormals and infinities included. */
INLINE vf vf_load_float16(const uint16_t *p);
/* Stores the lower 16 bits of each lane. */
INLINE void vi_store_u16(uint16_t *p, vi a);
/* Stores each lane as a byte. Lanes must be from -128 to 127. */
INLINE void vi_store_i8(int8_t *p, vi a);

/* ---- floats ---- */

INLINE vf vf_add(vf a, vf b);
INLINE vf vf_sub(vf a, vf b);
INLINE vf vf_mul(vf a, vf b);
INLINE vf vf_div(vf a, vf b);
INLINE vf vf_sqrt(vf a);
/* a * b + c, rounded once. */
INLINE vf vf_fma(vf a, vf b, vf c);
INLINE vf vf_from_int(vi a);
/* The sum of the lanes, in one order: the upper half is added to the lower half, then the upper
 * half of these sums to their lower half, and so on. */
INLINE float vf_reduce_add(vf a);

/* ---- selections, which change no bit of the lane they return ---- */

/* vf_max is a > b ? a : b, and vf_min is a < b ? a : b. Both return b if either is NaN and if both
 * are zeros. */
INLINE vf vf_max(vf a, vf b);
INLINE vf vf_min(vf a, vf b);
/* a < b ? x : y, so y if a or b is NaN. */
INLINE vf vf_select_less(vf a, vf b, vf x, vf y);
/* a where a is NaN, else x. */
INLINE vf vf_propagate_nan(vf a, vf x);
/* The first n lanes of a, and +0 in the others; n may be negative or more than VF_WIDTH. */
INLINE vf vf_keep_first(vf a, int n);
/* The same bits as another type. */
INLINE vi vi_bits(vf a);
INLINE vf vf_from_bits(vi a);

/* ---- integers of 32 bits; sums, differences and left shifts wrap ---- */

INLINE vi vi_add(vi a, vi b);
INLINE vi vi_sub(vi a, vi b);
INLINE vi vi_and(vi a, vi b);
INLINE vi vi_or(vi a, vi b);
INLINE vi vi_xor(vi a, vi b);
INLINE vi vi_max(vi a, vi b); /* signed */
/* Shifts by 0 to 31 bits. vi_shift_right repeats the sign bit; the other two shift zeros in. */
INLINE vi vi_shift_right(vi a, int n);
INLINE vi vi_shift_right_unsigned(vi a, int n);
INLINE vi vi_shift_left(vi a, int n);
/* a == b ? x : y */
INLINE vi vi_select_equal(vi a, vi b, vi x, vi y);
/* The product of unsigned a and b, 64 bits: returns its lower half and sets *upper. */
INLINE vi vi_mul_wide_unsigned(vi a, vi b, vi *upper);
/* The largest lane, signed, and the sum of the lanes, which wraps. */
INLINE int32_t vi_reduce_max(vi a);
INLINE int32_t vi_reduce_add(vi a);
