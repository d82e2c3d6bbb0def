/* The candidates of a draw: the ids that may still be drawn, with their logits, while the sampling
 * stages change and remove them. */
#ifndef GPT2C_CANDIDATES_H
#define GPT2C_CANDIDATES_H

#include "gpt2c.h"
#include "kernels/kernels.h"

#define NOT_FOUND (-1)

typedef struct {
    const kernel_table *kernels;
    int32_t n_vocab;
    float *logits; /* [n] */
    int32_t *ids;  /* [n] */
    int32_t n;
    int is_sorted;               /* 1: by (logit descending, id ascending); 0: by id */
    float *weights;              /* [n], exp(logit - max), set by candidates_weigh */
    uint64_t *keys, *spare_keys; /* [n_vocab], for sorting */
    int32_t *indices;            /* [n_vocab], for candidates_index */
    int has_indices;
    int32_t *counts;  /* [n_vocab]; all zero except while a penalty runs */
    int32_t *history; /* [n_history], the ids of the prompt and the generated ones */
    int32_t n_history, n_prompt;
    int32_t *lengths;   /* [n_history], a buffer of apply_dry */
    noise_key noise;    /* the key of the draw's noise */
    float mirostat_mu;  /* the largest surprisal in bits that mirostat keeps */
    float mirostat_sum; /* sum of the weights before mirostat removes ids; 0 without mirostat */
    int wants_margin;   /* set by a caller that wants the margin */
    float margin;       /* the chosen token's score minus the next best; NaN: not computed */
} candidates;

/* Allocates buffers for one draw at a time. Returns NULL if out of memory. */
candidates *candidates_create(const kernel_table *kernels, int32_t n_vocab, int32_t n_positions);
void candidates_free(candidates *c);

/* Makes all ids candidates, with these logits. */
void candidates_fill(candidates *c, const float *logits);
/* The index of the largest logit, or -1 if any logit is NaN. Of equal logits the lowest id wins. */
int32_t candidates_argmax(const candidates *c);
/* Sets the weights and returns their sum, or -1 if a logit is NaN or the largest is infinite. */
double candidates_weigh(candidates *c);
void candidates_sort_by_logit(candidates *c);
/* Restores the order of ids, which penalties need. */
void candidates_sort_by_id(candidates *c);
/* The index of an id, or NOT_FOUND if it was removed. The candidates must be sorted by id. */
int32_t candidates_index(candidates *c, int32_t id);
/* Keeps the k largest logits, sorted by logit. */
void candidates_keep_top(candidates *c, int32_t k);
/* Keeps the candidates whose weight is at least min_weight. */
void candidates_keep_at_least(candidates *c, double min_weight);
/* Like candidates_keep_at_least, but always keeps the most likely candidate. No logit may be
 * NaN. */
void candidates_keep_best_or_at_least(candidates *c, double min_weight);
/* Maps x to an unsigned integer with the same order. Both zeros map to the same integer. */
uint32_t ascending_key(float x);
/* Sorts the first n elements of c->keys by their upper 32 bits, ascending and stably. */
void candidates_sort_keys(candidates *c, int32_t n);

/* Sets ids[k] to the ids of the k largest of n logits, by (logit descending, id ascending), and to
 * NOT_FOUND beyond the n-th. k is at most GPT2C_MAX_TOP. */
void top_ids(const float *logits, int32_t n, int32_t k, int32_t *ids);

/* The stages: apply_top_k, apply_dry, ... (penalties.c, filters.c). */
#define DECLARE_STAGE(kind, option) void apply_##option(candidates *c, const gpt2c_stage *stage);
GPT2C_PENALTIES(DECLARE_STAGE)
GPT2C_FILTERS(DECLARE_STAGE)
#undef DECLARE_STAGE

#endif
