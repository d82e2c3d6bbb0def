/* One forward call: what its workers share, each one's view of it, and the steps that forward.c is made
 * of. A step is called by all workers, does this one's share, and ends when what it wrote may be read. */
#ifndef GPT2C_PASS_H
#define GPT2C_PASS_H

#include "pass/scratch.h"
#include "pool.h"

/* What a probed call needs besides. */
typedef struct {
    float *scores, *probs; /* [n_head, n_rows, n_rows] */
    float *sums;           /* [n_head, n_rows] */
    int is_stopped;
} probe_buffers;

/* What the workers of one call share. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    int n_rows;
    float *logits; /* [rows that want them, n_vocab]; for scores [SCORE_ROWS, n_vocab] */
    /* Where scores are asked for, for each row that wants logits: */
    const int32_t *targets;
    const gpt2c_scores *scores;
    const gpt2c_probe *probe; /* or NULL */
    probe_buffers *buffers;   /* of a probed call */
} pass;

/* One worker's view of the call. */
typedef struct {
    const pass *pass;
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    worker_scratch *own;
    pool_team *team;
    int worker, n_workers;
} worker_view;

static inline int is_quantized(const worker_view *view) {
    return view->model->config.layer_dtype != GPT2C_FLOAT32;
}

/* Rows [begin, end) of x, k wide, in 8 bits too, where that is how they are read; without a barrier. */
static inline void quantize(const worker_view *view, activations x, int begin, int end, int32_t k) {
    if (is_quantized(view))
        view->model->kernels->quantize_rows(x.floats.floats, x.floats.stride, begin, end, k,
                                            &x.quantized);
}

/* ---- products.c ---- */

typedef struct {
    const packed_matrix *weight;
    const float *bias; /* or NULL */
    int32_t activation;
} linear;

/* out = activation(x @ weight + bias), plus what out held where `add` is set. */
void matmul(const worker_view *view, activations x, linear l, float_rows out, int n_rows, int add);
/* The same where another matmul comes next, which takes the result as it reads it. */
activations matmul_to_activations(const worker_view *view, activations x, linear l, activations out,
                                  int n_rows);
/* Some of the result's columns, for this worker alone: panels [begin, end), without a barrier. */
void matmul_panels(const worker_view *view, activations x, linear l, float_rows out, int n_rows,
                   int begin, int end);

/* ---- attention.c ---- */

/* Attention of all rows, from their norm to what attn.c_proj reads. */
activations attend(const worker_view *view, int32_t layer, activations normed, linear c_attn);

/* ---- probe.c ---- */

/* Whether a point of a layer is asked for: the same for all workers, and 0 where nothing is probed. */
int is_probed(const worker_view *view, gpt2c_point point, int32_t layer);
/* Shows rows [n_rows, width] that all workers have completed, where they are asked for: when it returns they
 * are what they were changed to, for all. */
void probe_point(const worker_view *view, gpt2c_point point, int32_t layer, float_rows rows,
                 int n_rows, int32_t width);
/* Polls whether the call should stop: the same result on all workers, who must all call it. */
int poll_stop_collective(const worker_view *view);

gpt2c_status probe_buffers_alloc(probe_buffers *buffers, const gpt2c_probe *probe,
                                 const gpt2c_config *config, int32_t n_rows);
void probe_buffers_free(probe_buffers *buffers);

#endif
