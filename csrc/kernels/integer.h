/* Matrix products of quantised rows and packed, quantised weights.
 *
 * Tiles. The weights of a group (32 steps of k) for DOT_VECTORS vectors of columns are loaded into
 * registers once, GROUP / 4 registers for each vector, and all rows are multiplied by them. A row's
 * sum over the group is an exact integer, so the order inside a group does not matter. The sum is
 * scaled and added to the row's float totals in memory, groups ascending. The number of rows
 * changes no bit. matmul.h does the reverse: it keeps sums in registers and loads weights again for
 * each tile. Here a group's weights are few enough to stay in registers, and a total is loaded and
 * stored only once in 32 steps of k. */
#include "kernels/isa/dot.h"

/* A dot product of bytes (dot.h) takes four steps of k. */
#define DOTS_PER_GROUP (GROUP / 4)

/* Loads weights. The compiler barrier keeps the loads in the order of memory, on which the hardware
 * prefetcher depends: a compiler that changed the order made a single row a fifth slower. */
INLINE vi load_bytes(const uint8_t *p) {
    vi bytes = vi_load((const int32_t *)(const void *)p);
    __asm__ volatile("" ::: "memory");
    return bytes;
}

/* Sets each lane to the four bytes at p. */
INLINE vi broadcast_bytes(const int8_t *p) {
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return vi_set1(bytes);
}

/* A group's weights for DOT_VECTORS vectors of columns, in registers. */
typedef struct {
    vi weights[DOTS_PER_GROUP][DOT_VECTORS];
    vf scale[DOT_VECTORS];
    vi zero[DOT_VECTORS]; /* the zero points, int4 only */
} group_columns;

INLINE void load_int8(group_columns *g, const uint8_t *packed, int column) {
    const uint8_t *words = packed + GROUP * PANEL + 2 * column;
    UNROLL
    for (int s = 0; s < DOTS_PER_GROUP; s++) {
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++)
            g->weights[s][v] = load_bytes(packed + (s * PANEL + column + v * VF_WIDTH) * 4);
    }
    UNROLL
    for (int v = 0; v < DOT_VECTORS; v++) {
        vi word = vi_load_u16((const uint16_t *)(const void *)(words + 2 * v * VF_WIDTH));
        g->scale[v] = vf_from_bits(vi_shift_left(word, 16));
    }
}

INLINE void load_int4(group_columns *g, const uint8_t *packed, int column) {
    const uint8_t *words = packed + GROUP / 2 * PANEL + 2 * column;
    const vi nibble = vi_set1(0x0f0f0f0f);
    UNROLL
    for (int s = 0; s < DOTS_PER_GROUP / 2; s++) {
        UNROLL
        for (int v = 0; v < DOT_VECTORS; v++) {
            vi both = load_bytes(packed + (s * PANEL + column + v * VF_WIDTH) * 4);
            g->weights[s][v] = vi_and(both, nibble);
            g->weights[s + DOTS_PER_GROUP / 2][v] =
                vi_and(vi_shift_right_unsigned(both, 4), nibble);
        }
    }
    UNROLL
    for (int v = 0; v < DOT_VECTORS; v++) {
        vi word = vi_load_u16((const uint16_t *)(const void *)(words + 2 * v * VF_WIDTH));
        vi bits = vi_shift_left(vi_and(word, vi_set1(0xfff0)), INT4_SCALE_SHIFT - 4);
        g->scale[v] = vf_from_bits(vi_add(bits, vi_set1(INT4_SCALE_EXPONENT << 23)));
        g->zero[v] = vi_and(word, vi_set1(0xf));
    }
}

INLINE void load_columns(group_columns *g, const int bits, const uint8_t *packed, int column) {
    if (bits == 8)
        load_int8(g, packed, column);
    else
        load_int4(g, packed, column);
}

/* The exact sum over a group for one row and a vector of columns. */
INLINE vi dot_group(const group_columns *g, const int bits, int v, const int8_t *x, vi minus_sum) {
    vi total;
    if (bits == 8) {
        total = INT8_OFFSET ? vi_shift_left(minus_sum, 7) : vi_set1(0);
        UNROLL
        for (int s = 0; s < DOTS_PER_GROUP; s++)
            total = dot_int8(total, g->weights[s][v], broadcast_bytes(x + 4 * s));
        return total;
    }
    const vi offset = mul_zero_point(g->zero[v], minus_sum);
    total = INT4_SUMS_ARE_32_BITS ? offset : vi_set1(0);
    UNROLL
    for (int s = 0; s < DOTS_PER_GROUP; s++)
        total = dot_int4(total, g->weights[s][v], broadcast_bytes(x + 4 * s));
    return INT4_SUMS_ARE_32_BITS ? total : vi_add(int4_sum(total), offset);
}

