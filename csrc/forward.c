/* GPT-2 itself: the only file that knows what a block is.
 *
 * Everything is one call over rows. A row is (sequence, position, token): matmuls see all rows as
 * one matrix, attention sees each row's own sequence. Prompts, decoding, batches and scoring differ
 * only in their rows. */
#include "cache.h"
#include "fpenv.h"
#include "pool.h"
#include "scores.h"
#include "scratch.h"

#include <math.h>

/* What the workers of one call share. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    int n_rows;
    float *logits; /* [rows that want them, n_vocab]; for scores [SCORE_ROWS, n_vocab] */
    /* Where scores are asked for, for each row that wants logits: */
    const int32_t *targets;
    const gpt2c_scores *scores;
} pass;

/* So many rows' logits are computed, and forgotten, at a time: for GPT-2's vocabulary they are 10 MB,
 * which stay in a third-level cache. */
#define SCORE_ROWS 48

/* One worker's view of the call. */
typedef struct {
    const pass *pass;
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    worker_scratch *own;
    pool_team *team;
    int worker, n_workers;
} place;

/* ---- the steps of a block, each worker's share of them ---- */

/* residual[r] = wte[token] + wpe[position]; wte's row of a token is a column of its panels. */
static void embed(const place *at) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int begin, end;
    team_share(at->pass->n_rows, at->worker, at->n_workers, &begin, &end);
    for (int r = begin; r < end; r++) {
        const input_row *row = &at->scratch->rows[r];
        float *out = row_of(at->scratch->residual, r);
        unpack_n_rows(&m->wte, out, (size_t)row->token, 1);
        m->kernels->add(m->wpe + (size_t)row->position * n_embd, (int)n_embd, out);
    }
    team_barrier(at->team);
}

static void norm_row(const place *at, int r, const float *weight, const float *bias, float *out) {
    const gpt2c_model *m = at->model;
    m->kernels->layer_norm(row_of(at->scratch->residual, r), weight, bias,
                           m->config.layer_norm_epsilon, m->config.n_embd, out);
}

/* Layer norm of the rows whose residual is complete; returns where they are. Where they are quantised
 * next, a worker needs no others' rows before it is there. */
