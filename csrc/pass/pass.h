/* The state of one forward call, and the steps that forward.c runs. A step is collective: all
 * workers call it, and each does its share of the work. When a step returns, its whole output may
 * be read. */
#ifndef GPT2C_PASS_H
#define GPT2C_PASS_H

#include "pass/scratch.h"
#include "pool.h"

/* The additional state of a probed call. */
typedef struct {
    float *scores, *probs; /* [n_head, n_rows, n_rows] */
    float *sums;           /* of the softmax weights, [n_head, n_rows] */
    int is_stopped;        /* the call is to end without a result */
} probe_buffers;

/* The token to score from a row's logits, and where its score goes. */
typedef struct {
    int32_t target;
    const gpt2c_scores *scores;
    size_t at; /* the index in `scores` */
} row_to_score;

/* A forward call: what its workers share. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    int n_rows;
    /* [rows whose logits are wanted, n_vocab]; in gpt2c_score [SCORE_ROWS, n_vocab] */
    float *logits;
    const row_to_score
        *rows_to_score;       /* in gpt2c_score, one for each row whose logits are wanted */
    float *hidden;            /* in gpt2c_hidden_states [n_rows, n_embd], else NULL */
    int32_t n_hidden_layers;  /* with hidden: run this many layers */
    const gpt2c_hooks *hooks; /* or NULL */
    probe_buffers *buffers;   /* in a probed call */
} pass;

/* A worker's view of the call. */
typedef struct {
    const pass *pass;
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    worker_scratch *own_scratch;
    pool_team *team;
    int worker, n_workers;
    attention_place attention_begin, attention_end; /* of this worker's share */
} worker_view;

static inline int is_quantized(const worker_view *view) {
    return view->model->config.layer_dtype != GPT2C_FLOAT32;
}

/* Quantises rows [begin, end) of x, of width k, if the layers' matrices are quantised. Without a
 * barrier. */
static inline void quantize(const worker_view *view, activations x, int begin, int end, int32_t k) {
    if (is_quantized(view))
        view->model->kernels->quantize_rows(x.floats.floats, x.floats.stride, begin, end, k,
                                            &x.quantized);
}

/* ---- products.c ---- */

/* A linear layer, followed by an activation. */
typedef struct {
    const packed_matrix *weight;
    const float *bias;  /* or NULL */
    int32_t activation; /* a gpt2c_activation */
} linear;

/* Computes activation(x @ weight + bias), and stores it in out or, if is_added is set, adds it to
 * out. */
void matmul(const worker_view *view, activations x, linear l, float_rows out, int n_rows,
            int is_added);
/* Like matmul, but the output is the input of another matmul: it is quantised if the weights
 * are. */
activations matmul_to_activations(const worker_view *view, activations x, linear l, activations out,
                                  int n_rows);
/* Computes the columns of panels [begin, end) on this worker alone, without a barrier. */
void matmul_panels(const worker_view *view, activations x, linear l, float_rows out, int n_rows,
                   int begin, int end);

/* ---- attention.c ---- */

/* Attention of all rows, from layer norm's output to the input of attn.c_proj. */
activations attend(const worker_view *view, int32_t layer, activations normed, linear c_attn);

/* ---- probe.c ---- */

/* Whether a point of a layer is probed. All workers get the same answer. */
int is_probed(const worker_view *view, gpt2c_point point, int32_t layer);
/* Collective. If the point is probed, calls the hook with rows [n_rows, width]. All workers must
 * have completed the rows, and all see the edits afterwards. */
void probe_point(const worker_view *view, gpt2c_point point, int32_t layer, float_rows rows,
                 int n_rows, int32_t width);
/* Collective. Polls whether the call should stop. All workers get the same answer. */
int poll_stop_collective(const worker_view *view);

gpt2c_status probe_buffers_alloc(probe_buffers *buffers, const gpt2c_hooks *hooks,
                                 const gpt2c_config *config, int32_t n_rows);
void probe_buffers_free(probe_buffers *buffers);

/* The number of rows of logits that a feed wants. */
int32_t rows_wanted(const gpt2c_feed *feed);

#endif
