#include "model/tensors.h"

typedef enum { ONE, N_EMBD, THREE_N_EMBD, N_INNER, N_POSITIONS, N_VOCAB } dimension;

typedef struct {
    const char *name; /* for a tensor of a layer, without "h.N." */
    dimension n_rows, width;
    packing packing;
    size_t offset; /* in gpt2c_model, or in layer_tensors */
} tensor_info;

#define MODEL(field) offsetof(gpt2c_model, field)
#define LAYER(field) offsetof(layer_tensors, field)

static const tensor_info tensors[GPT2C_N_TENSORS] = {
    [GPT2C_WPE] = {"wpe.weight", N_POSITIONS, N_EMBD, AS_GIVEN, MODEL(wpe)},
    [GPT2C_LN_1_WEIGHT] = {"ln_1.weight", ONE, N_EMBD, AS_GIVEN, LAYER(ln_1_weight)},
    [GPT2C_LN_1_BIAS] = {"ln_1.bias", ONE, N_EMBD, AS_GIVEN, LAYER(ln_1_bias)},
    [GPT2C_C_ATTN_WEIGHT] = {"attn.c_attn.weight", N_EMBD, THREE_N_EMBD, ROWS_ARE_K,
                             LAYER(c_attn_weight)},
    [GPT2C_C_ATTN_BIAS] = {"attn.c_attn.bias", ONE, THREE_N_EMBD, AS_GIVEN, LAYER(c_attn_bias)},
    [GPT2C_ATTN_C_PROJ_WEIGHT] = {"attn.c_proj.weight", N_EMBD, N_EMBD, ROWS_ARE_K,
                                  LAYER(attn_c_proj_weight)},
    [GPT2C_ATTN_C_PROJ_BIAS] = {"attn.c_proj.bias", ONE, N_EMBD, AS_GIVEN, LAYER(attn_c_proj_bias)},
    [GPT2C_LN_2_WEIGHT] = {"ln_2.weight", ONE, N_EMBD, AS_GIVEN, LAYER(ln_2_weight)},
    [GPT2C_LN_2_BIAS] = {"ln_2.bias", ONE, N_EMBD, AS_GIVEN, LAYER(ln_2_bias)},
    [GPT2C_C_FC_WEIGHT] = {"mlp.c_fc.weight", N_EMBD, N_INNER, ROWS_ARE_K, LAYER(c_fc_weight)},
    [GPT2C_C_FC_BIAS] = {"mlp.c_fc.bias", ONE, N_INNER, AS_GIVEN, LAYER(c_fc_bias)},
    [GPT2C_MLP_C_PROJ_WEIGHT] = {"mlp.c_proj.weight", N_INNER, N_EMBD, ROWS_ARE_K,
                                 LAYER(mlp_c_proj_weight)},
    [GPT2C_MLP_C_PROJ_BIAS] = {"mlp.c_proj.bias", ONE, N_EMBD, AS_GIVEN, LAYER(mlp_c_proj_bias)},
    [GPT2C_LN_F_WEIGHT] = {"ln_f.weight", ONE, N_EMBD, AS_GIVEN, MODEL(ln_f_weight)},
    [GPT2C_LN_F_BIAS] = {"ln_f.bias", ONE, N_EMBD, AS_GIVEN, MODEL(ln_f_bias)},
    [GPT2C_WTE] = {"wte.weight", N_VOCAB, N_EMBD, ROWS_ARE_N, MODEL(wte)},
    [GPT2C_LM_HEAD] = {"lm_head.weight", N_VOCAB, N_EMBD, ROWS_ARE_N, MODEL(lm_head)},
};

#define FIRST_LAYER_TENSOR ((int32_t)GPT2C_LN_1_WEIGHT)
#define N_LAYER_TENSORS ((int32_t)GPT2C_LN_F_WEIGHT - FIRST_LAYER_TENSOR)

const char *gpt2c_tensor_name(gpt2c_tensor tensor) { return tensors[tensor].name; }

static size_t dimension_size(const gpt2c_config *c, dimension d) {
    const size_t n_embd = (size_t)c->n_embd;
    const size_t sizes[] = {
        [ONE] = 1,
        [N_EMBD] = n_embd,
        [THREE_N_EMBD] = 3 * n_embd,
        [N_INNER] = (size_t)c->n_inner,
        [N_POSITIONS] = (size_t)c->n_positions,
        [N_VOCAB] = (size_t)c->n_vocab,
    };
    return sizes[d];
}

tensor_view tensor_find(const gpt2c_model *m, gpt2c_tensor tensor, int32_t layer) {
    const gpt2c_config *c = &m->config;
    int is_in_layer = tensor >= GPT2C_LN_1_WEIGHT && tensor < GPT2C_LN_F_WEIGHT;
    if ((tensor == GPT2C_LM_HEAD && c->tied_lm_head) ||
        (is_in_layer && (layer < 0 || layer >= c->n_layer)))
        return (tensor_view){.packing = AS_GIVEN};
    const tensor_info *info = &tensors[tensor];
    char *field = (is_in_layer ? (char *)&m->layers[layer] : (char *)m) + info->offset;
    tensor_view view = {.packing = info->packing,
                        .n_rows = dimension_size(c, info->n_rows),
                        .width = dimension_size(c, info->width)};
    if (info->packing == AS_GIVEN) {
        view.floats = (float **)(void *)field;
    } else {
        view.matrix = (packed_matrix *)(void *)field;
        view.dtype = (gpt2c_dtype)(is_in_layer ? c->layer_dtype : c->embedding_dtype);
        if (view.dtype == GPT2C_FLOAT32 && is_narrow(view.matrix->dtype))
            view.dtype = view.matrix->dtype;
    }
    return view;
}

int32_t tensor_count(const gpt2c_model *m) {
    int32_t n_outside_layers = GPT2C_N_TENSORS - N_LAYER_TENSORS - (m->config.tied_lm_head ? 1 : 0);
    return n_outside_layers + N_LAYER_TENSORS * m->config.n_layer;
}

tensor_view tensor_at(const gpt2c_model *m, int32_t i) {
    int32_t index_in_layers = i - FIRST_LAYER_TENSOR,
            n_in_layers = N_LAYER_TENSORS * m->config.n_layer;
    if (index_in_layers >= 0 && index_in_layers < n_in_layers)
        return tensor_find(m,
                           (gpt2c_tensor)(FIRST_LAYER_TENSOR + index_in_layers % N_LAYER_TENSORS),
                           index_in_layers / N_LAYER_TENSORS);
    return tensor_find(
        m, (gpt2c_tensor)(index_in_layers < 0 ? i : i - n_in_layers + N_LAYER_TENSORS), 0);
}
