/* How matrices lie in memory: packed into panels, of floats or of quantised groups. */
#ifndef GPT2C_PACK_H
#define GPT2C_PACK_H

#include "gpt2c.h"
#include "kernels/kernels.h"

/* Panels of PANEL columns, [ceil(n / PANEL)], zero beyond n: of floats [k][PANEL], or of blocks
 * [ceil(k / GROUP)], see kernels.h. */
typedef struct {
    void *panels;
    size_t k, n;
    gpt2c_dtype dtype;
} packed_matrix;

static inline size_t panels_of(size_t n) { return (n + PANEL - 1) / PANEL; }

static inline size_t groups_of(size_t k) { return (k + GROUP - 1) / GROUP; }

/* The bytes of a panel; k is at most 2^23. */
size_t pack_panel_bytes(gpt2c_dtype dtype, size_t k);

/* Stores rows [begin, begin + n_rows) of a matrix [k, n], or, transposed, of [n, k]. Of one that is
 * quantised begin, and n_rows but at the end, are multiples of GROUP; int4 searches its scales among
 * n_candidates. */
void pack_k_rows(const packed_matrix *m, const kernel_table *kernels, int n_candidates,
                 const float *rows, size_t begin, size_t n_rows);
void pack_n_rows(const packed_matrix *m, const kernel_table *kernels, int n_candidates,
                 const float *rows, size_t begin, size_t n_rows);

/* Quantises panels [begin, end) of what another matrix of this shape has, without a search. */
void repack_panels(const packed_matrix *m, const kernel_table *kernels, const packed_matrix *from,
                   size_t begin, size_t end);

/* The same rows, as far as they were kept. */
void unpack_k_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows);
void unpack_n_rows(const packed_matrix *m, float *rows, size_t begin, size_t n_rows);

#endif
