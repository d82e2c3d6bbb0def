#include "kernels/dot.h"

/* Matrix products of quantised rows and packed, quantised weights.
 *
 * A group's weights of some columns are put into registers once, and all rows go past them: an output's
 * sum over the group is exact, so the order inside does not matter, and the groups' sums are added in
 * memory, ascending. How many rows there are never shows. */

#define BYTES_STEPS (GROUP / 4)

/* In the order of memory, which what a processor fetches by itself depends on: left to the compiler, which
 * likes to reorder loads, a single row was a fifth slower. */
INLINE vi load_bytes(const uint8_t *p) {
    vi bytes = vi_load((const int32_t *)(const void *)p);
    __asm__ volatile("" ::: "memory");
    return bytes;
}

/* What a group's columns are, in registers. */
typedef struct {
    vi weights[BYTES_STEPS][DOT_VECTORS];
    vf scale[DOT_VECTORS];
    vi zero[DOT_VECTORS]; /* of 4 bits */
} group_columns;

INLINE void load_int8(group_columns *g, const uint8_t *packed, int column) {
    const uint8_t *words = packed + GROUP * PANEL + 2 * column;
    UNROLL
    for (int s = 0; s < BYTES_STEPS; s++) {
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++)
            g->weights[s][v] = load_bytes(packed + (s * PANEL + column + v * VF_WIDTH) * 4);
    }
    UNROLL
    for (int v = 0; v < DOT_VECTORS; v++) {
        vi word = vi_load_16((const uint16_t *)(const void *)(words + 2 * v * VF_WIDTH));
        g->scale[v] = vf_from_bits(vi_shift_left(word, 16));
    }
}

INLINE void load_int4(group_columns *g, const uint8_t *packed, int column) {
    const uint8_t *words = packed + GROUP / 2 * PANEL + 2 * column;
    const vi nibble = vi_set1(0x0f0f0f0f);
    UNROLL
    for (int s = 0; s < BYTES_STEPS / 2; s++) {
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++) {
            vi both = load_bytes(packed + (s * PANEL + column + v * VF_WIDTH) * 4);
            g->weights[s][v] = vi_and(both, nibble);
            g->weights[s + BYTES_STEPS / 2][v] = vi_and(vi_shift_right_unsigned(both, 4), nibble);
        }
    }
    UNROLL
    for (int v = 0; v < DOT_VECTORS; v++) {
        vi word = vi_load_16((const uint16_t *)(const void *)(words + 2 * v * VF_WIDTH));
        vi bits = vi_shift_left(vi_and(word, vi_set1(0xfff0)), INT4_SCALE_SHIFT - 4);
        g->scale[v] = vf_from_bits(vi_add(bits, vi_set1(INT4_SCALE_EXPONENT << 23)));
        g->zero[v] = vi_and(word, vi_set1(0xf));
    }
}

/* The exact sum of a group of one row, for a vector of columns. */
INLINE vi dot_group(const group_columns *g, const int bits, int v, const int8_t *x, vi minus_sum) {
    vi total;
    if (bits == 8) {
        total = INT8_OFFSET ? vi_shift_left(minus_sum, 7) : vi_set1(0);
        UNROLL
        for (int s = 0; s < BYTES_STEPS; s++)
            total = dot_int8(total, g->weights[s][v], broadcast_bytes(x + 4 * s));
        return total;
    }
    const vi offset = mul_zero_point(g->zero[v], minus_sum);
    total = INT4_SUMS_ARE_32_BITS ? offset : vi_set1(0);
    UNROLL
    for (int s = 0; s < BYTES_STEPS; s++)
        total = dot_int4(total, g->weights[s][v], broadcast_bytes(x + 4 * s));
    return INT4_SUMS_ARE_32_BITS ? total : vi_add(int4_sum(total), offset);
}

/* Weights are fetched so many bytes before they are multiplied (4 KB was seen to be too few), some at each
 * row: all at once they take every place that a core has for what it waits for, the rows' too, which cost a
 * third of the speed at 32 rows and near half at 8. Past the end nothing is read, so that nothing need
 * be there. */
#define PREFETCH_AHEAD 16384

typedef struct {
    const uint8_t *next, *until;
    size_t row_bytes;
} prefetch_cursor;

