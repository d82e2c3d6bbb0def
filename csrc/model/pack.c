/* Packs matrices into panels, and reads the panels back. */
#include "model/pack.h"

#include "kernels/half.h"

#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h> /* part of every x86-64 CPU */
#endif

#if GROUP != PANEL
#error "GROUP must equal PANEL: chunks of rows must suit both pack_k_rows and pack_n_rows"
#endif

size_t pack_panel_bytes(gpt2c_dtype dtype, size_t k) {
    switch (dtype) {
    case GPT2C_INT8:
        return n_groups_for(k) * INT8_BLOCK_BYTES;
    case GPT2C_INT4:
        return n_groups_for(k) * INT4_BLOCK_BYTES;
    case GPT2C_FLOAT16:
    case GPT2C_BFLOAT16:
        return k * PANEL * sizeof(uint16_t);
    default:
        return k * PANEL * sizeof(float);
    }
}

static unsigned char *panel_of(const packed_matrix *m, size_t panel) {
    return (unsigned char *)m->panels + panel * pack_panel_bytes(m->dtype, m->k);
}

static float *float_panel(const packed_matrix *m, size_t panel) {
    return (float *)m->panels + panel * m->k * PANEL;
}

static uint16_t *narrow_panel(const packed_matrix *m, size_t panel) {
    return (uint16_t *)m->panels + panel * m->k * PANEL;
}

static unsigned char *block_of(const packed_matrix *m, size_t panel, size_t group) {
    return panel_of(m, panel) +
           group * (m->dtype == GPT2C_INT8 ? INT8_BLOCK_BYTES : INT4_BLOCK_BYTES);
}

/* ---- packing ---- */

static void quantize_to_block(const packed_matrix *m, const kernel_table *kernels, int n_scales,
                              const float *weights, size_t panel, size_t group) {
    unsigned char *block = block_of(m, panel, group);
    if (m->dtype == GPT2C_INT8)
        kernels->quantize_int8(weights, block);
    else
        kernels->quantize_int4(weights, n_scales, block);
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* Copies `count` columns of a row to a panel of floats, whose rows begin at cache lines. On x86 a
 * whole row goes to memory past the caches: nothing reads it soon, and a store through the caches
 * would first read the memory that it overwrites. GPT-2 124M then loads in 0.93 of the time. */
static void copy_row(float *to, const float *from, size_t count) {
#if defined(__x86_64__)
    if (count == PANEL) {
        for (size_t i = 0; i < PANEL; i += 4)
            _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
        return;
    }
#endif
    memcpy(to, from, count * sizeof(float));
}

/* Makes the rows that copy_row stored visible to other threads before anything is stored later. */
static void finish_rows(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* Stores rows [first, first + n_rows) of up to PANEL columns of a panel in 16 bits. The given rows
 * begin `stride` apart; to[0] is the panel's element in row 0 and the first of the columns. Returns
 * 0 if a value does not fit. */
static int narrow_rows(const packed_matrix *m, const kernel_table *kernels, const float *rows,
                       size_t stride, size_t first, size_t n_rows, size_t n_columns, uint16_t *to) {
    return kernels->narrow(rows, stride, (int)n_rows, (int)n_columns, (int)m->dtype,
                           to + first * PANEL);
}

int pack_k_rows(const packed_matrix *m, const kernel_table *kernels, int n_scales,
                const float *rows, size_t begin, size_t n_rows) {
    float weights[GROUP][PANEL];
    for (size_t r = 0; r < n_rows; r += GROUP) {
        size_t n_in_group = min_size(n_rows - r, GROUP);
        for (size_t panel = 0; panel < n_panels_for(m->n); panel++) {
            size_t count = min_size(m->n - panel * PANEL, PANEL);
            const float *from = rows + r * m->n + panel * PANEL;
            if (m->dtype == GPT2C_FLOAT32) {
                float *to = float_panel(m, panel) + (begin + r) * PANEL;
                for (size_t i = 0; i < n_in_group; i++)
                    copy_row(to + i * PANEL, from + i * m->n, count);
                continue;
            }
            if (is_narrow(m->dtype)) {
                if (!narrow_rows(m, kernels, from, m->n, begin + r, n_in_group, count,
                                 narrow_panel(m, panel)))
                    return 0;
                continue;
            }
            memset(weights, 0, sizeof weights);
            for (size_t i = 0; i < n_in_group; i++)
                memcpy(weights[i], from + i * m->n, count * sizeof(float));
            quantize_to_block(m, kernels, n_scales, weights[0], panel, (begin + r) / GROUP);
        }
    }
    finish_rows();
    return 1;
}

/* Transposes up to PANEL rows. Writes are sequential. Reads go through one cache line of each row
 * at a time, and the L1 cache keeps these lines. */
static void transpose(float *to, const float *rows, size_t n_rows, size_t stride, size_t k) {
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < n_rows; j++)
            to[i * PANEL + j] = rows[j * stride + i];
}

/* Transposes PANEL rows, which fill a whole panel of floats. */
static void transpose_to_panel(float *to, const float *rows, size_t k) {
    float row[PANEL];
    for (size_t i = 0; i < k; i++) {
        for (size_t j = 0; j < PANEL; j++)
            row[j] = rows[j * k + i];
        copy_row(to + i * PANEL, row, PANEL);
    }
}

int pack_n_rows(const packed_matrix *m, const kernel_table *kernels, int n_scales,
                const float *rows, size_t begin, size_t n_rows) {
    float weights[GROUP][PANEL];
    for (size_t r = 0, count; r < n_rows; r += count) {
        size_t row = begin + r, panel = row / PANEL;
        const float *from = rows + r * m->k;
        count = min_size(PANEL - row % PANEL, n_rows - r);
        if (m->dtype == GPT2C_FLOAT32) {
            float *to = float_panel(m, panel) + row % PANEL;
            if (count == PANEL)
                transpose_to_panel(to, from, m->k);
            else
                transpose(to, from, count, m->k, m->k);
            continue;
        }
        for (size_t group = 0; group < n_groups_for(m->k); group++) {
            size_t n_in_group = min_size(m->k - group * GROUP, GROUP);
            memset(weights, 0, sizeof weights);
            transpose(weights[0], from + group * GROUP, count, m->k, n_in_group);
            if (!is_narrow(m->dtype))
                quantize_to_block(m, kernels, n_scales, weights[0], panel, group);
            else if (!narrow_rows(m, kernels, weights[0], PANEL, group * GROUP, n_in_group, count,
                                  narrow_panel(m, panel) + row % PANEL))
                return 0;
        }
    }
    finish_rows();
    return 1;
}

/* ---- reading back ---- */

/* A column's 16 bits of scale data. */
static unsigned word_of(const unsigned char *words, size_t column) {
    return words[2 * column] | (unsigned)words[2 * column + 1] << 8;
}

static float float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Reads the first n weights of a column in a block, dequantised. The products are exact, because
 * a quantised value and the significand of a scale have at most 8 bits each. */
static void read_block_column(const unsigned char *block, gpt2c_dtype dtype, size_t column,
                              size_t n, float *values) {
    const unsigned char *bytes = block + 4 * column; /* four bytes of each column in turn */
    if (dtype == GPT2C_INT8) {
        float scale = float_from_bits(word_of(block + GROUP * PANEL, column) << 16);
        for (size_t i = 0; i < n; i++)
            values[i] = (float)((int)bytes[i / 4 * PANEL * 4 + i % 4] - 128) * scale;
        return;
    }
    unsigned word = word_of(block + GROUP / 2 * PANEL, column);
    int zero = (int)(word & 15);
    float scale = float_from_bits(((uint32_t)(word & 0xfff0) << (INT4_SCALE_SHIFT - 4)) +
                                  (INT4_SCALE_EXPONENT << 23));
    for (size_t i = 0; i < n; i++) {
        size_t half = i % (GROUP / 2);
        unsigned byte = bytes[half / 4 * PANEL * 4 + half % 4];
        int nibble = (int)(i < GROUP / 2 ? byte & 15 : byte >> 4);
        values[i] = (float)(nibble - zero) * scale;
    }
}

/* Reads rows [first, first + n) of a column as float32. The rows must lie in one group. */
static void read_column(const packed_matrix *m, size_t column, size_t first, size_t n,
                        float *values) {
    size_t panel = column / PANEL, offset_in_group = first % GROUP;
    if (m->dtype == GPT2C_FLOAT32) {
        const float *from = float_panel(m, panel) + first * PANEL + column % PANEL;
        for (size_t i = 0; i < n; i++)
            values[i] = from[i * PANEL];
        return;
    }
    if (is_narrow(m->dtype)) {
        const uint16_t *from = narrow_panel(m, panel) + first * PANEL + column % PANEL;
        for (size_t i = 0; i < n; i++)
            values[i] = m->dtype == GPT2C_FLOAT16
                            ? float16_value(from[i * PANEL])
                            : float_from_bits((uint32_t)from[i * PANEL] << 16);
        return;
    }
    float group_values[GROUP];
    read_block_column(block_of(m, panel, first / GROUP), m->dtype, column % PANEL,
                      offset_in_group + n, group_values);
    memcpy(values, group_values + offset_in_group, n * sizeof(float));
}

void unpack_k_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows) {
    float values[GROUP];
    for (size_t r = 0, n; r < n_rows; r += n) {
        n = min_size(n_rows - r, GROUP - (begin + r) % GROUP);
        for (size_t column = 0; column < m->n; column++) {
            read_column(m, column, begin + r, n, values);
            for (size_t i = 0; i < n; i++)
                rows[(r + i) * m->n + column] = values[i];
        }
    }
}