static float_rows layer_norm(const place *at, const float *weight, const float *bias) {
    int begin = 0, end = at->pass->n_rows, is_shared = end > OWN_NORM_ROWS;
    float_rows normed = is_shared ? at->scratch->normed : at->own->normed;
    if (is_shared)
        team_share(end, at->worker, at->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        norm_row(at, r, weight, bias, row_of(normed, r));
    if (is_shared && at->model->config.weights == GPT2C_FLOAT32)
        team_barrier(at->team);
    return normed;
}

/* The first n_rows of x in 8 bits, k wide: shared out as layer_norm does. */
static quantized_rows quantize(const place *at, float_rows x, int n_rows, size_t k) {
    int begin = 0, end = n_rows, is_shared = end > OWN_NORM_ROWS;
    quantized_rows out = is_shared ? at->scratch->quantized : at->own->quantized;
    out.stride = (size_t)n_rows;
    out.values_stride = out.stride * GROUP + GROUP_SPACE;
    if (is_shared)
        team_share(end, at->worker, at->n_workers, &begin, &end);
    at->model->kernels->quantize_rows(x.floats, x.stride, begin, end, (int)k, &out);
    if (is_shared)
        team_barrier(at->team);
    return out;
}

typedef struct {
    const packed_matrix *weight;
    const float *bias; /* or NULL */
    int32_t activation;
} layer;

/* out = activation(x @ weight + bias), plus what out held where `add` is set. */
static void matmul(const place *at, float_rows x, layer l, float_rows out, int n_rows, int add) {
    const gpt2c_model *m = at->model;
    matmul_args args = {
        .x = x.floats,
        .x_stride = x.stride,
        .n_rows = n_rows,
        .k = (int)l.weight->k,
        .panels = l.weight->panels,
        .bias = l.bias,
        .residual = add ? out.floats : NULL,
        .residual_stride = out.stride,
        .out = out.floats,
        .out_stride = out.stride,
        .n = (int)l.weight->n,
        .activation = l.activation,
    };
    int begin, end;
    team_share((int)panels_of(l.weight->n), at->worker, at->n_workers, &begin, &end);
    if (l.weight->weights != GPT2C_FLOAT32)
        args.quantized = quantize(at, x, n_rows, l.weight->k);
    if (l.weight->weights == GPT2C_INT8)
        m->integer->matmul_int8(&args, begin, end);
    else if (l.weight->weights == GPT2C_INT4)
        m->integer->matmul_int4(&args, begin, end);
    else
        m->kernels->matmul(&args, begin, end);
    team_barrier(at->team);
}

/* Puts a head's keys and values of rows [begin, end) into their pages. */
static void store_keys_values(const place *at, int32_t block, int32_t head, int begin, int end) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd, head_dim = (size_t)m->head_dim;
    for (int r = begin; r < end; r++) {
        const input_row *row = &at->scratch->rows[r];
        void *page = row->sequence->pages[row->position / PAGE_POSITIONS];
        size_t slot = (size_t)(row->position % PAGE_POSITIONS);
        size_t keys = cache_keys(m, block, head) + slot;
        size_t values = cache_values(m, block, head) + slot * head_dim;
        const float *key = row_of(at->scratch->qkv, r) + n_embd + (size_t)head * head_dim;
        if (m->config.narrow_cache)
            cache_store_narrow((uint16_t *)page + keys, (uint16_t *)page + values, key,
                               key + n_embd, head_dim);
        else
            cache_store((float *)page + keys, (float *)page + values, key, key + n_embd, head_dim);
    }
}

static float attention_scale(const gpt2c_config *c, int32_t head_dim, int32_t block) {
    double divisor = c->scale_attn ? sqrt((double)head_dim) : 1.0;
    if (c->scale_by_inverse_layer)
        divisor *= (double)block + 1.0;
    return (float)(1.0 / divisor);
}

/* The end of the rows that from r on belong to one sequence. */
static int end_of_sequence(const place *at, int r) {
    const input_row *rows = at->scratch->rows;
    int end = r + 1;
    while (end < at->pass->n_rows && rows[end].sequence == rows[r].sequence)
        end++;
    return end;
}

/* The end of those, before `end`, whose positions lie in one page. */
static int end_of_page(const place *at, int r, int end) {
    int in_page = r + PAGE_POSITIONS - at->scratch->rows[r].position % PAGE_POSITIONS;
    return in_page < end ? in_page : end;
}

/* Attention of n_rows rows from r on; next_row and next_head are what comes after them, or -1. */
static void attend_rows(const place *at, int32_t block, int32_t head, int r, int n_rows,
                        int32_t next_head, int next_row) {
    const gpt2c_model *m = at->model;
    const input_row *row = &at->scratch->rows[r];
    size_t column = (size_t)head * (size_t)m->head_dim;
    attention_args args = {
        .q = row_of(at->scratch->qkv, r) + column,
        .q_stride = at->scratch->qkv.stride,
        .n_rows = n_rows,
        .pages = row->sequence->pages,
        .is_narrow = m->config.narrow_cache,
        .keys = cache_keys(m, block, head),
        .values = cache_values(m, block, head),
        .n_positions = row->position + 1,
        .head_dim = m->head_dim,
        .scale = attention_scale(&m->config, m->head_dim, block),
        .scores = at->own->scores.floats,
        .scores_stride = at->own->scores.stride,
        .out = row_of(at->scratch->attended, r) + column,
        .out_stride = at->scratch->attended.stride,
    };
    if (next_head >= 0) {
        const input_row *next = &at->scratch->rows[next_row];
        args.next_pages = next->sequence->pages;
        args.next_keys = cache_keys(m, block, next_head);
        args.next_values = cache_values(m, block, next_head);
        args.n_next_positions = next->position + 1;
    }
    m->kernels->attention(&args);
}

