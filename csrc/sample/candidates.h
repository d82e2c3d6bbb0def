/* The ids that may still be drawn, and their logits while sampling options change them. */
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
    int is_sorted;               /* by (logit descending, id ascending); otherwise by id */
    float *weights;              /* [n], exp(logit - greatest), after candidates_weigh */
    uint64_t *keys, *spare_keys; /* [n_vocab], for sorting */
    int32_t *indices;            /* [n_vocab], see candidates_index */
    int has_indices;
    int32_t *counts;  /* [n_vocab], zero between uses */
    int32_t *history; /* [n_history], the prompt's ids and the new ones */
    int32_t n_history, n_prompt;
    int32_t *lengths;   /* [n_history], scratch of penalties.c */
    noise_key noise;    /* of this draw */
    float mirostat_mu;  /* the largest surprise in bits that mirostat keeps */
    float mirostat_sum; /* of the weights that mirostat saw; 0 without mirostat */
    int wants_margin;   /* set by who wants to know, for a choice: */
    float margin;       /* by how much it was ahead of the next best; NaN where nobody looked */
} candidates;

/* Room for one draw at a time; NULL without memory. */
candidates *candidates_create(const kernel_table *kernels, int32_t n_vocab, int32_t n_positions);
void candidates_free(candidates *c);
/* Those of a scratch's worker, taken when they are first asked for. */
candidates *gpt2c_scratch_candidates(gpt2c_scratch *scratch, const gpt2c_model *model, int worker);

/* All ids, with these logits. */
void candidates_fill(candidates *c, const float *logits);
/* The greatest logit's place; -1 where a logit is NaN. Of equal ones, the lowest id's. */
int32_t candidates_argmax(const candidates *c);
/* Sets the weights; returns their sum, or -1 where a logit is NaN or the greatest is infinite. */
double candidates_weigh(candidates *c);
void candidates_sort(candidates *c);
/* Back to the order of ids, in which logits may be changed. */
void candidates_unsort(candidates *c);
/* Where an id is, or NOT_FOUND if it was removed. To be called on unsorted candidates. */
int32_t candidates_index(candidates *c, int32_t id);
/* Sorts, and keeps the first k. */
void candidates_keep_top(candidates *c, int32_t k);
/* Keeps those whose weight is at least this. */
void candidates_keep_at_least(candidates *c, double min_weight);
/* The same, and in any case the most likely; no logit is NaN. */
void candidates_keep_best_or_at_least(candidates *c, double min_weight);
/* A key that sorts ascending as the number does. */
uint32_t ascending_key(float x);
/* Sorts by a key's upper half; equal ones keep their order. */
void candidates_sort_keys(candidates *c, int32_t n);

/* The ids of the k greatest of n logits, k up to GPT2C_MAX_TOP, by (logit descending, id ascending);
 * past the n-th NOT_FOUND. */
void top_ids(const float *logits, int32_t n, int32_t k, int32_t *ids);

/* Every stage: apply_top_k, apply_dry, ... (penalties.c, filters.c). */
#define DECLARE_STAGE(kind, option) void apply_##option(candidates *c, const gpt2c_stage *stage);
GPT2C_PENALTIES(DECLARE_STAGE)
GPT2C_FILTERS(DECLARE_STAGE)
#undef DECLARE_STAGE

#endif
