/* Matrices packed into panels of columns. A panel holds floats of 32 or 16 bits, or blocks of
 * quantised values. */
#ifndef GPT2C_PACK_H
#define GPT2C_PACK_H

#include "gpt2c.h"
#include "kernels/kernels.h"

/* A matrix [k, n] as ceil(n / PANEL) panels of PANEL columns, with zeros beyond n. A panel is
 * [k][PANEL] floats of 32 or 16 bits, or ceil(k / GROUP) blocks (see kernels.h). */
typedef struct {
    void *panels;
    size_t k, n;
    gpt2c_dtype dtype;
    int is_outside_arena; /* the panels have an allocation of their own */
} packed_matrix;

static inline int is_narrow(gpt2c_dtype dtype) {
    return dtype == GPT2C_FLOAT16 || dtype == GPT2C_BFLOAT16;
}

static inline int is_integer(gpt2c_dtype dtype) {
    return dtype == GPT2C_INT8 || dtype == GPT2C_INT4;
}

static inline size_t n_panels_for(size_t n) { return (n + PANEL - 1) / PANEL; }

static inline size_t n_groups_for(size_t k) { return (k + GROUP - 1) / GROUP; }

/* The size of a panel in bytes; k is at most 2^23. */
size_t pack_panel_bytes(gpt2c_dtype dtype, size_t k);

static inline size_t pack_bytes(const packed_matrix *m) {
    return n_panels_for(m->n) * pack_panel_bytes(m->dtype, m->k);
}

/* Store rows [begin, begin + n_rows), given as rows of the matrix [k, n] (pack_k_rows) or of its
 * transpose [n, k] (pack_n_rows). In a quantised matrix, begin is a multiple of GROUP, and so is
 * n_rows unless the rows reach the end. For int4, n_scales scales are tried for each group. Both
 * functions return 0 if the matrix is stored in 16 bits and a value does not fit exactly. */
int pack_k_rows(const packed_matrix *m, const kernel_table *kernels, int n_scales,
                const float *rows, size_t begin, size_t n_rows);
int pack_n_rows(const packed_matrix *m, const kernel_table *kernels, int n_scales,
                const float *rows, size_t begin, size_t n_rows);

/* Quantises panels [begin, end) of `from`, a matrix of the same shape, into m, without a search for
 * scales. */
void repack_panels(const packed_matrix *m, const kernel_table *kernels, const packed_matrix *from,
                   size_t begin, size_t end);

/* Read rows [begin, begin + n_rows) back as float32. */
void unpack_k_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows);
void unpack_n_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows);

#endif
