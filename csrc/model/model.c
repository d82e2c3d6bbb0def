/* Makes models, and writes and reads their weights. */
#include "model/model.h"

#include "cache.h"
#include "cpu.h"
#include "fpenv.h"
#include "model/arena.h"
#include "model/tensors.h"
#include "os/os.h"
#include "pool.h"

#include <stdlib.h>
#include <string.h>

static int config_is_valid(const gpt2c_config *c) {
    const int32_t max = 1 << 20; /* so that no product of two sizes overflows */
    return c->n_vocab > 0 && c->n_vocab <= max && c->n_positions > 0 && c->n_positions <= max &&
           c->n_embd > 0 && c->n_embd <= max && c->n_inner > 0 && c->n_inner <= 4 * max &&
           c->n_layer >= 0 && c->n_layer <= max && c->n_head > 0 && c->n_head <= max &&
           (c->n_layer == 0 || c->n_embd % c->n_head == 0) && c->activation >= GPT2C_GELU_TANH &&
           c->activation < GPT2C_IDENTITY && c->layer_norm_epsilon >= 0.0f &&
           c->layer_dtype >= GPT2C_FLOAT32 && c->layer_dtype <= GPT2C_INT4 &&
           c->embedding_dtype >= GPT2C_FLOAT32 && c->embedding_dtype <= GPT2C_INT4 &&
           (c->layer_dtype == GPT2C_FLOAT32) == (c->embedding_dtype == GPT2C_FLOAT32) &&
           c->n_scales >= 1;
}

gpt2c_status gpt2c_model_create(const gpt2c_config *config, const char *isa, int32_t n_threads,
                                gpt2c_model **model) {
    if (!config_is_valid(config) || n_threads < 1 || n_threads > GPT2C_MAX_THREADS)
        return GPT2C_BAD_ARGUMENT;
    const instruction_set *set = cpu_instruction_set(isa);
    if (!set)
        return GPT2C_UNSUPPORTED_CPU;
    gpt2c_model *m = calloc(1, sizeof *m);
    if (!m)
        return GPT2C_NO_MEMORY;
    m->config = *config;
    m->kernels = set->kernels;
    m->integer = set->integer;
    m->n_threads = n_threads;
    m->head_dim = config->n_layer ? config->n_embd / config->n_head : 0;
    m->layers = calloc((size_t)config->n_layer + 1, sizeof *m->layers);
    m->budget = cache_budget_create();
    arena_walk walk = {.overflow = !m->budget};
    if (m->layers)
        arena_lay_out(m, &walk);
    if (!arena_allocate(m, &walk)) {
        gpt2c_model_free(m);
        return GPT2C_NO_MEMORY;
    }
    *model = m;
    return GPT2C_OK;
}

/* ---- 16-bit matrices ---- */

static int is_float(gpt2c_dtype dtype) { return dtype == GPT2C_FLOAT32 || is_narrow(dtype); }

/* Sets the dtypes of a float32 model's matrices. Their memory must be laid out again. */
static gpt2c_status set_matrix_dtypes(gpt2c_model *model, const uint8_t *dtypes) {
    if (model->config.layer_dtype != GPT2C_FLOAT32 || model->is_attached)
        return GPT2C_BAD_ARGUMENT;
    for (int32_t layer = 0; layer <= model->config.n_layer; layer++)
        for (int tensor = 0; tensor < GPT2C_N_TENSORS; tensor++) {
            packed_matrix *matrix = tensor_find(model, (gpt2c_tensor)tensor, layer).matrix;
            gpt2c_dtype dtype = (gpt2c_dtype)dtypes[layer * GPT2C_N_TENSORS + tensor];
            if (matrix && !is_float(dtype))
                return GPT2C_BAD_ARGUMENT;
            if (matrix)
                matrix->dtype = dtype;
        }
    return GPT2C_OK;
}

gpt2c_status gpt2c_model_set_dtypes(gpt2c_model *model, const uint8_t *dtypes) {
    gpt2c_status status = set_matrix_dtypes(model, dtypes);
    if (status != GPT2C_OK)
        return status;
    arena_free(model);
    arena_walk walk = {0};
    arena_lay_out(model, &walk);
    return arena_allocate(model, &walk) ? GPT2C_OK : GPT2C_NO_MEMORY;
}

