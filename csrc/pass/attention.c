/* Attention as a step of a layer: gives the attention kernels the rows of a call and the pages of
 * their sequences. The workers divide heads and rows among themselves (shares.h). */
#include "cache.h"
#include "pass/pass.h"

#include <math.h>
#include <string.h>

/* Returns the end of the rows from r on, at most `end`, whose keys and values lie in one page of
 * one sequence. */
static int end_of_page(const worker_view *view, int r, int end) {
    const input_row *rows = view->scratch->rows;
    int in_page = r + PAGE_POSITIONS - rows[r].position % PAGE_POSITIONS, next = r + 1;
    while (next < end && next < in_page && rows[next].sequence == rows[r].sequence)
        next++;
    return next;
}

/* Writes a head's keys and values of rows [begin, end) into the KV cache. */
static void store_keys_values(const worker_view *view, int32_t layer, int32_t head, int begin,
                              int end) {
    const gpt2c_model *m = view->model;
    size_t n_embd = (size_t)m->config.n_embd, head_dim = (size_t)m->head_dim,
           element_bytes = cache_element_bytes(m);
    for (int r = begin, next; r < end; r = next) {
        const input_row *row = &view->scratch->rows[r];
        char *page = row->sequence->pages[row->position / PAGE_POSITIONS];
        size_t slot = (size_t)(row->position % PAGE_POSITIONS);
        size_t keys = cache_key_offset(m, layer, head) + slot;
        size_t values = cache_value_offset(m, layer, head) + slot * head_dim;
        const float *key = row_of(view->scratch->qkv, r) + n_embd + (size_t)head * head_dim;
        next = end_of_page(view, r, end);
        m->kernels->store(key, key + n_embd, view->scratch->qkv.stride, next - r, m->head_dim,
                          m->config.bfloat16_cache, page + keys * element_bytes,
                          page + values * element_bytes);
    }
}

static float attention_scale(const gpt2c_config *c, int32_t head_dim, int32_t layer) {
    double divisor = c->scale_attn ? sqrt((double)head_dim) : 1.0;
    if (c->scale_by_inverse_layer)
        divisor *= (double)layer + 1.0;
    return (float)(1.0 / divisor);
}

static attention_args attention_args_for(const worker_view *view, int32_t layer, int32_t head,
                                         int r, int n_rows) {
    const gpt2c_model *m = view->model;
    const input_row *row = &view->scratch->rows[r];
    size_t column = (size_t)head * (size_t)m->head_dim;
    return (attention_args){
        .q = row_of(view->scratch->qkv, r) + column,
        .q_stride = view->scratch->qkv.stride,
        .n_rows = n_rows,
        .pages = row->sequence->pages,
        .is_bfloat16 = m->config.bfloat16_cache,
        .key_offset = cache_key_offset(m, layer, head),
        .value_offset = cache_value_offset(m, layer, head),
        .n_positions = row->position + 1,
        .head_dim = m->head_dim,
        .scale = attention_scale(&m->config, m->head_dim, layer),
        .scores = view->own_scratch->scores.floats,
        .scores_stride = view->own_scratch->scores.stride,
        .out = row_of(view->scratch->attended.floats, r) + column,
        .out_stride = view->scratch->attended.floats.stride,
    };
}

/* Whether a head's columns are whole panels, and so whole groups. */
static int heads_are_panels(const worker_view *view) { return view->model->head_dim % PANEL == 0; }

/* Quantises rows [begin, end) of the outputs of heads [first_head, end_head), without a barrier. */
static void quantize_heads(const worker_view *view, activations x, int first_head, int end_head,
                           int begin, int end) {
    size_t head_dim = (size_t)view->model->head_dim, column = (size_t)first_head * head_dim;
    const quantized_rows out = quantized_slice(x.quantized, 0, column / GROUP);
    view->model->kernels->quantize_rows(x.floats.floats + column, x.floats.stride, begin, end,
                                        (end_head - first_head) * view->model->head_dim, &out);
}

