/* What a loaded model is made of; for model.c, which fills it, and the files that read it. */
#ifndef GPT2C_MODEL_H
#define GPT2C_MODEL_H

#include "gpt2c.h"
#include "kernels.h"

/* Matrices are packed into panels [ceil(n / PANEL)][k][PANEL], zero beyond n; vectors are padded
 * with zeros to a multiple of PANEL. */
typedef struct {
    float *ln_1_weight, *ln_1_bias;
    float *c_attn_weight, *c_attn_bias;
    float *attn_c_proj_weight, *attn_c_proj_bias;
    float *ln_2_weight, *ln_2_bias;
    float *c_fc_weight, *c_fc_bias;
    float *mlp_c_proj_weight, *mlp_c_proj_bias;
} block_weights;

struct gpt2c_model {
    gpt2c_config config;
    const kernel_table *kernels;
    int32_t head_dim;
    int32_t n_threads; /* most that a call uses */
    float *wte;  /* packed: the embedding reads its columns, a tied head its rows */
    float *wpe;  /* [n_positions, n_embd] as given */
    float *head; /* wte where the head is tied */
    float *ln_f_weight, *ln_f_bias;
    block_weights *blocks; /* [n_layer] */
    float *arena;
    size_t arena_bytes;
};

static inline size_t panels_of(size_t n) {
    return (n + PANEL - 1) / PANEL;
}

#endif
