/* The memory of a model's weights: allocated, or attached. */
#ifndef GPT2C_ARENA_H
#define GPT2C_ARENA_H

#include "model/model.h"

/* Lays tensors out in the arena. A first walk, with base NULL, only counts floats. A second walk
 * assigns the memory. */
typedef struct {
    float *base;
    size_t used; /* floats */
    int overflow;
} arena_walk;

/* Tensors lie in the order of use, so that a pass reads the arena from front to back. A draft
 * model has matrices only, and shares the base's vectors. */
void arena_lay_out(gpt2c_model *m, arena_walk *walk);

/* Allocates the arena, whose size a first walk has measured, and lays the tensors out in it.
 * Returns 0 if memory runs out. */
int arena_allocate(gpt2c_model *m, const arena_walk *measured);
/* Lays the tensors out in memory of the caller's, if it has the size that was measured. */
gpt2c_status arena_attach(gpt2c_model *m, const arena_walk *measured, const void *memory,
                          size_t n_bytes);
/* Frees the arena, unless it is the caller's. */
void arena_free(gpt2c_model *m);

#endif