void unpack_n_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows) {
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < m->k; i += GROUP)
            read_column(m, begin + r, i, min_size(m->k - i, GROUP), rows + r * m->k + i);
}

/* Reads the rows of a group in a panel as float32, and sets rows beyond k to 0. */
static void read_group(const packed_matrix *m, const kernel_table *kernels, size_t panel,
                       size_t group, float weights[GROUP][PANEL]) {
    size_t first = group * GROUP, n_in_group = min_size(m->k - first, GROUP);
    memset(weights[n_in_group], 0, (GROUP - n_in_group) * sizeof weights[0]);
    if (is_narrow(m->dtype)) {
        kernels->widen(narrow_panel(m, panel) + first * PANEL, n_in_group * PANEL, (int)m->dtype,
                       weights[0]);
        return;
    }
    for (size_t column = 0; column < PANEL; column++) {
        float values[GROUP];
        read_column(m, panel * PANEL + column, first, n_in_group, values);
        for (size_t i = 0; i < n_in_group; i++)
            weights[i][column] = values[i];
    }
}

void repack_panels(const packed_matrix *m, const kernel_table *kernels, const packed_matrix *from,
                   size_t begin, size_t end) {
    float weights[GROUP][PANEL];
    for (size_t panel = begin; panel < end; panel++)
        for (size_t group = 0; group < n_groups_for(m->k); group++) {
            const float *rows = weights[0];
            if (from->dtype == GPT2C_FLOAT32 && (group + 1) * GROUP <= m->k)
                rows = float_panel(from, panel) + group * GROUP * PANEL;
            else
                read_group(from, kernels, panel, group, weights);
            quantize_to_block(m, kernels, 1, rows, panel, group);
        }
}
