/* The key/value cache: pages of PAGE_POSITIONS positions, so that sequences grow as they need,
 * copies share what they have in common, and rolling back is free.
 *
 * A page holds, for every layer, the keys [head][dim][position], so that scores run along positions,
 * and then the values [head][position][dim], so that their sum runs along dimensions; all in float,
 * or in bfloat16 where the model's cache is narrow. */
#ifndef GPT2C_CACHE_H
#define GPT2C_CACHE_H

#include "model/model.h"

struct gpt2c_sequence {
    const gpt2c_model *model;
    int32_t length;  /* positions filled */
    int32_t n_pages; /* may be more than length needs */
    void **pages;    /* [pages for n_positions], shared with copies until written */
    int in_forward;  /* set while a forward call has it, to refuse it given twice */
};

/* Makes room for n_tokens more positions, and makes the page that the next one falls into this
 * sequence's own. On failure the sequence is as it was. */
gpt2c_status cache_reserve(gpt2c_sequence *sequence, int32_t n_tokens);

/* Frees the pages that no sequence has but that were kept for the next. */
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
