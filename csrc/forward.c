/* GPT-2 itself: the only file that knows what a block is.
 *
 * Everything is one call over rows. A row is (sequence, position, token): matmuls see all rows as
 * one matrix, attention sees each row's own sequence. Prompts, decoding, batches and scoring differ
 * only in their rows. */
#include "cache.h"
#include "fpenv.h"
#include "model.h"
#include "os.h"
#include "pool.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    gpt2c_sequence *sequence;
    int32_t position;
    int32_t token;
    int wants_logits;
} input_row;

/* With so few rows every worker norms them all for itself: that is cheaper than waiting at a
 * barrier for the others' part. */
#define OWN_NORM_ROWS 2

/* What a worker has to itself. */
typedef struct {
    float *scores; /* [n_positions] */
    float *normed; /* [OWN_NORM_ROWS, n_embd] */
} worker_scratch;

struct gpt2c_scratch {
    input_row rows[GPT2C_MAX_ROWS];
    float *residual; /* [rows, n_embd] */
    float *normed;   /* [rows, n_embd] */
    float *qkv;      /* [rows, 3 n_embd] */
    float *attended; /* [rows, n_embd] */
    float *inner;    /* [rows, n_inner] */
    int n_workers;
    worker_scratch *workers; /* [n_workers] */
};

/* What the workers of one call share. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    int n_rows;
    float *logits; /* [rows that want them, n_vocab] */
} pass;

/* One worker's view of the call. */
typedef struct {
    const pass *pass;
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    worker_scratch *own;
    pool_team *team;
    int worker, n_workers;
} place;

/* ---- scratch ---- */

static int worker_scratch_create(worker_scratch *w, const gpt2c_config *c) {
    w->scores = os_aligned_alloc((size_t)c->n_positions * sizeof(float));
    w->normed = os_aligned_alloc(OWN_NORM_ROWS * (size_t)c->n_embd * sizeof(float));
    return w->scores && w->normed;
}

gpt2c_status gpt2c_scratch_create(const gpt2c_model *model, gpt2c_scratch **scratch) {
    gpt2c_scratch *s = calloc(1, sizeof *s);
    if (!s)
        return GPT2C_NO_MEMORY;
    /* Room for the most rows is only address space: pages that no row reaches are never touched. */
    size_t embd = GPT2C_MAX_ROWS * (size_t)model->config.n_embd * sizeof(float);
    size_t inner = GPT2C_MAX_ROWS * (size_t)model->config.n_inner * sizeof(float);
    s->residual = os_aligned_alloc(embd);
    s->normed = os_aligned_alloc(embd);
    s->qkv = os_aligned_alloc(3 * embd);
    s->attended = os_aligned_alloc(embd);
    s->inner = os_aligned_alloc(inner);
    s->workers = calloc((size_t)model->n_threads, sizeof *s->workers);
    s->n_workers = s->workers ? model->n_threads : 0;
    int complete = s->residual && s->normed && s->qkv && s->attended && s->inner && s->workers;
    for (int w = 0; w < s->n_workers; w++)
        complete &= worker_scratch_create(&s->workers[w], &model->config);
    if (!complete) {
        gpt2c_scratch_free(s);
        return GPT2C_NO_MEMORY;
    }
    *scratch = s;
    return GPT2C_OK;
}

void gpt2c_scratch_free(gpt2c_scratch *scratch) {
    if (!scratch)
        return;
    os_aligned_free(scratch->residual);
    os_aligned_free(scratch->normed);
    os_aligned_free(scratch->qkv);
    os_aligned_free(scratch->attended);
    os_aligned_free(scratch->inner);
    for (int w = 0; w < scratch->n_workers; w++) {
        os_aligned_free(scratch->workers[w].scores);
        os_aligned_free(scratch->workers[w].normed);
    }
    free(scratch->workers);
    free(scratch);
}

/* ---- the steps of a block, each worker's share of them ---- */