/* Heads are shared out whole: the worker that stores a head's keys and values is the one that
 * attends to them, so rows of one prompt see each other and nobody waits in between. A sequence's heads
 * follow each other, as they do in its pages. */
static void attend(const place *at, int32_t block) {
    int first, last, n_rows = at->pass->n_rows;
    team_share(at->model->config.n_head, at->worker, at->n_workers, &first, &last);
    for (int begin = 0, end; begin < n_rows && first < last; begin = end) {
        end = end_of_sequence(at, begin);
        for (int32_t head = first; head < last; head++) {
            int is_last = head + 1 == last;
            for (int r = begin, next; r < end; r = next) {
                next = end_of_page(at, r, end);
                store_keys_values(at, block, head, r, next);
                if (next < end)
                    attend_rows(at, block, head, r, next - r, head, next);
                else if (!is_last)
                    attend_rows(at, block, head, r, next - r, head + 1, begin);
                else
                    attend_rows(at, block, head, r, next - r, end < n_rows ? first : -1, end);
            }
        }
    }
    team_barrier(at->team);
}

static void run_block(const place *at, int32_t block) {
    const block_weights *w = &at->model->blocks[block];
    gpt2c_scratch *s = at->scratch;
    int n_rows = at->pass->n_rows;
    const layer c_attn = {&w->c_attn_weight, w->c_attn_bias, GPT2C_IDENTITY};
    const layer attn_c_proj = {&w->attn_c_proj_weight, w->attn_c_proj_bias, GPT2C_IDENTITY};
    const layer c_fc = {&w->c_fc_weight, w->c_fc_bias, at->model->config.activation};
    const layer mlp_c_proj = {&w->mlp_c_proj_weight, w->mlp_c_proj_bias, GPT2C_IDENTITY};

    float_rows normed = layer_norm(at, w->ln_1_weight, w->ln_1_bias);
    matmul(at, normed, c_attn, s->qkv, n_rows, 0);
    attend(at, block);
    matmul(at, s->attended, attn_c_proj, s->residual, n_rows, 1);

    normed = layer_norm(at, w->ln_2_weight, w->ln_2_bias);
    matmul(at, normed, c_fc, s->inner, n_rows, 0);
    matmul(at, s->inner, mlp_c_proj, s->residual, n_rows, 1);
}

/* ln_f of the rows whose logits are wanted, the only ones that meet the head; returns how many. */
static int norm_wanted(const place *at) {
    const gpt2c_model *m = at->model;
    int n_wanted = 0;
    for (int r = 0; r < at->pass->n_rows; r++) {
        if (!at->scratch->rows[r].wants_logits)
            continue;
        if (n_wanted % at->n_workers == at->worker)
            norm_row(at, r, m->ln_f_weight, m->ln_f_bias, row_of(at->scratch->normed, n_wanted));
        n_wanted++;
    }
    if (n_wanted)
        team_barrier(at->team);
    return n_wanted;
}

/* Scores rows [begin, end) of those that want it, from their logits. */
static void score_rows(const place *at, float_rows logits, int begin, int end) {
    const gpt2c_model *m = at->model;
    for (int r = begin + at->worker; r < end; r += at->n_workers)
        score_token(m, row_of(logits, r - begin), at->pass->targets[r], at->pass->scores,
                    (size_t)r);
    team_barrier(at->team);
}

