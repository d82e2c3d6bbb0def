/* Packing matrices into panels, and reading them back. */
#include "pack.h"

#include <string.h>

#if GROUP != PANEL
#error "a chunk of rows must be groups of k and panels of n alike"
#endif

size_t pack_panel_bytes(gpt2c_weights weights, size_t k) {
    switch (weights) {
    case GPT2C_INT8:
        return groups_of(k) * INT8_BLOCK;
    case GPT2C_INT4:
        return groups_of(k) * INT4_BLOCK;
    default:
        return k * PANEL * sizeof(float);
    }
}

static unsigned char *panel_of(const packed_matrix *m, size_t panel) {
    return (unsigned char *)m->panels + panel * pack_panel_bytes(m->weights, m->k);
}

static float *float_panel(const packed_matrix *m, size_t panel) {
    return (float *)m->panels + panel * m->k * PANEL;
}

static unsigned char *block_of(const packed_matrix *m, size_t panel, size_t group) {
    return panel_of(m, panel) + group * (m->weights == GPT2C_INT8 ? INT8_BLOCK : INT4_BLOCK);
}

/* ---- packing ---- */

static void quantize(const packed_matrix *m, const kernel_table *kernels, int n_candidates,
                     const float *tile, size_t panel, size_t group) {
    unsigned char *block = block_of(m, panel, group);
    if (m->weights == GPT2C_INT8)
        kernels->quantize_int8(tile, block);
    else
        kernels->quantize_int4(tile, n_candidates, block);
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

void pack_k_rows(const packed_matrix *m, const kernel_table *kernels, int n_candidates,
                 const float *rows, size_t begin, size_t n_rows) {
    float tile[GROUP][PANEL];
    for (size_t r = 0; r < n_rows; r += GROUP) {
        size_t in_group = least(n_rows - r, GROUP);
        for (size_t panel = 0; panel < panels_of(m->n); panel++) {
            size_t count = least(m->n - panel * PANEL, PANEL);
            const float *from = rows + r * m->n + panel * PANEL;
            if (m->weights == GPT2C_FLOAT32) {
                float *to = float_panel(m, panel) + (begin + r) * PANEL;
                for (size_t i = 0; i < in_group; i++)
                    memcpy(to + i * PANEL, from + i * m->n, count * sizeof(float));
                continue;
            }
            memset(tile, 0, sizeof tile);
            for (size_t i = 0; i < in_group; i++)
                memcpy(tile[i], from + i * m->n, count * sizeof(float));
            quantize(m, kernels, n_candidates, tile[0], panel, (begin + r) / GROUP);
        }
    }
}

/* Transposes up to PANEL rows at a time: the writes run on, and the rows read, a cache line of each,
 * fit the first-level cache. */
static void transpose(float *to, const float *rows, size_t n_rows, size_t stride, size_t k) {
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < n_rows; j++)
            to[i * PANEL + j] = rows[j * stride + i];
}

void pack_n_rows(const packed_matrix *m, const kernel_table *kernels, int n_candidates,
                 const float *rows, size_t begin, size_t n_rows) {
    float tile[GROUP][PANEL];
    for (size_t r = 0, count; r < n_rows; r += count) {
        size_t row = begin + r, panel = row / PANEL;
        const float *from = rows + r * m->k;
        count = least(PANEL - row % PANEL, n_rows - r);
        if (m->weights == GPT2C_FLOAT32) {
            transpose(float_panel(m, panel) + row % PANEL, from, count, m->k, m->k);
            continue;
        }
        for (size_t group = 0; group < groups_of(m->k); group++) {
            memset(tile, 0, sizeof tile);
            transpose(tile[0], from + group * GROUP, count, m->k,
                      least(m->k - group * GROUP, GROUP));
            quantize(m, kernels, n_candidates, tile[0], panel, group);
        }
    }
}

/* ---- reading back ---- */

static unsigned word_of(const unsigned char *words, size_t column) {
    return words[2 * column] | (unsigned)words[2 * column + 1] << 8;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Exact: a value of 9 bits times a scale of 8. */
static float value_in_block(const unsigned char *block, gpt2c_weights weights, size_t i,
                            size_t column) {
    if (weights == GPT2C_INT8) {
        unsigned byte = block[(i / 4 * PANEL + column) * 4 + i % 4];
        return (float)((int)byte - 128) * float_of(word_of(block + GROUP * PANEL, column) << 16);
    }
    size_t half = i % (GROUP / 2);
    unsigned byte = block[(half / 4 * PANEL + column) * 4 + half % 4];
    unsigned word = word_of(block + GROUP / 2 * PANEL, column);
    int nibble = (int)(i < GROUP / 2 ? byte & 15 : byte >> 4), zero = (int)(word & 15);
    uint32_t scale = ((uint32_t)(word & 0xfff0) << (INT4_MANTISSA - 4)) + (INT4_EXPONENT << 23);
    return (float)(nibble - zero) * float_of(scale);
}

static float value_at(const packed_matrix *m, size_t i, size_t column) {
    size_t panel = column / PANEL;
    if (m->weights == GPT2C_FLOAT32)
        return float_panel(m, panel)[i * PANEL + column % PANEL];
    return value_in_block(block_of(m, panel, i / GROUP), m->weights, i % GROUP, column % PANEL);
}

void unpack_k_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows) {
    for (size_t r = 0; r < n_rows; r++)
        for (size_t column = 0; column < m->n; column++)
            rows[r * m->n + column] = value_at(m, begin + r, column);
}

void unpack_n_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows) {
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < m->k; i++)
            rows[r * m->k + i] = value_at(m, i, begin + r);
}

void pack_again(const packed_matrix *m, const kernel_table *kernels, const packed_matrix *from,
                size_t begin, size_t end) {
    float tile[GROUP][PANEL];
    for (size_t panel = begin; panel < end; panel++)
        for (size_t group = 0; group < groups_of(m->k); group++) {
            size_t first = group * GROUP, in_group = least(m->k - first, GROUP);
            const float *rows = float_panel(from, panel) + first * PANEL;
            if (from->weights != GPT2C_FLOAT32 || in_group < GROUP) {
                memset(tile, 0, sizeof tile);
                for (size_t i = 0; i < in_group; i++)
                    for (size_t column = 0; column < PANEL; column++)
                        tile[i][column] = value_at(from, first + i, panel * PANEL + column);
                rows = tile[0];
            }
            quantize(m, kernels, 1, rows, panel, group);
        }
}