/* ---- prefetch lists ----
 *
 * In decoding, attention waits for keys and values to come from memory: in short sequences this
 * took almost half of its time. So the kernel of a single row gets a list of the cache lines that
 * will be read a little later, and prefetches a few of them at every step.
 *
 * A worker goes through the rows, and for each row through its heads, ATTENTION_ROWS at a time.
 * While the kernel computes a few heads of a row, the list holds
 *   - the keys and values of the next row, if they are at most MAX_NEXT_ROW_BYTES;
 *   - otherwise, the keys and values of the same heads, without the first PREFETCH_AHEAD_BYTES of
 *     keys, and then the first PREFETCH_AHEAD_BYTES of the keys that are read next: those of the
 *     row's next heads, or of the next row.
 * Lines are listed in the order in which they are read: keys page by page, then values. In a page
 * with few positions, where a dimension's keys fit in one cache line, only this line is listed for
 * each dimension. */

/* How far ahead the kernel prefetches its own keys. */
#define PREFETCH_AHEAD_BYTES ((size_t)32 << 10)
/* The max number of bytes that are prefetched for the next row. They must stay in an L2 cache until
 * they are read. */
#define MAX_NEXT_ROW_BYTES ((size_t)256 << 10)

static void list_lines(prefetch_list *list, const char *begin, const char *end, size_t step) {
    if (list->n_parts == MAX_PREFETCH_PARTS || begin >= end)
        return;
    list->parts[list->n_parts].next = begin;
    list->parts[list->n_parts].end = end;
    list->parts[list->n_parts++].step = step;
}

/* Lists bytes [begin, end) of the keys that begin at `keys`, in a page with n filled positions. */
static void list_keys(const worker_view *view, prefetch_list *list, const char *keys, int n,
                      size_t begin, size_t end) {
    const size_t line_bytes = CACHE_LINE_FLOATS * sizeof(float),
                 element_bytes = cache_element_bytes(view->model);
    list_lines(list, keys + begin, keys + end,
               (size_t)n * element_bytes <= line_bytes ? PAGE_POSITIONS * element_bytes
                                                       : line_bytes);
}

/* How many positions are filled in the row's page that begins at position `first`. */
static int n_filled(const input_row *row, int first) {
    int n = row->position + 1 - first;
    return n < PAGE_POSITIONS ? n : PAGE_POSITIONS;
}

/* Lists the keys and values of n_heads heads of a row, without the first `skipped` bytes of keys in
 * the first page. */
static void list_row(const worker_view *view, prefetch_list *list, int32_t layer, int head,
                     int n_heads, const input_row *row, size_t skipped) {
    const gpt2c_model *m = view->model;
    const size_t element_bytes = cache_element_bytes(m),
                 head_bytes = (size_t)m->head_dim * PAGE_POSITIONS * element_bytes;
    const size_t all_bytes = (size_t)n_heads * head_bytes,
                 line_bytes = CACHE_LINE_FLOATS * sizeof(float);
    const size_t key_offset = cache_key_offset(m, layer, head) * element_bytes;
    const size_t value_offset = cache_value_offset(m, layer, head) * element_bytes;
    for (int i = 0; i <= row->position; i += PAGE_POSITIONS)
        list_keys(view, list, (const char *)row->sequence->pages[i / PAGE_POSITIONS] + key_offset,
                  n_filled(row, i), i ? 0 : skipped, all_bytes);
    for (int i = 0; i <= row->position; i += PAGE_POSITIONS) {
        const char *begin = (const char *)row->sequence->pages[i / PAGE_POSITIONS] + value_offset;
        size_t bytes = (size_t)n_filled(row, i) * (size_t)m->head_dim * element_bytes;
        if (n_filled(row, i) == PAGE_POSITIONS) /* the heads' values are contiguous */
            list_lines(list, begin, begin + all_bytes, line_bytes);
        else
            for (int h = 0; h < n_heads; h++, begin += head_bytes)
                list_lines(list, begin, begin + bytes, line_bytes);
    }
}

/* Lists what to prefetch while n_heads heads of a row are computed. Next is head next_head of the
 * row `next`, which may be the same row; NULL if nothing is computed next. */
static void list_prefetches(const worker_view *view, prefetch_list *list, int32_t layer, int head,
                            int n_heads, const input_row *row, const input_row *next,
                            int next_head) {
    const gpt2c_model *m = view->model;
    const size_t element_bytes = cache_element_bytes(m),
                 position_bytes = (size_t)n_heads * (size_t)m->head_dim * element_bytes;
    const size_t all_bytes = position_bytes * PAGE_POSITIONS,
                 ahead = PREFETCH_AHEAD_BYTES < all_bytes ? PREFETCH_AHEAD_BYTES : all_bytes;
    list->n_parts = list->part = 0;
    if (next && next != row && 2 * (size_t)next->position * position_bytes <= MAX_NEXT_ROW_BYTES) {
        list_row(view, list, layer, next_head, n_heads, next, 0);
        return;
    }
    list_row(view, list, layer, head, n_heads, row, ahead);
    if (next)
        list_keys(view, list,
                  (const char *)next->sequence->pages[0] +
                      cache_key_offset(m, layer, next_head) * element_bytes,
                  n_filled(next, 0), 0, ahead);
}