static void run_head(const place *at) {
    const gpt2c_model *m = at->model;
    const layer head = {&m->head, NULL, GPT2C_IDENTITY};
    const float_rows logits = {at->pass->logits, (size_t)m->config.n_vocab};
    int n_wanted = norm_wanted(at);
    if (!at->pass->scores && n_wanted)
        matmul(at, at->scratch->normed, head, logits, n_wanted, 0);
    for (int begin = 0; at->pass->scores && begin < n_wanted; begin += SCORE_ROWS) {
        int end = begin + SCORE_ROWS < n_wanted ? begin + SCORE_ROWS : n_wanted;
        const float_rows x = {row_of(at->scratch->normed, begin), at->scratch->normed.stride};
        matmul(at, x, head, logits, end - begin, 0);
        score_rows(at, logits, begin, end);
    }
}

static void run_pass(void *context, pool_team *team, int worker, int n_workers) {
    const pass *p = context;
    const place at = {
        .pass = p,
        .model = p->model,
        .scratch = p->scratch,
        .own = &p->scratch->workers[worker],
        .team = team,
        .worker = worker,
        .n_workers = n_workers,
    };
    embed(&at);
    for (int32_t block = 0; block < p->model->config.n_layer; block++)
        run_block(&at, block);
    run_head(&at);
}

/* ---- the call ---- */

static gpt2c_status check_feed(const gpt2c_model *m, const gpt2c_feed *feed, int n_rows) {
    const gpt2c_model *owner = feed->sequence->model;
    if ((owner != m && owner != m->base) || feed->sequence->in_forward || feed->n_tokens < 1 ||
        feed->n_tokens > GPT2C_MAX_ROWS - n_rows)
        return GPT2C_BAD_ARGUMENT;
    if (feed->n_tokens > m->config.n_positions - feed->sequence->length)
        return GPT2C_CONTEXT_FULL;
    for (int32_t i = 0; i < feed->n_tokens; i++)
        if (feed->tokens[i] < 0 || feed->tokens[i] >= m->config.n_vocab)
            return GPT2C_BAD_ARGUMENT;
    return GPT2C_OK;
}

/* Checks the feeds, takes their pages and lists their rows. */
static gpt2c_status list_rows(pass *p, const gpt2c_feed *feeds, int32_t n_feeds) {
    for (int32_t f = 0; f < n_feeds; f++) {
        const gpt2c_feed *feed = &feeds[f];
        gpt2c_status status = check_feed(p->model, feed, p->n_rows);
        if (!status)
            status = cache_reserve(feed->sequence, feed->n_tokens);
        if (status)
            return status;
        feed->sequence->in_forward = 1;
        for (int32_t i = 0; i < feed->n_tokens; i++)
            p->scratch->rows[p->n_rows++] = (input_row){
                .sequence = feed->sequence,
                .position = feed->sequence->length + i,
                .token = feed->tokens[i],
                .wants_logits = feed->wanted == GPT2C_LOGITS_ALL ||
                                (feed->wanted == GPT2C_LOGITS_LAST && i + 1 == feed->n_tokens),
            };
    }
    return GPT2C_OK;
}

/* Either every sequence grows by its tokens or, when an error is returned, none has changed. */
static gpt2c_status feed(pass *p, const gpt2c_feed *feeds, int32_t n_feeds) {
    gpt2c_status status = list_rows(p, feeds, n_feeds);
    if (!status) {
        fp_state caller = fp_enter();
        pool_run(run_pass, p, p->model->n_threads);
        fp_leave(caller);
    }
    for (int r = 0; r < p->n_rows; r++)
        p->scratch->rows[r].sequence->in_forward = 0;
    /* Pages taken for tokens that were not fed are given back. */
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
    return feed(&p, feeds, n_feeds);
}

gpt2c_status gpt2c_score(const gpt2c_model *model, gpt2c_scratch *scratch, const gpt2c_feed *feeds,
                         int32_t n_feeds, const int32_t *targets, const gpt2c_scores *scores) {
    pass p = {
        .model = model,
        .scratch = scratch,
        .logits = gpt2c_scratch_logits(scratch, model, SCORE_ROWS),
        .targets = targets,
        .scores = scores,
    };
    return p.logits ? feed(&p, feeds, n_feeds) : GPT2C_NO_MEMORY;
}
