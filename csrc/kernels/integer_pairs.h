/* Products of a group for two rows at a time, with instructions that multiply 2 rows of 8 bytes by
 * 2 columns of 8 bytes (dot.h, HAS_DOT_PAIRS). Such an instruction does twice the work of a dot
 * product instruction and needs no broadcast. integer.h includes this file.
 *
 * A panel has 4 bytes of k of each column in turn, as dot product instructions need them. So a
 * group's weights are rearranged in registers, once for all rows. A single row would pay for this
 * and use only half of each instruction, so integer.h uses dot products for it. */

/* Rearranges a group's weights: for even s, weights[s][v] then has 8 bytes of k for each of the
 * first VF_WIDTH / 2 columns of vector v, and weights[s + 1][v] the same for the other columns. */
INLINE void pair_columns(group_columns *g) {
    UNROLL
    for (int s = 0; s < DOTS_PER_GROUP; s += 2) {
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++)
            interleave_columns(&g->weights[s][v], &g->weights[s + 1][v]);
    }
}

/* Computes the exact sums over a group for two rows and vector v of columns. */
INLINE void dot_group_of_pair(const group_columns *g, const int bits, int v,
                              const vi x[DOTS_PER_GROUP / 2], const int32_t minus_sums[2],
                              vi sums[2]) {
    vi low = vi_set1(0), high;
    if (bits == 8 && INT8_OFFSET != 0)
        low = vi_shift_left(alternate(minus_sums[0], minus_sums[1]), 7);
    high = low;
    UNROLL
    for (int s = 0; s < DOTS_PER_GROUP; s += 2) {
        low = dot_pair(low, g->weights[s][v], x[s / 2]);
        high = dot_pair(high, g->weights[s + 1][v], x[s / 2]);
    }
    split_rows(low, high, &sums[0], &sums[1]);
    if (bits == 8)
        return;
    UNROLL
    for (int r = 0; r < 2; r++)
        sums[r] = vi_add(sums[r], mul_zero_point(g->zero[v], vi_set1(minus_sums[r])));
}

/* One group of x, for a row and the rows after it. */
typedef struct {
    const int8_t *values;
    const float *scales;
    const int32_t *minus_sums;
} group_rows;

/* Multiplies row r and the next one; or, if n_rows is 1, row r alone, which then stands for both
 * rows of each instruction. */
INLINE void multiply_pair(const group_columns *g, const int bits, group_rows x, int r,
                          const int n_rows, int is_first, float *totals) {
    const int second = r + n_rows - 1;
    const int32_t minus_sums[2] = {x.minus_sums[r], x.minus_sums[second]};
    vi bytes[DOTS_PER_GROUP / 2];
    load_row_pair(x.values + (size_t)r * GROUP, x.values + (size_t)second * GROUP, bytes);
    UNROLL
    for (int v = 0; v < DOT_VECTORS; v++) {
        vi sums[2];
        dot_group_of_pair(g, bits, v, bytes, minus_sums, sums);
        UNROLL
        for (int i = 0; i < n_rows; i++) {
            vf scale = vf_mul(vf_set1(x.scales[r + i]), g->scale[v]);
            float *total = totals + (r + i) * PANEL + v * VF_WIDTH;
            vf before = is_first ? vf_set1(0.0f) : vf_load(total);
            vf_store(total, vf_fma(vf_from_int(sums[i]), scale, before));
        }
    }
}

/* Like multiply_group (integer.h), for two rows or more. */
INLINE void multiply_group_in_pairs(const quantized_rows *x, const int bits, int group, int row,
                                    int n_rows, const uint8_t *packed, int column,
                                    prefetch_cursor ahead, float *totals) {
    const size_t at = (size_t)group * x->stride + (size_t)row;
    const group_rows rows = {
        .values = x->values + (size_t)group * x->values_stride + (size_t)row * GROUP,
        .scales = x->scales + at,
        .minus_sums = x->minus_sums + at,
    };
    const int is_first = group == 0; /* the totals begin at +0 */
    group_columns g;
    load_columns(&g, bits, packed, column);
    pair_columns(&g);
    int r = 0;
    for (; r + 2 <= n_rows; r += 2) {
        prefetch_at_row(&ahead);
        prefetch_at_row(&ahead);
        multiply_pair(&g, bits, rows, r, 2, is_first, totals + column);
    }
    if (r < n_rows)
        multiply_pair(&g, bits, rows, r, 1, is_first, totals + column);
}