/* residual[r] = wte[token] + wpe[position] */
static void embed(const place *at) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int begin, end;
    team_share(at->pass->n_rows, at->worker, at->n_workers, &begin, &end);
    for (int r = begin; r < end; r++) {
        const input_row *row = &at->scratch->rows[r];
        size_t token = (size_t)row->token;
        const float *column = m->wte + token / PANEL * n_embd * PANEL + token % PANEL;
        m->kernels->embed(column, m->wpe + (size_t)row->position * n_embd, (int)n_embd,
                          at->scratch->residual + (size_t)r * n_embd);
    }
    team_barrier(at->team);
}

static void norm_row(const place *at, int r, const float *weight, const float *bias, float *out) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd;
    m->kernels->layer_norm(at->scratch->residual + (size_t)r * n_embd, weight, bias,
                           m->config.layer_norm_epsilon, (int)n_embd, out);
}

/* Layer norm of the rows whose residual is complete; returns where they are. */
static const float *layer_norm(const place *at, const float *weight, const float *bias) {
    size_t n_embd = (size_t)at->model->config.n_embd;
    int n_rows = at->pass->n_rows;
    if (n_rows <= OWN_NORM_ROWS) {
        for (int r = 0; r < n_rows; r++)
            norm_row(at, r, weight, bias, at->own->normed + (size_t)r * n_embd);
        return at->own->normed;
    }
    int begin, end;
    team_share(n_rows, at->worker, at->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        norm_row(at, r, weight, bias, at->scratch->normed + (size_t)r * n_embd);
    team_barrier(at->team);
    return at->scratch->normed;
}

typedef struct {
    const float *weight; /* packed */
    const float *bias;   /* or NULL */
    int32_t k, n;
    int32_t activation;
} layer;

/* out = activation(x @ weight + bias), plus what out held where `add` is set. */
static void matmul(const place *at, const float *x, layer l, float *out, int n_rows, int add) {
    matmul_args args = {
        .x = x,
        .x_stride = (size_t)l.k,
        .n_rows = n_rows,
        .k = l.k,
        .panels = l.weight,
        .bias = l.bias,
        .residual = add ? out : NULL,
        .residual_stride = (size_t)l.n,
        .out = out,
        .out_stride = (size_t)l.n,
        .n = l.n,
        .activation = l.activation,
    };
    int begin, end;
    team_share((int)panels_of((size_t)l.n), at->worker, at->n_workers, &begin, &end);
    at->model->kernels->matmul(&args, begin, end);
    team_barrier(at->team);
}

/* Puts a head's keys and values of all rows into their pages. */
static void store_keys_values(const place *at, int32_t block, int32_t head) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd, head_dim = (size_t)m->head_dim;
    for (int r = 0; r < at->pass->n_rows; r++) {
        const input_row *row = &at->scratch->rows[r];
        float *page = row->sequence->pages[row->position / PAGE_POSITIONS];
        size_t slot = (size_t)(row->position % PAGE_POSITIONS);
        float *keys = page + cache_keys(m, block, head) + slot;
        float *values = page + cache_values(m, block, head) + slot * head_dim;
        const float *key =
            at->scratch->qkv + (size_t)r * 3 * n_embd + n_embd + (size_t)head * head_dim;
        const float *value = key + n_embd;
        for (size_t d = 0; d < head_dim; d++) {
            keys[d * PAGE_POSITIONS] = key[d];
            values[d] = value[d];
        }
    }
}

static float attention_scale(const gpt2c_config *c, int32_t head_dim, int32_t block) {
    double divisor = c->scale_attn ? sqrt((double)head_dim) : 1.0;
    if (c->scale_by_inverse_layer)
        divisor *= (double)block + 1.0;
    return (float)(1.0 / divisor);
}

static void attend_head(const place *at, int32_t block, int32_t head) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd;
    size_t column = (size_t)head * (size_t)m->head_dim;
    attention_args args = {
        .head_dim = m->head_dim,
        .scale = attention_scale(&m->config, m->head_dim, block),
        .scores = at->own->scores,
        .keys = cache_keys(m, block, head),
        .values = cache_values(m, block, head),
    };
    for (int r = 0; r < at->pass->n_rows; r++) {
        const input_row *row = &at->scratch->rows[r];
        args.q = at->scratch->qkv + (size_t)r * 3 * n_embd + column;
        args.pages = row->sequence->pages;
        args.n_positions = row->position + 1;
        args.out = at->scratch->attended + (size_t)r * n_embd + column;
        m->kernels->attention(&args);
    }
}