/* ---- heads and rows ---- */

/* Writes the keys and values of this worker's share of rows and heads into the KV cache, and waits
 * for the other workers. */
static void store_share(const worker_view *view, int32_t layer) {
    int begin, end, n_rows = view->pass->n_rows;
    team_share(view->model->config.n_head * n_rows, view->worker, view->n_workers, &begin, &end);
    for (int next; begin < end; begin = next) {
        int head = begin / n_rows, first_row = begin % n_rows;
        next = (head + 1) * n_rows < end ? (head + 1) * n_rows : end;
        store_keys_values(view, layer, head, first_row, next - head * n_rows);
    }
    team_barrier(view->team, view->worker);
}

/* Computes attention of row r for heads [first_head, end_head), ATTENTION_ROWS heads at a time.
 * `next` is what this worker computes next, or NULL. */
static void attend_row(const worker_view *view, int32_t layer, int first_head, int end_head, int r,
                       const rectangle *next) {
    const input_row *rows = view->scratch->rows;
    prefetch_list list;
    for (int32_t head = first_head, n_heads; head < end_head; head += n_heads) {
        n_heads = end_head - head < ATTENTION_ROWS ? end_head - head : ATTENTION_ROWS;
        attention_args args = attention_args_for(view, layer, head, r, 1);
        args.n_heads = n_heads;
        args.prefetches = &list;
        if (head + n_heads < end_head)
            list_prefetches(view, &list, layer, head, n_heads, &rows[r], &rows[r], head + n_heads);
        else
            list_prefetches(view, &list, layer, head, n_heads, &rows[r],
                            next ? &rows[next->begin_row] : NULL, next ? next->begin : 0);
        view->model->kernels->attention_heads(&args);
    }
}

/* Computes attention of rows [begin, end) of a sequence for one head. */
static void attend_rows(const worker_view *view, int32_t layer, int head, int begin, int end) {
    for (int r = begin, next; r < end; r = next) {
        next = end_of_page(view, r, end);
        const attention_args args = attention_args_for(view, layer, head, r, next - r);
        view->model->kernels->attention(&args);
    }
}

/* Computes attention of a part of a feed. If is_stored is 0, the part must have all rows of the
 * feed, and its keys and values are stored first. */
static void attend_part(const worker_view *view, int32_t layer, const rectangle *part,
                        const rectangle *next, int is_stored, activations attended) {
    int is_row = part->end_row == part->begin_row + 1;
    for (int head = part->begin; head < part->end; head++) {
        if (!is_stored)
            store_keys_values(view, layer, head, part->begin_row, part->end_row);
        if (!is_row)
            attend_rows(view, layer, head, part->begin_row, part->end_row);
    }
    if (is_row)
        attend_row(view, layer, part->begin, part->end, part->begin_row, next);
    if (is_quantized(view) && heads_are_panels(view))
        quantize_heads(view, attended, part->begin, part->end, part->begin_row, part->end_row);
}

/* Computes attention of all rows for heads [first_head, end_head): all these heads of a sequence
 * before the next sequence, since a page holds all heads together. */
static void attend_heads(const worker_view *view, int32_t layer, int first_head, int end_head,
                         activations attended) {
    const attention_rows *rows = &view->scratch->attention_rows;
    for (int feed = 0; feed < rows->n_feeds && first_head < end_head; feed++) {
        const attention_feed *f = &rows->feeds[feed];
        const rectangle part = {f[0].begin_row, f[1].begin_row, first_head, end_head};
        const rectangle next = {f[1].begin_row, f[1].begin_row + 1, first_head, end_head};
        attend_part(view, layer, &part, feed + 1 < rows->n_feeds ? &next : NULL, 0, attended);
    }
}

