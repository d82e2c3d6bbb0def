/* The memory of one forward call at a time: rows between the steps, and what each worker has to itself. */
#ifndef GPT2C_SCRATCH_H
#define GPT2C_SCRATCH_H

#include "model/model.h"
#include "sample/candidates.h"

typedef struct {
    gpt2c_sequence *sequence;
    int32_t position;
    int32_t token;
    int wants_logits;
} input_row;

/* With so few rows every worker norms (and quantises) them all for itself: that is cheaper than waiting at a
 * barrier for the others' part. */
#define OWN_NORM_ROWS 2

/* Rows of floats that begin a stride apart. */
typedef struct {
    float *floats;
    size_t stride;
} float_rows;

static inline float *row_of(float_rows m, int r) { return m.floats + (size_t)r * m.stride; }

/* Rows between two steps: floats or, where they meet quantised weights, 8 bits. */
typedef struct {
    float_rows floats;
    quantized_rows quantized;
} activations;

/* Between the groups of quantised rows, for the same reason as rows of floats lie apart. */
#define GROUP_SPACE 64

/* Quantised rows where n_rows of them are. */
static inline quantized_rows quantized_layout(quantized_rows q, int n_rows) {
    q.stride = (size_t)n_rows;
    q.values_stride = q.stride * GROUP + GROUP_SPACE;
    return q;
}

/* The same rows from the r-th on, and of these the groups from the g-th on. */
static inline quantized_rows quantized_slice(quantized_rows q, int r, size_t g) {
    q.values += g * q.values_stride + (size_t)r * GROUP;
    q.scales += g * q.stride + (size_t)r;
    q.minus_sums += g * q.stride + (size_t)r;
    return q;
}

/* What a worker has to itself. */
typedef struct {
    float_rows scores;      /* [ATTENTION_ROWS, n_positions] */
    activations normed;     /* [OWN_NORM_ROWS, n_embd] */
    candidates *candidates; /* taken when they are asked for */
} worker_scratch;

struct gpt2c_scratch {
    int32_t n_rows;       /* at most, of a call */
    input_row *rows;      /* [n_rows] */
    float_rows residual;  /* [rows, n_embd] */
    activations normed;   /* [rows, n_embd] */
    float_rows qkv;       /* [rows, 3 n_embd] */
    activations attended; /* [rows, n_embd] */
    activations inner;    /* [rows, n_inner], floats or 8 bits */
    float *logits;        /* taken when they are asked for: [n_logits_rows, n_vocab] */
    int32_t n_logits_rows;
    int n_workers;
    worker_scratch *workers; /* [n_workers] */
};

#endif
