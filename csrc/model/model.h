/* The parts of a model. model.c and tensors.c set the parts, and the other files only read them. */
#ifndef GPT2C_MODEL_H
#define GPT2C_MODEL_H

#include "gpt2c.h"
#include "kernels/kernels.h"
#include "model/pack.h"

/* The tensors of one layer. Vectors are padded with zeros to a multiple of PANEL. */
typedef struct {
    float *ln_1_weight, *ln_1_bias;
    packed_matrix c_attn_weight;
    float *c_attn_bias;
    packed_matrix attn_c_proj_weight;
    float *attn_c_proj_bias;
    float *ln_2_weight, *ln_2_bias;
    packed_matrix c_fc_weight;
    float *c_fc_bias;
    packed_matrix mlp_c_proj_weight;
    float *mlp_c_proj_bias;
} layer_tensors;

struct gpt2c_model {
    gpt2c_config config;
    const gpt2c_model *base;     /* NULL; in a 4-bit copy, the owner of its vectors and sequences */
    struct cache_budget *budget; /* of the sequences' pages; a 4-bit copy uses its base's */
    const kernel_table *kernels;
    const integer_table *integer;
    int32_t head_dim;
    int32_t n_threads;     /* the max number of threads of a call */
    packed_matrix wte;     /* [n_embd, n_vocab]; a token's embedding is a column */
    packed_matrix lm_head; /* [n_embd, n_vocab]; the same as wte if tied_lm_head is 1 */
    float *wpe;            /* [n_positions, n_embd] */
    float *ln_f_weight, *ln_f_bias;
    layer_tensors *layers; /* [n_layer] */
    float *arena;
    size_t arena_bytes;
    int is_attached;      /* the arena is read-only memory of the caller's */
    size_t outside_bytes; /* of matrices outside the arena, less what they left unused in it */
};

#endif