/* Heads are shared out whole: the worker that stores a head's keys and values of all rows is the
 * one that attends to them, so rows of one prompt see each other and nobody waits in between. */
static void attend(const place *at, int32_t block) {
    int begin, end;
    team_share(at->model->config.n_head, at->worker, at->n_workers, &begin, &end);
    for (int32_t head = begin; head < end; head++) {
        store_keys_values(at, block, head);
        attend_head(at, block, head);
    }
    team_barrier(at->team);
}

static void run_block(const place *at, int32_t block) {
    const gpt2c_config *c = &at->model->config;
    const block_weights *w = &at->model->blocks[block];
    gpt2c_scratch *s = at->scratch;
    int n_rows = at->pass->n_rows;
    const layer c_attn = {w->c_attn_weight, w->c_attn_bias, c->n_embd, 3 * c->n_embd,
                          GPT2C_IDENTITY};
    const layer attn_c_proj = {w->attn_c_proj_weight, w->attn_c_proj_bias, c->n_embd, c->n_embd,
                               GPT2C_IDENTITY};
    const layer c_fc = {w->c_fc_weight, w->c_fc_bias, c->n_embd, c->n_inner, c->activation};
    const layer mlp_c_proj = {w->mlp_c_proj_weight, w->mlp_c_proj_bias, c->n_inner, c->n_embd,
                              GPT2C_IDENTITY};

    const float *normed = layer_norm(at, w->ln_1_weight, w->ln_1_bias);
    matmul(at, normed, c_attn, s->qkv, n_rows, 0);
    attend(at, block);
    matmul(at, s->attended, attn_c_proj, s->residual, n_rows, 1);

    normed = layer_norm(at, w->ln_2_weight, w->ln_2_bias);
    matmul(at, normed, c_fc, s->inner, n_rows, 0);
    matmul(at, s->inner, mlp_c_proj, s->residual, n_rows, 1);
}

/* Only rows whose logits are wanted meet ln_f and the head. */
static void run_head(const place *at) {
    const gpt2c_model *m = at->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int n_wanted = 0;
    for (int r = 0; r < at->pass->n_rows; r++) {
        if (!at->scratch->rows[r].wants_logits)
            continue;
        if (n_wanted % at->n_workers == at->worker)
            norm_row(at, r, m->ln_f_weight, m->ln_f_bias,
                     at->scratch->normed + (size_t)n_wanted * n_embd);
        n_wanted++;
    }
    if (!n_wanted)
        return;
    team_barrier(at->team);
    const layer head = {m->head, NULL, m->config.n_embd, m->config.n_vocab, GPT2C_IDENTITY};
    matmul(at, at->scratch->normed, head, at->pass->logits, n_wanted, 0);
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
    if (feed->sequence->model != m || feed->sequence->in_forward || feed->n_tokens < 1 ||
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

gpt2c_status gpt2c_forward(const gpt2c_model *model, gpt2c_scratch *scratch,
                           const gpt2c_feed *feeds, int32_t n_feeds, float *logits) {
    pass p = {.model = model, .scratch = scratch, .logits = logits};
    gpt2c_status status = list_rows(&p, feeds, n_feeds);
    if (!status) {
        fp_state caller = fp_enter();
        pool_run(run_pass, &p, model->n_threads);
        fp_leave(caller);
    }
    /* Pages taken for tokens that were not fed are given back. */
    for (int r = 0; r < p.n_rows; r++)
        scratch->rows[r].sequence->in_forward = 0;
    for (int32_t f = 0; f < n_feeds; f++) {
        gpt2c_sequence *sequence = feeds[f].sequence;
        if (status)
            gpt2c_sequence_truncate(sequence, sequence->length);
        else
            sequence->length += feeds[f].n_tokens;
    }
    return status;
}
