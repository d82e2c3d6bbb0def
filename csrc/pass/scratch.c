/* Allocates a forward call's buffers. */
#include "pass/scratch.h"

#include "os/os.h"

#include <stdlib.h>

/* GPT-2's widths are often multiples of 4096 bytes. Rows 4096 bytes apart would map to the same few
 * sets of the L1 cache, so a cache line of padding lies between rows. Returns 0 if out of
 * memory. */
static int alloc_rows(float_rows *m, int n_rows, int32_t width) {
    m->stride = ((size_t)width + CACHE_LINE_FLOATS - 1) / CACHE_LINE_FLOATS * CACHE_LINE_FLOATS +
                CACHE_LINE_FLOATS;
    m->floats = os_aligned_alloc((size_t)n_rows * m->stride * sizeof(float));
    return m->floats != NULL;
}

/* Like alloc_rows, for 8-bit rows. Their layout depends on the number of rows: see
 * quantized_layout. */
static int alloc_quantized(quantized_rows *q, int n_rows, int32_t k) {
    size_t n_groups = n_groups_for((size_t)k), stride = (size_t)n_rows;
    q->values = os_aligned_alloc(n_groups * (stride * GROUP + GROUP_PADDING));
    q->scales = os_aligned_alloc(n_groups * stride * sizeof(float));
    q->minus_sums = os_aligned_alloc(n_groups * stride * sizeof(int32_t));
    return q->values && q->scales && q->minus_sums;
}

static int alloc_activations(activations *a, const gpt2c_model *model, int n_rows, int32_t width) {
    int is_float = model->config.layer_dtype == GPT2C_FLOAT32;
    return alloc_rows(&a->floats, n_rows, width) &&
           (is_float || alloc_quantized(&a->quantized, n_rows, width));
}

static void free_activations(activations *a) {
    os_aligned_free(a->floats.floats);
    os_aligned_free(a->quantized.values);
    os_aligned_free(a->quantized.scales);
    os_aligned_free(a->quantized.minus_sums);
}

static int alloc_widened(worker_scratch *w, const gpt2c_config *c) {
    size_t k = (size_t)(c->n_inner > c->n_embd ? c->n_inner : c->n_embd);
    if (c->layer_dtype != GPT2C_FLOAT32)
        return 1;
    w->widened = os_aligned_alloc(k * PANEL * sizeof(float));
    return w->widened != NULL;
}

gpt2c_status gpt2c_scratch_create(const gpt2c_model *model, int32_t n_rows,
                                  gpt2c_scratch **scratch) {
    const gpt2c_config *c = &model->config;
    gpt2c_scratch *s = calloc(1, sizeof *s);
    if (!s)
        return GPT2C_NO_MEMORY;
    s->n_rows = n_rows;
    s->rows = calloc((size_t)n_rows, sizeof *s->rows);
    s->attention_rows.feeds = calloc((size_t)n_rows + 1, sizeof *s->attention_rows.feeds);
    s->attention_rows.work_before =
        calloc((size_t)n_rows + 1, sizeof *s->attention_rows.work_before);
    s->workers = calloc((size_t)model->n_threads, sizeof *s->workers);
    s->n_workers = s->workers ? model->n_threads : 0;
    /* Buffers for the max number of rows cost only address space, until rows are written. */
    int is_complete = s->rows && s->workers && s->attention_rows.feeds != NULL &&
                      s->attention_rows.work_before != NULL;
    is_complete &= alloc_rows(&s->residual, n_rows, c->n_embd);
    is_complete &= alloc_activations(&s->normed, model, n_rows, c->n_embd);
    is_complete &= alloc_rows(&s->qkv, n_rows, 3 * c->n_embd);
    is_complete &= alloc_activations(&s->attended, model, n_rows, c->n_embd);
    is_complete &= alloc_activations(&s->inner, model, n_rows, c->n_inner);
    for (int w = 0; w < s->n_workers; w++) {
        is_complete &= alloc_rows(&s->workers[w].scores, ATTENTION_ROWS, c->n_positions);
        is_complete &= alloc_activations(&s->workers[w].normed, model, OWN_NORM_ROWS, c->n_embd);
        is_complete &= alloc_widened(&s->workers[w], c);
    }
    if (!is_complete) {
        gpt2c_scratch_free(s);
        return GPT2C_NO_MEMORY;
    }
    *scratch = s;
    return GPT2C_OK;
}

void gpt2c_scratch_free(gpt2c_scratch *scratch) {
    if (!scratch)
        return;
    os_aligned_free(scratch->residual.floats);
    free_activations(&scratch->normed);
    os_aligned_free(scratch->qkv.floats);
    free_activations(&scratch->attended);
    free_activations(&scratch->inner);
    os_aligned_free(scratch->logits);
    for (int w = 0; w < scratch->n_workers; w++) {
        os_aligned_free(scratch->workers[w].scores.floats);
        free_activations(&scratch->workers[w].normed);
        os_aligned_free(scratch->workers[w].widened);
        candidates_free(scratch->workers[w].candidates);
    }
    free(scratch->workers);
    free(scratch->attention_rows.feeds);
    free(scratch->attention_rows.work_before);
    free(scratch->rows);
    free(scratch);
}

float *gpt2c_scratch_logits(gpt2c_scratch *scratch, const gpt2c_model *model, int32_t n_rows) {
    if (n_rows > scratch->n_logits_rows) {
        size_t bytes = (size_t)n_rows * (size_t)model->config.n_vocab * sizeof(float);
        os_aligned_free(scratch->logits);
        scratch->logits = os_aligned_alloc(bytes);
        scratch->n_logits_rows = scratch->logits ? n_rows : 0;
    }
    return scratch->logits;
}

candidates *gpt2c_scratch_candidates(gpt2c_scratch *scratch, const gpt2c_model *model, int worker) {
    worker_scratch *w = &scratch->workers[worker];
    if (!w->candidates)
        w->candidates =
            candidates_create(model->kernels, model->config.n_vocab, model->config.n_positions);
    return w->candidates;
}