gpt2c_status gpt2c_model_change_dtype(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                                      gpt2c_dtype dtype) {
    packed_matrix *m = tensor_find(model, tensor, layer).matrix;
    if (!m || !is_narrow(m->dtype) || !is_float(dtype) || model->is_attached)
        return GPT2C_BAD_ARGUMENT;
    packed_matrix changed = *m;
    changed.dtype = dtype;
    if (dtype == GPT2C_FLOAT32) {
        changed.panels = os_arena_alloc(pack_bytes(&changed));
        if (!changed.panels)
            return GPT2C_NO_MEMORY;
        changed.is_outside_arena = 1;
        os_arena_discard(m->panels, pack_bytes(m));
        model->outside_bytes += pack_bytes(&changed) - pack_bytes(m);
    }
    *m = changed;
    if (model->config.tied_lm_head)
        model->lm_head = model->wte;
    return GPT2C_OK;
}

gpt2c_dtype gpt2c_model_dtype(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer) {
    const packed_matrix *m = tensor_find(model, tensor, layer).matrix;
    return m ? m->dtype : GPT2C_FLOAT32;
}

/* ---- weights in memory that processes share ---- */

gpt2c_status gpt2c_model_attach(gpt2c_model *model, const uint8_t *dtypes, const void *memory,
                                size_t n_bytes) {
    gpt2c_status status = dtypes ? set_matrix_dtypes(model, dtypes) : GPT2C_OK;
    if (status != GPT2C_OK || model->is_attached)
        return GPT2C_BAD_ARGUMENT;
    arena_walk walk = {0};
    arena_lay_out(model, &walk);
    return arena_attach(model, &walk, memory, n_bytes);
}

/* ---- draft models ---- */

/* The size that the weights of a float32 model would have with all matrices in 32 bits. */
static size_t wide_bytes(const gpt2c_model *m) {
    size_t bytes = gpt2c_model_bytes(m);
    for (int32_t i = 0; i < tensor_count(m); i++) {
        const packed_matrix *matrix = tensor_at(m, i).matrix;
        if (matrix && is_narrow(matrix->dtype))
            bytes += pack_bytes(matrix);
    }
    return bytes;
}

typedef struct {
    const gpt2c_model *base;
    gpt2c_model *draft;
} repacking;

static void repack_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    const repacking *r = context;
    for (int32_t i = 0; i < tensor_count(r->draft); i++) {
        const packed_matrix *from = tensor_at(r->base, i).matrix;
        int begin, end;
        if (!from)
            continue;
        team_share((int)n_panels_for(from->n), worker, n_workers, &begin, &end);
        repack_panels(tensor_at(r->draft, i).matrix, r->draft->kernels, from, (size_t)begin,
                      (size_t)end);
    }
}

/* Drafts are accepted more often if the draft model's embeddings (wte and lm_head) have 8 bits
 * instead of 4. The embeddings get 8 bits if they are at most MAX_8_BIT_SHARE of the weights, so
 * that the draft model never takes more than MAX_DRAFT_SHARE of the memory of a base with all
 * matrices in 32 bits. So a base with 16-bit matrices gets the same draft model. */
#define MAX_8_BIT_SHARE 0.115
#define MAX_DRAFT_SHARE                                                                \
    (((1 - MAX_8_BIT_SHARE) * INT4_BLOCK_BYTES + MAX_8_BIT_SHARE * INT8_BLOCK_BYTES) / \
     (GROUP * PANEL * sizeof(float)))

/* Returns a draft model without an arena, whose size it measures; NULL if memory runs out. */
static gpt2c_model *new_draft_model(const gpt2c_model *base, arena_walk *measured) {
    gpt2c_model *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    *m = *base;
    m->config.layer_dtype = GPT2C_INT4;
    m->config.embedding_dtype = GPT2C_INT8;
    m->base = base;
    m->arena = NULL;
    m->is_attached = 0;
    m->outside_bytes = 0;
    size_t n_layers = (size_t)base->config.n_layer + 1;
    m->layers = calloc(n_layers, sizeof *m->layers);
    if (!m->layers) {
        gpt2c_model_free(m);
        return NULL;
    }
    memcpy(m->layers, base->layers, n_layers * sizeof *m->layers);
    *measured = (arena_walk){0};
    arena_lay_out(m, measured);
    if ((double)(measured->used * sizeof(float)) > MAX_DRAFT_SHARE * (double)wide_bytes(base)) {
        m->config.embedding_dtype = GPT2C_INT4;
        *measured = (arena_walk){0};
        arena_lay_out(m, measured);
    }
    return m;
}

