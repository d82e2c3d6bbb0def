/* GPT-2's forward pass: the only file of pass/ that knows the steps of a layer.
 *
 * A call computes rows, and a row is (sequence, position, token). Matmuls see all rows as one
 * matrix; attention sees each row's own sequence. Prefill, decode, batches, scoring and the
 * verification of drafts differ only in their rows. */
#include "cache.h"
#include "fpenv.h"
#include "pass/pass.h"
#include "sample/scores.h"

#include <string.h>

/* Scoring computes the logits of this many rows at a time: 10 MB with GPT-2's vocabulary, which
 * stay in an L3 cache. */
#define SCORE_ROWS 48

/* ---- the steps of a layer ---- */

/* residual[r] = wte[token] + wpe[position]. A token's embedding is a column of wte's panels. */
static void embed(const worker_view *view) {
    const gpt2c_model *m = view->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int begin, end;
    team_share(view->pass->n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++) {
        const input_row *row = &view->scratch->rows[r];
        float *out = row_of(view->scratch->residual, r);
        unpack_n_rows(&m->wte, out, (size_t)row->token, 1);
        m->kernels->add(m->wpe + (size_t)row->position * n_embd, (int)n_embd, out);
    }
    team_barrier(view->team, view->worker);
}

static void norm_row(const worker_view *view, int r, const float *weight, const float *bias,
                     float *out) {
    const gpt2c_model *m = view->model;
    m->kernels->layer_norm(row_of(view->scratch->residual, r), weight, bias,
                           m->config.layer_norm_epsilon, m->config.n_embd, out);
}

/* Applies layer norm to the residual stream. The result is in a buffer that all workers share or,
 * with few rows, in this worker's own buffer. */
