/* The KV cache, in pages of PAGE_POSITIONS positions. A sequence grows page by page, its copies
 * share pages, and rolling back copies nothing.
 *
 * A page holds, for each layer, the keys [head][dim][position], so that scores vectorise over
 * positions, and then the values [head][position][dim], so that the weighted sum of values
 * vectorises over dimensions. The elements are floats, or bfloat16 if the configuration says so. */
#ifndef GPT2C_CACHE_H
#define GPT2C_CACHE_H

#include "model/model.h"

/* Counts and limits the bytes of a model's pages. It lives until the model and all its pages are
 * freed. */
typedef struct cache_budget cache_budget;

cache_budget *cache_budget_create(void); /* NULL if out of memory */
/* Drops one reference: that of a freed model or page. The last one frees the budget. */
void cache_budget_release(cache_budget *budget);

struct gpt2c_sequence {
    const gpt2c_model *model;
    int32_t length;  /* positions filled */
    int32_t n_pages; /* during a call this may be more than `length` needs */
    void **pages;    /* [room for n_positions]; a page is shared with copies until written */
    int in_forward;  /* 1 while a forward call feeds it; it cannot be fed twice */
};

/* Adds the pages that n_tokens more positions need, and copies the page of the next position if it
 * is shared. Returns GPT2C_CACHE_FULL if this would exceed the model's limit, or GPT2C_NO_MEMORY;
 * the sequence is then unchanged. */
gpt2c_status cache_reserve(gpt2c_sequence *sequence, int32_t n_tokens);

/* The bytes of the pages that cache_reserve would allocate. */
size_t cache_bytes_needed(const gpt2c_sequence *sequence, int32_t n_tokens);

/* Frees the spare pages: pages that belong to no sequence and are kept for the next one. Does
 * nothing if another thread is using the list of spare pages. */
void cache_free_spares(void);

/* The bytes of one element of a key or value. */
static inline size_t cache_element_bytes(const gpt2c_model *m) {
    return m->config.bfloat16_cache ? sizeof(uint16_t) : sizeof(float);
}

/* The index in a page, in elements, at which the keys and the values of a head begin. */
static inline size_t cache_key_offset(const gpt2c_model *m, int32_t layer, int32_t head) {
    size_t width = (size_t)m->config.n_embd * PAGE_POSITIONS;
    return 2 * (size_t)layer * width + (size_t)head * (size_t)m->head_dim * PAGE_POSITIONS;
}

static inline size_t cache_value_offset(const gpt2c_model *m, int32_t layer, int32_t head) {
    return cache_key_offset(m, layer, head) + (size_t)m->config.n_embd * PAGE_POSITIONS;
}

#endif
