/* The memory of a forward call: activations between the steps, and buffers of each worker. */
#ifndef GPT2C_SCRATCH_H
#define GPT2C_SCRATCH_H

#include "model/model.h"
#include "pass/shares.h"
#include "sample/candidates.h"

typedef struct {
    gpt2c_sequence *sequence;
    int32_t position;
    int32_t token;
    int wants_logits;
} input_row;

/* With up to this many rows, every worker computes layer norm (and quantises) for itself, which is
 * cheaper than a barrier. */
#define OWN_NORM_ROWS 2

/* Rows of floats that begin a stride apart. */
typedef struct {
    float *floats;
    size_t stride;
} float_rows;

static inline float *row_of(float_rows m, int r) { return m.floats + (size_t)r * m.stride; }

/* Rows that one step writes and the next reads: floats and, if the next matrix is quantised, 8-bit
 * values. */
typedef struct {
    float_rows floats;
    quantized_rows quantized;
} activations;

/* Padding between the groups of quantised rows, for the reason given at alloc_rows. */
#define GROUP_PADDING 64

/* The layout of n_rows quantised rows. */
static inline quantized_rows quantized_layout(quantized_rows q, int n_rows) {
    q.stride = (size_t)n_rows;
    q.values_stride = q.stride * GROUP + GROUP_PADDING;
    return q;
}

/* The same rows and groups, without the first r rows and the first g groups. */
static inline quantized_rows quantized_slice(quantized_rows q, int r, size_t g) {
    q.values += g * q.values_stride + (size_t)r * GROUP;
    q.scales += g * q.stride + (size_t)r;
    q.minus_sums += g * q.stride + (size_t)r;
    return q;
}

/* The buffers of one worker. */
typedef struct {
    float_rows scores;      /* [ATTENTION_ROWS, n_positions] */
    activations normed;     /* [OWN_NORM_ROWS, n_embd] */
    float *widened;         /* a panel's 16-bit weights, widened: [max(n_embd, n_inner), PANEL] */
    candidates *candidates; /* allocated at the first use */
} worker_scratch;

struct gpt2c_scratch {
    int32_t n_rows;  /* the max number of rows of a call */
    input_row *rows; /* [n_rows] */
    attention_rows attention_rows;
    float_rows residual;  /* [rows, n_embd] */
    activations normed;   /* [rows, n_embd] */
    float_rows qkv;       /* [rows, 3 n_embd] */
    activations attended; /* [rows, n_embd] */
    activations inner;    /* [rows, n_inner], floats or 8-bit values */
    float *logits;        /* allocated at the first use: [n_logits_rows, n_vocab] */
    int32_t n_logits_rows;
    int n_workers;
    worker_scratch *workers; /* [n_workers] */
};

/* Returns the candidates of a worker, allocated at the first use; NULL if out of memory. */
candidates *gpt2c_scratch_candidates(gpt2c_scratch *scratch, const gpt2c_model *model, int worker);

#endif
