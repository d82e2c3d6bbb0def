/* The table of GPT-2's tensors: their names, shapes and packing. */
#ifndef GPT2C_TENSORS_H
#define GPT2C_TENSORS_H

#include "model/model.h"

/* How a tensor is stored. Vectors and wpe are stored as they are given (AS_GIVEN). Matrices are
 * packed with the shape [k, n]. The rows of a tensor become the rows of the packed matrix
 * (ROWS_ARE_K) or, for wte and lm_head, its columns (ROWS_ARE_N). */
typedef enum { AS_GIVEN, ROWS_ARE_K, ROWS_ARE_N } packing;

/* One tensor of a model. */
typedef struct {
    packing packing;
    size_t n_rows, width;  /* a vector is one row; 0 rows: the model has no such tensor */
    gpt2c_dtype dtype;     /* only of a matrix */
    float **floats;        /* the model's pointer to a tensor AS_GIVEN, or NULL */
    packed_matrix *matrix; /* the model's matrix, or NULL */
} tensor_view;

/* Finds a tensor. The layer is ignored for tensors outside the layers. */
tensor_view tensor_find(const gpt2c_model *m, gpt2c_tensor tensor, int32_t layer);

/* How many tensors a model has, and the i-th tensor in the order of the arena. */
int32_t tensor_count(const gpt2c_model *m);
tensor_view tensor_at(const gpt2c_model *m, int32_t i);

#endif