INLINE prefetch_cursor prefetch_for_rows(const uint8_t *begin, size_t bytes, int n_rows) {
    return (prefetch_cursor){begin, begin, bytes / (size_t)n_rows + 1};
}

INLINE void prefetch_at_row(prefetch_cursor *f) {
    f->until += f->row_bytes;
    for (; f->next < f->until; f->next += CACHE_LINE * sizeof(float))
        prefetch(f->next);
}

/* totals[rows][column ..] += a group of x, from the row-th row on, times a group's columns. */
INLINE void multiply_group(const quantized_rows *x, const int bits, int group, int row, int n_rows,
                           const uint8_t *packed, int column, prefetch_cursor ahead,
                           float *totals) {
    const int is_first = group == 0; /* of the sums, which begin with +0 */
    group_columns g;
    if (bits == 8)
        load_int8(&g, packed, column);
    else
        load_int4(&g, packed, column);
    const int8_t *values = x->values + (size_t)group * x->values_stride + (size_t)row * GROUP;
    const float *scales = x->scales + (size_t)group * x->stride + (size_t)row;
    const int32_t *minus_sums = x->minus_sums + (size_t)group * x->stride + (size_t)row;
    for (int r = 0; r < n_rows; r++) {
        prefetch_at_row(&ahead);
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++) {
            vi sum = dot_group(&g, bits, v, values + (size_t)r * GROUP, vi_set1(minus_sums[r]));
            vf scale = vf_mul(vf_set1(scales[r]), g.scale[v]);
            float *total = totals + r * PANEL + column + v * VF_WIDTH;
            vf before = is_first ? vf_set1(0.0f) : vf_load(total);
            vf_store(total, vf_fma(vf_from_int(sum), scale, before));
        }
    }
}

/* Many rows wait for the places of their results too, which are fetched while a panel is multiplied: at
 * each group those of a part of the rows. */
#define PREFETCH_OUT_MIN_ROWS 32

INLINE void prefetch_out(const matmul_args *a, int row, int n_rows, int panel, int group,
                         int n_groups) {
    int end = (int)((long)n_rows * (group + 1) / n_groups);
    for (int r = (int)((long)n_rows * group / n_groups); r < end; r++) {
        const float *out = a->out + (size_t)(row + r) * a->out_stride + panel * PANEL;
        for (int c = 0; c < PANEL; c += CACHE_LINE)
            __builtin_prefetch(out + c, 1, 2);
    }
}

INLINE void integer_matmul(const matmul_args *a, const int bits, int panel_begin, int panel_end) {
    float totals[PASS_ROWS * PANEL];
    const size_t group_bytes = bits == 8 ? INT8_GROUP_BYTES : INT4_GROUP_BYTES;
    const int width = DOT_VECTORS * VF_WIDTH;
    const size_t width_bytes = group_bytes * (size_t)width / PANEL;
    const int n_groups = (a->k + GROUP - 1) / GROUP;
    const uint8_t *panels = a->panels;
    for (int row = 0; row < a->n_rows; row += PASS_ROWS) {
        int n_rows = a->n_rows - row < PASS_ROWS ? a->n_rows - row : PASS_ROWS;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            const uint8_t *packed = panels + (size_t)panel * (size_t)n_groups * group_bytes;
            for (int g = 0; g < n_groups; g++, packed += group_bytes) {
                const uint8_t *ahead = packed + PREFETCH_AHEAD;
                if (n_rows >= PREFETCH_OUT_MIN_ROWS)
                    prefetch_out(a, row, n_rows, panel, g, n_groups);
                for (int c = 0; c < PANEL; c += width, ahead += width_bytes)
                    multiply_group(&a->quantized, bits, g, row, n_rows, packed, c,
                                   prefetch_for_rows(ahead, width_bytes, n_rows), totals);
            }
            finish_panel(a, row, n_rows, panel, totals);
        }
    }
}

static void matmul_int8_kernel(const matmul_args *a, int panel_begin, int panel_end) {
    integer_matmul(a, 8, panel_begin, panel_end);
}

static void matmul_int4_kernel(const matmul_args *a, int panel_begin, int panel_end) {
    integer_matmul(a, 4, panel_begin, panel_end);
}

#define INTEGER_TABLE                      \
    {                                      \
        .matmul_int8 = matmul_int8_kernel, \
        .matmul_int4 = matmul_int4_kernel, \
    }