/* Computes attention of this worker's share of rows and heads. */
static void attend_share(const worker_view *view, int32_t layer, int is_stored,
                         activations attended) {
    const attention_rows *rows = &view->scratch->attention_rows;
    const int n_head = view->model->config.n_head;
    attention_place place = view->attention_begin;
    rectangle part = {0}, next = {0};
    int more = attention_next(rows, n_head, &place, view->attention_end, &part);
    while (more) {
        more = attention_next(rows, n_head, &place, view->attention_end, &next);
        attend_part(view, layer, &part, more ? &next : NULL, is_stored, attended);
        part = next;
    }
}

/* Computes q, k and v of heads [first_head, end_head). head_dim must be a multiple of PANEL. */
static void project_heads(const worker_view *view, activations normed, linear c_attn,
                          int first_head, int end_head) {
    int panels_per_head = view->model->head_dim / PANEL,
        panels_per_part = view->model->config.n_embd / PANEL;
    for (int part = 0; part < 3; part++)
        matmul_panels(view, normed, c_attn, view->scratch->qkv, view->pass->n_rows,
                      part * panels_per_part + first_head * panels_per_head,
                      part * panels_per_part + end_head * panels_per_head);
}

/* With this many rows or more, a worker computes q, k and v head by head. If it computed all heads
 * at once, q, k and v would not stay in the L2 cache until attention reads them: 64 rows of all 12
 * heads of GPT-2 124M take 590 KB. */
#define MIN_ROWS_HEAD_BY_HEAD 64

/* ---- probed attention: the parts of the kernel, each for all rows ---- */

static int any_point_probed(const worker_view *view, int32_t layer, gpt2c_point first,
                            gpt2c_point last) {
    for (int point = (int)first; point <= (int)last; point++)
        if (is_probed(view, (gpt2c_point)point, layer))
            return 1;
    return 0;
}

/* The scores of a head, [n_rows, n_rows]. A probed call feeds one sequence from its beginning. */
static float_rows scores_of(const worker_view *view, int head) {
    size_t n = (size_t)view->pass->n_rows;
    return (float_rows){view->pass->buffers->scores + (size_t)head * n * n, n};
}

/* Collective. Calls `work` for each row of each head of this worker's share. */
static void for_each_row(const worker_view *view, int32_t layer,
                         void (*work)(const worker_view *, int head, int row, attention_args *)) {
    attention_place place = view->attention_begin;
    rectangle part;
    while (attention_next(&view->scratch->attention_rows, view->model->config.n_head, &place,
                          view->attention_end, &part))
        for (int head = part.begin; head < part.end; head++)
            for (int r = part.begin_row; r < part.end_row; r++) {
                attention_args args = attention_args_for(view, layer, head, r, 1);
                args.scores = row_of(scores_of(view, head), r);
                args.sums = &view->pass->buffers->sums[head * view->pass->n_rows + r];
                work(view, head, r, &args);
            }
    team_barrier(view->team, view->worker);
}

/* Computes a row's scores. Positions after the row's own get -infinity: the causal mask. */
static void score_row(const worker_view *view, int head, int r, attention_args *args) {
    view->model->kernels->attention_scores(args);
    float *scores = row_of(scores_of(view, head), r);
    for (int i = r + 1; i < view->pass->n_rows; i++)
        scores[i] = -INFINITY;
}

static void softmax_row(const worker_view *view, int head, int r, attention_args *args) {
    (void)head;
    (void)r;
    view->model->kernels->attention_weights(args);
}

static float *probs_of(const worker_view *view, int head, int r) {
    size_t n = (size_t)view->pass->n_rows;
    return view->pass->buffers->probs + ((size_t)head * n + (size_t)r) * n;
}

/* Computes probabilities, which only hooks need: the kernel sums the values with unnormalised
 * weights, and then divides by the sum of the weights. */
static void normalize_row(const worker_view *view, int head, int r, attention_args *args) {
    float *probs = probs_of(view, head, r);
    for (int i = 0; i < view->pass->n_rows; i++)
        probs[i] = i <= r ? args->scores[i] / *args->sums : 0.0f;
}

/* If a hook has edited the probabilities, replaces the weights by them, with the sum 1. Without an
 * edit the weights keep their bits. */
static void apply_edited_probs(const worker_view *view, int head, int r, attention_args *args) {
    const float *probs = probs_of(view, head, r);
    int is_changed = 0;
    for (int i = 0; i <= r; i++) {
        float before = args->scores[i] / *args->sums;
        is_changed |= memcmp(&probs[i], &before, sizeof before) != 0;
    }
    if (!is_changed)
        return;
    memcpy(args->scores, probs, (size_t)(r + 1) * sizeof(float));
    *args->sums = 1.0f;
}