/* Weights are prefetched PREFETCH_AHEAD bytes before they are used (4 KB was too few), and each row
 * prefetches a share of them. Prefetching them all at once would fill the core's line-fill buffers,
 * so that the loads of rows would wait: this cost a third of the speed at 32 rows and nearly half
 * at 8. A prefetch beyond the end of the weights is harmless, because it cannot fault. */
#define PREFETCH_AHEAD 16384

typedef struct {
    const uint8_t *next, *until;
    size_t row_bytes;
} prefetch_cursor;

INLINE prefetch_cursor cursor_for_rows(const uint8_t *begin, size_t bytes, int n_rows) {
    return (prefetch_cursor){begin, begin, bytes / (size_t)n_rows + 1};
}

INLINE void prefetch_at_row(prefetch_cursor *f) {
    f->until += f->row_bytes;
    for (; f->next < f->until; f->next += CACHE_LINE_FLOATS * sizeof(float))
        prefetch(f->next);
}

#if defined(HAS_DOT_PAIRS)
#include "kernels/integer_pairs.h"
#endif

/* totals[r][column ..] += x[r, group] @ weights[group, column ..] for n_rows rows from `row`. */
INLINE void multiply_group(const quantized_rows *x, const int bits, int group, int row, int n_rows,
                           const uint8_t *packed, int column, prefetch_cursor ahead,
                           float *totals) {
#if defined(HAS_DOT_PAIRS)
    if (n_rows > 1) {
        multiply_group_in_pairs(x, bits, group, row, n_rows, packed, column, ahead, totals);
        return;
    }
#endif
    const int is_first = group == 0; /* the totals begin at +0 */
    group_columns g;
    load_columns(&g, bits, packed, column);
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

/* With many rows the stores of the results would wait for memory. So the cache lines of the results
 * are prefetched while a panel is multiplied, for a share of the rows at each group. Rows of logits
 * begin anywhere in a cache line, so a panel's columns may lie in three lines. Of each 16
 * floats the last one is prefetched, because the panel before has written to the first line.
 * (Prefetching the first one made the lm_head 7 % slower for 32 rows or more.) */
#define PREFETCH_OUT_MIN_ROWS 32

INLINE void prefetch_out(const matmul_args *a, int row, int n_rows, int panel, int group,
                         int n_groups) {
    int end = (int)((long)n_rows * (group + 1) / n_groups);
    for (int r = (int)((long)n_rows * group / n_groups); r < end; r++) {
        const float *out = a->out + (size_t)(row + r) * a->out_stride + panel * PANEL;
        for (int c = CACHE_LINE_FLOATS - 1; c < PANEL; c += CACHE_LINE_FLOATS)
            __builtin_prefetch(out + c, 1, 2);
    }
}

INLINE void integer_matmul(const matmul_args *a, const int bits, int panel_begin, int panel_end) {
    float totals[MATMUL_ROWS * PANEL];
    const size_t block_bytes = bits == 8 ? INT8_BLOCK_BYTES : INT4_BLOCK_BYTES;
    const int width = DOT_VECTORS * VF_WIDTH;
    const size_t width_bytes = block_bytes * (size_t)width / PANEL;
    const int n_groups = (a->k + GROUP - 1) / GROUP;
    const uint8_t *panels = a->panels;
    for (int row = 0; row < a->n_rows; row += MATMUL_ROWS) {
        int n_rows = a->n_rows - row < MATMUL_ROWS ? a->n_rows - row : MATMUL_ROWS;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            const uint8_t *packed = panels + (size_t)panel * (size_t)n_groups * block_bytes;
            for (int g = 0; g < n_groups; g++, packed += block_bytes) {
                const uint8_t *ahead = packed + PREFETCH_AHEAD;
                if (n_rows >= PREFETCH_OUT_MIN_ROWS)
                    prefetch_out(a, row, n_rows, panel, g, n_groups);
                for (int c = 0; c < PANEL; c += width, ahead += width_bytes)
                    multiply_group(&a->quantized, bits, g, row, n_rows, packed, c,
                                   cursor_for_rows(ahead, width_bytes, n_rows), totals);
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
