/* What a dot product header (dot_*.h) must define for integer.h. A vector header (vec.h) defines
 * the rest. All results are exact.
 *
 *   DOT_VECTORS  the number of vectors of columns whose weights integer.h keeps in registers; each
 *                takes GROUP / 4 registers
 *   INT8_OFFSET  weights are stored with an offset of 128. 0 if dot_int8 subtracts it; 128 if
 *                integer.h has to
 *   INT4_SUMS_ARE_32_BITS
 *                1 if a lane of dot_int4's sum is one int32, 0 if it is two int16
 *   functions    those declared below, as INLINE functions */

_Static_assert(PANEL % (DOT_VECTORS * VF_WIDTH) == 0,
               "a panel must be a multiple of DOT_VECTORS vectors");
_Static_assert(INT8_OFFSET == 0 || INT8_OFFSET == 128, "the offset must be 0 or 128");

/* Adds to each lane of sum the four products (w_i - 128 + INT8_OFFSET) * x_i of the lane's bytes:
 * w_i is unsigned, from 1 to 255, and x_i signed, from -127 to 127. */
INLINE vi dot_int8(vi sum, vi w, vi x);
/* Adds to each lane of sum the four products w_i * x_i, with w_i from 0 to 15. The sum of a group
 * does not overflow. */
INLINE vi dot_int4(vi sum, vi w, vi x);
/* Converts dot_int4's sum to one int32 per lane. */
INLINE vi int4_sum(vi sum);
/* a * b, for a from 0 to 15 and b in the range of int16. */
INLINE vi mul_zero_point(vi a, vi b);