static void sum_values(const worker_view *view, int head, int r, attention_args *args) {
    (void)head;
    (void)r;
    view->model->kernels->attention_values(args);
}

static void probe_queries_keys_values(const worker_view *view, int32_t layer) {
    float_rows part = view->scratch->qkv;
    for (int point = GPT2C_POINT_Q; point <= GPT2C_POINT_V; point++) {
        probe_point(view, (gpt2c_point)point, layer, part, view->pass->n_rows,
                    view->model->config.n_embd);
        part.floats += view->model->config.n_embd;
    }
}

static void attend_probed(const worker_view *view, int32_t layer) {
    int n_rows = view->pass->n_rows, n_head = view->model->config.n_head;
    store_share(view, layer);
    for_each_row(view, layer, score_row);
    probe_point(view, GPT2C_POINT_SCORES, layer, scores_of(view, 0), n_head * n_rows, n_rows);
    for_each_row(view, layer, softmax_row);
    if (is_probed(view, GPT2C_POINT_PROBS, layer)) {
        for_each_row(view, layer, normalize_row);
        const float_rows probs = {view->pass->buffers->probs, (size_t)n_rows};
        probe_point(view, GPT2C_POINT_PROBS, layer, probs, n_head * n_rows, n_rows);
        for_each_row(view, layer, apply_edited_probs);
    }
    for_each_row(view, layer, sum_values);
}

/* ---- attention as a step ---- */

/* If heads consist of panels, and their number is a multiple of the number of workers, each worker
 * has whole heads: it computes their q, k and v, stores their keys and values, and then computes
 * their attention. No barrier is needed in between, although the rows of a prompt read each other's
 * keys. */
static void attend_fused(const worker_view *view, int32_t layer, activations normed, linear c_attn,
                         activations attended) {
    int first_head, end_head, n_head = view->model->config.n_head;
    team_share(n_head, view->worker, view->n_workers, &first_head, &end_head);
    int step = view->pass->n_rows >= MIN_ROWS_HEAD_BY_HEAD ? 1 : n_head;
    for (int begin = first_head; begin < end_head; begin += step) {
        int end = end_head - begin < step ? end_head : begin + step;
        project_heads(view, normed, c_attn, begin, end);
        attend_heads(view, layer, begin, end, attended);
    }
    team_barrier(view->team, view->worker);
}

/* Otherwise the workers divide c_attn, and then attention. If a feed has several rows, they may
 * belong to several workers and read each other's keys and values, so all of these are stored
 * first. If every feed has one row, each worker stores the keys and values of its own share. */
static void attend_divided(const worker_view *view, int32_t layer, activations attended) {
    const attention_rows *rows = &view->scratch->attention_rows;
    int is_stored = rows->n_feeds < rows->n_rows;
    if (is_stored)
        store_share(view, layer);
    attend_share(view, layer, is_stored, attended);
    team_barrier(view->team, view->worker);
}

activations attend(const worker_view *view, int32_t layer, activations normed, linear c_attn) {
    int begin, end, n_rows = view->pass->n_rows;
    int probed = any_point_probed(view, layer, GPT2C_POINT_SCORES, GPT2C_POINT_PROBS);
    int is_qkv_fused = heads_are_panels(view) &&
                       view->model->config.n_head % view->n_workers == 0 &&
                       !any_point_probed(view, layer, GPT2C_POINT_Q, GPT2C_POINT_PROBS);
    activations attended = view->scratch->attended;
    attended.quantized = quantized_layout(attended.quantized, n_rows);
    if (!is_qkv_fused) {
        matmul(view, normed, c_attn, view->scratch->qkv, n_rows, 0);
        probe_queries_keys_values(view, layer);
    }
    if (probed)
        attend_probed(view, layer);
    else if (is_qkv_fused)
        attend_fused(view, layer, normed, c_attn, attended);
    else
        attend_divided(view, layer, attended);
    if (is_quantized(view) && (probed || !heads_are_panels(view))) {
        team_share(n_rows, view->worker, view->n_workers, &begin, &end);
        quantize(view, attended, begin, end, view->model->config.n_embd);
        team_barrier(view->team, view->worker);
    }
    return attended;
}