static activations layer_norm(const worker_view *view, gpt2c_point point, int32_t layer,
                              const float *weight, const float *bias) {
    const int32_t n_embd = view->model->config.n_embd;
    int begin = 0, n_rows = view->pass->n_rows, end = n_rows,
        probed = is_probed(view, point, layer);
    int is_shared = probed || n_rows > OWN_NORM_ROWS;
    activations normed = is_shared ? view->scratch->normed : view->own_scratch->normed;
    normed.quantized = quantized_layout(normed.quantized, n_rows);
    if (is_shared)
        team_share(n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        norm_row(view, r, weight, bias, row_of(normed.floats, r));
    if (probed) {
        team_barrier(view->team, view->worker);
        probe_point(view, point, layer, normed.floats, n_rows, n_embd);
    }
    quantize(view, normed, begin, end, n_embd);
    if (is_shared)
        team_barrier(view->team, view->worker);
    return normed;
}

/* residual += x @ weight + bias. If the point is probed, the product is computed first and then
 * added, which gives the same bits. */
static void add_product(const worker_view *view, gpt2c_point point, int32_t layer, activations x,
                        linear l) {
    const float_rows residual = view->scratch->residual;
    const float_rows product = view->scratch->normed.floats; /* its content is no longer needed */
    int begin, end, n_rows = view->pass->n_rows;
    if (!is_probed(view, point, layer)) {
        matmul(view, x, l, residual, n_rows, 1);
        return;
    }
    matmul(view, x, l, product, n_rows, 0);
    probe_point(view, point, layer, product, n_rows, view->model->config.n_embd);
    team_share(n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        view->model->kernels->add(row_of(product, r), view->model->config.n_embd,
                                  row_of(residual, r));
    team_barrier(view->team, view->worker);
}

/* activation(x @ c_fc + bias). If a point is probed, the activation is a step of its own. */
static activations mlp_inner(const worker_view *view, int32_t layer, activations x, linear c_fc) {
    activations inner = view->scratch->inner;
    const int32_t n_inner = view->model->config.n_inner, activation = c_fc.activation;
    int begin, end, n_rows = view->pass->n_rows;
    if (!is_probed(view, GPT2C_POINT_MLP_PRE, layer) &&
        !is_probed(view, GPT2C_POINT_MLP_ACT, layer))
        return matmul_to_activations(view, x, c_fc, inner, n_rows);
    c_fc.activation = GPT2C_IDENTITY;
    inner.quantized = quantized_layout(inner.quantized, n_rows);
    matmul(view, x, c_fc, inner.floats, n_rows, 0);
    probe_point(view, GPT2C_POINT_MLP_PRE, layer, inner.floats, n_rows, n_inner);
    team_share(n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        view->model->kernels->activate(row_of(inner.floats, r), n_inner, activation);
    team_barrier(view->team, view->worker);
    probe_point(view, GPT2C_POINT_MLP_ACT, layer, inner.floats, n_rows, n_inner);
    quantize(view, inner, begin, end, n_inner);
    team_barrier(view->team, view->worker);
    return inner;
}

static void run_layer(const worker_view *view, int32_t layer) {
    const layer_tensors *w = &view->model->layers[layer];
    const float_rows residual = view->scratch->residual;
    const int32_t n_embd = view->model->config.n_embd;
    int n_rows = view->pass->n_rows;
    const linear c_attn = {&w->c_attn_weight, w->c_attn_bias, GPT2C_IDENTITY};
    const linear attn_c_proj = {&w->attn_c_proj_weight, w->attn_c_proj_bias, GPT2C_IDENTITY};
    const linear c_fc = {&w->c_fc_weight, w->c_fc_bias, view->model->config.activation};
    const linear mlp_c_proj = {&w->mlp_c_proj_weight, w->mlp_c_proj_bias, GPT2C_IDENTITY};

    probe_point(view, GPT2C_POINT_RESID_PRE, layer, residual, n_rows, n_embd);
    activations normed = layer_norm(view, GPT2C_POINT_LN_1, layer, w->ln_1_weight, w->ln_1_bias);
    activations attended = attend(view, layer, normed, c_attn);
    add_product(view, GPT2C_POINT_ATTN_OUT, layer, attended, attn_c_proj);
    probe_point(view, GPT2C_POINT_RESID_MID, layer, residual, n_rows, n_embd);

    normed = layer_norm(view, GPT2C_POINT_LN_2, layer, w->ln_2_weight, w->ln_2_bias);
    activations inner = mlp_inner(view, layer, normed, c_fc);
    add_product(view, GPT2C_POINT_MLP_OUT, layer, inner, mlp_c_proj);
    probe_point(view, GPT2C_POINT_RESID_POST, layer, residual, n_rows, n_embd);
}

static int count_wanted(const worker_view *view) {
    int n_wanted = 0;
    for (int r = 0; r < view->pass->n_rows; r++)
        n_wanted += view->scratch->rows[r].wants_logits != 0;
    return n_wanted;
}

/* Applies ln_f to the rows whose logits are wanted: the lm_head computes only these. */
static activations norm_wanted(const worker_view *view, int n_wanted) {
    const gpt2c_model *m = view->model;
    activations normed = view->scratch->normed;
    normed.quantized = quantized_layout(normed.quantized, n_wanted);
    for (int r = 0, i = 0; r < view->pass->n_rows; r++) {
        if (!view->scratch->rows[r].wants_logits)
            continue;
        if (i % view->n_workers == view->worker) {
            norm_row(view, r, m->ln_f_weight, m->ln_f_bias, row_of(normed.floats, i));
            quantize(view, normed, i, i + 1, m->config.n_embd);
        }
        i++;
    }
    if (n_wanted)
        team_barrier(view->team, view->worker);
    return normed;
}

/* Like norm_wanted, for a call that probes ln_f: computes all rows, and then moves the wanted rows
 * together. */
static activations norm_probed(const worker_view *view, int n_wanted) {
    const gpt2c_model *m = view->model;
    int n_rows = view->pass->n_rows, begin, end;
    activations normed = view->scratch->normed;
    team_share(n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        norm_row(view, r, m->ln_f_weight, m->ln_f_bias, row_of(normed.floats, r));
    team_barrier(view->team, view->worker);
    probe_point(view, GPT2C_POINT_LN_F, m->config.n_layer, normed.floats, n_rows, m->config.n_embd);
    for (int r = 0, i = 0; view->worker == 0 && r < n_rows; r++)
        if (view->scratch->rows[r].wants_logits)
            memmove(row_of(normed.floats, i++), row_of(normed.floats, r),
                    (size_t)m->config.n_embd * sizeof(float));
    team_barrier(view->team, view->worker);
    normed.quantized = quantized_layout(normed.quantized, n_wanted);
    team_share(n_wanted, view->worker, view->n_workers, &begin, &end);
    quantize(view, normed, begin, end, m->config.n_embd);
    team_barrier(view->team, view->worker);
    return normed;
}

/* Scores rows [begin, end) of those whose logits are wanted. logits holds only these rows. */
static void score_rows(const worker_view *view, float_rows logits, int begin, int end) {
    const gpt2c_model *m = view->model;
    for (int r = begin + view->worker; r < end; r += view->n_workers) {
        const row_to_score *row = &view->pass->rows_to_score[r];
        score_token(m, row_of(logits, r - begin), row->target, row->scores, row->at);
    }
    team_barrier(view->team, view->worker);
}

static void run_lm_head(const worker_view *view) {
    const gpt2c_model *m = view->model;
    const linear lm_head = {&m->lm_head, NULL, GPT2C_IDENTITY};
    const float_rows logits = {view->pass->logits, (size_t)m->config.n_vocab};
    int n_wanted = count_wanted(view),
        probed = is_probed(view, GPT2C_POINT_LN_F, m->config.n_layer);
    activations normed = probed ? norm_probed(view, n_wanted) : norm_wanted(view, n_wanted);
    if (!view->pass->rows_to_score && n_wanted) {
        matmul(view, normed, lm_head, logits, n_wanted, 0);
        probe_point(view, GPT2C_POINT_LOGITS, m->config.n_layer, logits, n_wanted,
                    m->config.n_vocab);
    }
    for (int begin = 0; view->pass->rows_to_score && begin < n_wanted; begin += SCORE_ROWS) {
        int end = begin + SCORE_ROWS < n_wanted ? begin + SCORE_ROWS : n_wanted;
        activations x = {{row_of(normed.floats, begin), normed.floats.stride},
                         quantized_slice(normed.quantized, begin, 0)};
        matmul(view, x, lm_head, logits, end - begin, 0);
        score_rows(view, logits, begin, end);
    }
}

/* Writes the residual stream of all rows; after the last layer, the output of ln_f instead. */
static void write_hidden(const worker_view *view) {
    const gpt2c_model *m = view->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int begin, end, is_normed = view->pass->n_hidden_layers == m->config.n_layer;
    team_share(view->pass->n_rows, view->worker, view->n_workers, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *out = view->pass->hidden + (size_t)r * n_embd;
        if (is_normed)
            norm_row(view, r, m->ln_f_weight, m->ln_f_bias, out);
        else
            memcpy(out, row_of(view->scratch->residual, r), n_embd * sizeof *out);
    }
}

static void run_pass(void *context, pool_team *team, int worker, int n_workers) {
    const pass *p = context;
    worker_view view = {
        .pass = p,
        .model = p->model,
        .scratch = p->scratch,
        .own_scratch = &p->scratch->workers[worker],
        .team = team,
        .worker = worker,
        .n_workers = n_workers,
    };
    const gpt2c_config *c = &p->model->config;
    attention_share(&p->scratch->attention_rows, c->n_head, worker, n_workers,
                    &view.attention_begin, &view.attention_end);
    embed(&view);
    probe_point(&view, GPT2C_POINT_EMBED, c->n_layer, p->scratch->residual, p->n_rows, c->n_embd);
    int32_t n_layers = p->hidden ? p->n_hidden_layers : c->n_layer;
    for (int32_t layer = 0; layer < n_layers && !poll_stop_collective(&view); layer++)
        run_layer(&view, layer);
    if (p->hidden)
        write_hidden(&view);
    else if (!poll_stop_collective(&view))
        run_lm_head(&view);
}

/* ---- the call ---- */

/* Checks a feed; the feeds before it have n_rows rows. */
static gpt2c_status check_feed(const gpt2c_model *m, const gpt2c_feed *feed, int n_rows,
                               int max_rows) {
    const gpt2c_model *owner = feed->sequence->model;
    if ((owner != m && owner != m->base) || feed->sequence->in_forward || feed->n_tokens < 1 ||
        feed->n_tokens > max_rows - n_rows)
        return GPT2C_BAD_ARGUMENT;
    if (feed->n_tokens > m->config.n_positions - feed->sequence->length)
        return GPT2C_CONTEXT_FULL;
    for (int32_t i = 0; i < feed->n_tokens; i++)
        if (feed->tokens[i] < 0 || feed->tokens[i] >= m->config.n_vocab)
            return GPT2C_BAD_ARGUMENT;
    return GPT2C_OK;
}

/* Checks the feeds, reserves their pages and lists their rows. */
static gpt2c_status list_rows(pass *p, const gpt2c_feed *feeds, int32_t n_feeds) {
    p->scratch->attention_rows.n_rows = p->scratch->attention_rows.n_feeds = 0;
    for (int32_t f = 0; f < n_feeds; f++) {
        const gpt2c_feed *feed = &feeds[f];
        gpt2c_status status = check_feed(p->model, feed, p->n_rows, p->scratch->n_rows);
        if (!status)
            status = cache_reserve(feed->sequence, feed->n_tokens);
        if (status)
            return status;
        feed->sequence->in_forward = 1;
        for (int32_t i = 0; i < feed->n_tokens; i++) {
            attention_add_row(&p->scratch->attention_rows, feed->sequence->length + i, i == 0);
            p->scratch->rows[p->n_rows++] = (input_row){
                .sequence = feed->sequence,
                .position = feed->sequence->length + i,
                .token = feed->tokens[i],
                .wants_logits = feed->wanted == GPT2C_LOGITS_ALL ||
                                (feed->wanted == GPT2C_LOGITS_LAST && i + 1 == feed->n_tokens) ||
                                (p->hooks && p->hooks->wants_logits[i]),
            };
        }
    }
    return GPT2C_OK;
}

/* On success every sequence has grown by its tokens; on an error no sequence has changed. */
static gpt2c_status run_feeds(pass *p, const gpt2c_feed *feeds, int32_t n_feeds) {
    gpt2c_status status = list_rows(p, feeds, n_feeds);
    if (!status) {
        fp_state caller = fp_enter();
        pool_run(run_pass, p, p->model->n_threads);
        fp_leave(caller);
    }
    for (int r = 0; r < p->n_rows; r++)
        p->scratch->rows[r].sequence->in_forward = 0;
    /* After an error, truncating to the old length frees the reserved pages. */
    for (int32_t f = 0; f < n_feeds; f++) {
        gpt2c_sequence *sequence = feeds[f].sequence;
        if (status)
            gpt2c_sequence_truncate(sequence, sequence->length);
        else
            sequence->length += feeds[f].n_tokens;
    }
    return status;
}

gpt2c_status gpt2c_forward(const gpt2c_model *model, gpt2c_scratch *scratch,
                           const gpt2c_feed *feeds, int32_t n_feeds, float *logits) {
    pass p = {.model = model, .scratch = scratch, .logits = logits};
    return run_feeds(&p, feeds, n_feeds);
}

gpt2c_status gpt2c_hidden_states(const gpt2c_model *model, gpt2c_scratch *scratch,
                                 const gpt2c_feed *feeds, int32_t n_feeds, int32_t n_layers,
                                 float *hidden) {
    pass p = {.model = model, .scratch = scratch, .hidden = hidden, .n_hidden_layers = n_layers};
    if (n_layers < 0 || n_layers > model->config.n_layer)
        return GPT2C_BAD_ARGUMENT;
    return run_feeds(&p, feeds, n_feeds);
}

int32_t rows_wanted(const gpt2c_feed *feed) {
    return feed->wanted == GPT2C_LOGITS_ALL ? feed->n_tokens : feed->wanted != GPT2C_LOGITS_NONE;
}

/* Puts the feeds of all sets together, and lists the rows to score. */
static gpt2c_status join_sets(const gpt2c_scored_feeds *const *sets, int32_t n_sets,
                              gpt2c_feed *feeds, int32_t *n_feeds, row_to_score *rows) {
    int32_t n_rows = 0;
    *n_feeds = 0;
    for (int32_t s = 0; s < n_sets; s++) {
        size_t at = 0;
        for (int32_t f = 0; f < sets[s]->n_feeds; f++) {
            int32_t n = rows_wanted(&sets[s]->feeds[f]);
            if (*n_feeds == GPT2C_MAX_ROWS || n > GPT2C_MAX_ROWS - n_rows)
                return GPT2C_BAD_ARGUMENT;
            feeds[(*n_feeds)++] = sets[s]->feeds[f];
            for (int32_t i = 0; i < n; i++, at++)
                rows[n_rows++] = (row_to_score){sets[s]->targets[at], &sets[s]->scores, at};
        }
    }
    return GPT2C_OK;
}

gpt2c_status gpt2c_score(const gpt2c_model *model, gpt2c_scratch *scratch,
                         const gpt2c_scored_feeds *const *sets, int32_t n_sets) {
    gpt2c_feed feeds[GPT2C_MAX_ROWS];
    row_to_score rows[GPT2C_MAX_ROWS];
    int32_t n_feeds;
    gpt2c_status status = join_sets(sets, n_sets, feeds, &n_feeds, rows);
    if (status)
        return status;
    pass p = {
        .model = model,
        .scratch = scratch,
        .logits = gpt2c_scratch_logits(scratch, model, SCORE_ROWS),
        .rows_to_score = rows,
    };
    return p.logits ? run_feeds(&p, feeds, n_feeds) : GPT2C_NO_MEMORY;
}

gpt2c_status gpt2c_forward_probed(const gpt2c_model *model, gpt2c_scratch *scratch,
                                  gpt2c_sequence *sequence, const int32_t *tokens, int32_t n_tokens,
                                  const gpt2c_hooks *hooks, float *logits) {
    probe_buffers buffers = {0};
    pass p = {
        .model = model, .scratch = scratch, .logits = logits, .hooks = hooks, .buffers = &buffers};
    const gpt2c_feed feed = {sequence, tokens, n_tokens, GPT2C_LOGITS_NONE};
    if (sequence->length)
        return GPT2C_BAD_ARGUMENT;
    gpt2c_status status = probe_buffers_alloc(&buffers, hooks, &model->config, n_tokens);
    if (!status)
        status = run_feeds(&p, &feed, 1);
    if (!status && buffers.is_stopped)
        status = GPT2C_STOPPED;
    probe_buffers_free(&buffers);
    return status;
}
