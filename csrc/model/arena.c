/* Lays out the memory of a model's weights, and moves weights to memory that processes share. */
#include "model/arena.h"

#include "model/tensors.h"
#include "os/os.h"
#include "pool.h"

#include <stdlib.h>
#include <string.h>

static float *take_floats(arena_walk *walk, size_t rows, size_t width) {
    size_t count;
    if (__builtin_mul_overflow(rows, width, &count) ||
        __builtin_add_overflow(walk->used, count, &count) || count > SIZE_MAX / 8)
        walk->overflow = 1;
    if (walk->overflow)
        return NULL;
    float *memory = walk->base ? walk->base + walk->used : NULL;
    walk->used = (count + PANEL - 1) / PANEL * PANEL;
    return memory;
}

static packed_matrix take_matrix(arena_walk *walk, gpt2c_dtype dtype, size_t k, size_t n) {
    size_t width = pack_panel_bytes(dtype, k) / sizeof(float);
    return (packed_matrix){take_floats(walk, n_panels_for(n), width), k, n, dtype, 0};
}

void arena_lay_out(gpt2c_model *m, arena_walk *walk) {
    for (int32_t i = 0; i < tensor_count(m); i++) {
        tensor_view t = tensor_at(m, i);
        size_t k = t.packing == ROWS_ARE_N ? t.width : t.n_rows;
        size_t n = t.packing == ROWS_ARE_N ? t.n_rows : t.width;
        if (t.matrix)
            *t.matrix = take_matrix(walk, t.dtype, k, n);
        else if (!m->base)
            *t.floats = take_floats(walk, t.n_rows, t.width);
    }
    if (m->config.tied_lm_head)
        m->lm_head = m->wte;
}

void arena_free(gpt2c_model *m) {
    if (!m->is_attached)
        os_arena_free(m->arena, m->arena_bytes);
    m->arena = NULL;
}

gpt2c_status arena_attach(gpt2c_model *m, const arena_walk *measured, const void *memory,
                          size_t n_bytes) {
    if (measured->overflow || n_bytes != measured->used * sizeof(float))
        return GPT2C_BAD_ARGUMENT;
    arena_free(m);
    m->is_attached = 1;
    m->arena = (float *)memory; /* never written: see is_attached */
    m->arena_bytes = n_bytes;
    arena_walk walk = {.base = m->arena};
    arena_lay_out(m, &walk);
    return GPT2C_OK;
}

int arena_allocate(gpt2c_model *m, const arena_walk *measured) {
    m->arena = NULL;
    if (m->layers && !measured->overflow) {
        m->arena_bytes = measured->used * sizeof(float);
        m->arena = os_arena_alloc(m->arena_bytes);
    }
    if (!m->arena)
        return 0;
    arena_walk walk = {.base = m->arena};
    arena_lay_out(m, &walk);
    return 1;
}

/* ---- memory that processes share ---- */

/* Returns a copy of the model that is laid out along the walk. The caller frees its layers, which are
 * NULL if memory runs out. */
static gpt2c_model laid_out_copy(const gpt2c_model *model, arena_walk *walk) {
    gpt2c_model copy = *model;
    size_t n_layers = (size_t)model->config.n_layer + 1;
    copy.layers = calloc(n_layers, sizeof *copy.layers);
    if (copy.layers) {
        memcpy(copy.layers, model->layers, n_layers * sizeof *copy.layers);
        arena_lay_out(&copy, walk);
    }
    return copy;
}

size_t gpt2c_model_packed_bytes(const gpt2c_model *model) {
    arena_walk walk = {0};
    gpt2c_model copy = laid_out_copy(model, &walk);
    int is_measured = copy.layers && !walk.overflow;
    free(copy.layers);
    return is_measured ? walk.used * sizeof(float) : 0;
}

typedef struct {
    unsigned char *to;
    const unsigned char *from;
    size_t n_bytes;
} copying;

#define COPIED_UNIT ((size_t)1 << 16) /* bytes */

static void copy_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    const copying *c = context;
    int begin, end;
    team_share((int)(c->n_bytes / COPIED_UNIT), worker, n_workers, &begin, &end);
    size_t first = (size_t)begin * COPIED_UNIT,
           last = worker + 1 == n_workers ? c->n_bytes : (size_t)end * COPIED_UNIT;
    memcpy(c->to + first, c->from + first, last - first);
}

/* What a tensor takes in the arena, without the padding behind it. */
static copying memory_of(const tensor_view *t) {
    if (t->matrix)
        return (copying){.from = t->matrix->panels, .n_bytes = pack_bytes(t->matrix)};
    return (copying){.from = (const unsigned char *)*t->floats,
                     .n_bytes = t->n_rows * t->width * sizeof(float)};
}

gpt2c_status gpt2c_model_move(gpt2c_model *model, void *memory) {
    arena_walk walk = {.base = memory};
    gpt2c_model to = laid_out_copy(model, &walk);
    if (!to.layers)
        return GPT2C_NO_MEMORY;
    for (int32_t i = 0; i < tensor_count(model); i++) {
        tensor_view from_view = tensor_at(model, i), to_view = tensor_at(&to, i);
        if (model->base && !from_view.matrix)
            continue; /* a draft model's vectors are its base's */
        copying c = memory_of(&from_view);
        c.to = (unsigned char *)memory_of(&to_view).from;
        pool_run(copy_share, &c, model->n_threads);
        os_arena_discard((unsigned char *)c.from, c.n_bytes);
    }
    free(to.layers);
    return GPT2C_OK;
}