gpt2c_status gpt2c_draft_model_create(const gpt2c_model *base, gpt2c_model **draft) {
    arena_walk walk;
    gpt2c_model *m = new_draft_model(base, &walk);
    if (!m || !arena_allocate(m, &walk)) {
        gpt2c_model_free(m);
        return GPT2C_NO_MEMORY;
    }
    repacking r = {base, m};
    fp_state caller = fp_enter();
    pool_run(repack_share, &r, m->n_threads);
    fp_leave(caller);
    *draft = m;
    return GPT2C_OK;
}

gpt2c_status gpt2c_draft_model_attach(const gpt2c_model *base, const void *memory, size_t n_bytes,
                                      gpt2c_model **draft) {
    arena_walk walk;
    gpt2c_model *m = new_draft_model(base, &walk);
    if (!m)
        return GPT2C_NO_MEMORY;
    gpt2c_status status = arena_attach(m, &walk, memory, n_bytes);
    if (status == GPT2C_OK)
        *draft = m;
    else
        gpt2c_model_free(m);
    return status;
}

void gpt2c_model_free(gpt2c_model *model) {
    if (!model)
        return;
    for (int32_t i = 0; model->layers && i < tensor_count(model); i++) {
        const packed_matrix *m = tensor_at(model, i).matrix;
        if (m && m->is_outside_arena)
            os_arena_free(m->panels, pack_bytes(m));
    }
    arena_free(model);
    if (!model->base)
        cache_budget_release(model->budget);
    cache_free_spares();
    free(model->layers);
    free(model);
}

size_t gpt2c_model_bytes(const gpt2c_model *model) {
    return model->arena_bytes + model->outside_bytes;
}

/* Whether the model has the tensor, with rows [begin, begin + n_rows) of this width. */
static int has_rows(const tensor_view *t, size_t begin, size_t n_rows, size_t width) {
    return t->n_rows && width == t->width && begin <= t->n_rows && n_rows <= t->n_rows - begin;
}

/* A group is quantised as a whole, so the rows of a quantised matrix must be whole groups. */
static int covers_whole_groups(const tensor_view *t, size_t begin, size_t n_rows) {
    return !t->matrix || !is_integer(t->dtype) ||
           (begin % GROUP == 0 && (n_rows % GROUP == 0 || begin + n_rows == t->n_rows));
}

gpt2c_status gpt2c_model_write(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                               const float *rows, size_t begin, size_t n_rows, size_t width) {
    const tensor_view to = tensor_find(model, tensor, layer);
    if (model->is_attached || !has_rows(&to, begin, n_rows, width) ||
        !covers_whole_groups(&to, begin, n_rows))
        return GPT2C_BAD_ARGUMENT;
    int n_scales = model->config.n_scales, fits = 1;
    fp_state caller = fp_enter();
    switch (to.packing) {
    case AS_GIVEN:
        memcpy(*to.floats + begin * width, rows, n_rows * width * sizeof(float));
        break;
    case ROWS_ARE_K:
        fits = pack_k_rows(to.matrix, model->kernels, n_scales, rows, begin, n_rows);
        break;
    case ROWS_ARE_N:
        fits = pack_n_rows(to.matrix, model->kernels, n_scales, rows, begin, n_rows);
        break;
    }
    fp_leave(caller);
    return fits ? GPT2C_OK : GPT2C_DOES_NOT_FIT;
}

gpt2c_status gpt2c_model_read(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                              float *rows, size_t begin, size_t n_rows, size_t width) {
    const tensor_view from = tensor_find(model, tensor, layer);
    if (!has_rows(&from, begin, n_rows, width))
        return GPT2C_BAD_ARGUMENT;
    fp_state caller = fp_enter();
    switch (from.packing) {
    case AS_GIVEN:
        memcpy(rows, *from.floats + begin * width, n_rows * width * sizeof(float));
        break;
    case ROWS_ARE_K:
        unpack_k_rows(from.matrix, rows, begin, n_rows);
        break;
    case ROWS_ARE_N:
        unpack_n_rows(from.matrix, rows, begin, n_rows);
        break;
    }
    fp_leave(caller);
    return GPT2C_OK;
}

unsigned char *gpt2c_model_packed(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                                  size_t *n_bytes) {
    const packed_matrix *m = tensor_find(model, tensor, layer).matrix;
    if (!m)
        return NULL;
    *n_bytes = pack_bytes(m);
    return m->panels;
}
