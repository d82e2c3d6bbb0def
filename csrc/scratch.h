/* The memory of one forward call at a time: rows between the steps, and what each worker has to itself. */
#ifndef GPT2C_SCRATCH_H
#define GPT2C_SCRATCH_H

#include "candidates.h"
#include "model.h"

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

static inline float *row_of(float_rows m, int r) {
    return m.floats + (size_t)r * m.stride;
}

/* What a worker has to itself. */
typedef struct {
    float_rows scores; /* [ATTENTION_ROWS, n_positions] */
    float_rows normed; /* [OWN_NORM_ROWS, n_embd] */
    quantized_rows quantized; /* [OWN_NORM_ROWS, widest input of a matmul] */
    candidates *candidates; /* taken when they are asked for */
} worker_scratch;

struct gpt2c_scratch {
    input_row rows[GPT2C_MAX_ROWS];
    float_rows residual; /* [rows, n_embd] */
    float_rows normed;   /* [rows, n_embd] */
    float_rows qkv;      /* [rows, 3 n_embd] */
    float_rows attended; /* [rows, n_embd] */
    float_rows inner;    /* [rows, n_inner] */
    quantized_rows quantized; /* [rows, widest input of a matmul] */
    float *logits; /* taken when they are asked for: [n_logits_rows, n_vocab] */
    int32_t n_logits_rows;
    int n_workers;
    worker_scratch *workers; /* [n_workers] */
};

/* Between the groups of quantised rows, for the same reason as rows of floats lie apart. */
#define GROUP_SPACE 64

#endif
