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

/* A header may define HAS_DOT_PAIRS and these functions, if one instruction multiplies two rows and
 * two columns, 8 bytes of k each. VF_WIDTH is then 4. */
#if defined(HAS_DOT_PAIRS)
_Static_assert(VF_WIDTH == 4, "a pair's sums are two rows of two columns");
/* a has 4 bytes of k for each of 4 columns, and b the next 4 bytes. Sets a to all 8 bytes of the
 * first two columns, and b to those of the last two. */
INLINE void interleave_columns(vi *a, vi *b);
/* Sets x[s] to bytes 8 * s to 8 * s + 7 of both rows. */
INLINE void load_row_pair(const int8_t *first, const int8_t *second, vi x[GROUP / 8]);
/* Returns the lanes a, b, a, b. */
INLINE vi alternate(int32_t a, int32_t b);
/* Adds the products of 8 bytes to each lane of sum: of w's first column with x's first row and
 * with its second row, then of w's second column with both rows. The bytes are those of dot_int8 or
 * dot_int4. */
INLINE vi dot_pair(vi sum, vi w, vi x);
/* Sets *first and *second to the sums of each row. low has both rows' sums of two columns, and high
 * those of the next two columns. */
INLINE void split_rows(vi low, vi high, vi *first, vi *second);
#endif
