/* GPT-2 itself: the only file that knows what a block is.
 *
 * Everything is one call over rows. A row is (sequence, position, token): matmuls see all rows as
 * one matrix, attention sees each row's own sequence. Prompts, decoding, batches and scoring differ
 * only in their rows. */
#include "cache.h"
#include "fpenv.h"
#include "model.h"
#include "os.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    gpt2c_sequence *sequence;
    int32_t position;
    int32_t token;
    int wants_logits;
} row;

struct gpt2c_scratch {
    row rows[GPT2C_MAX_ROWS];
    float *residual; /* [rows, n_embd] */
    float *normed;   /* [rows, n_embd] */
    float *qkv;      /* [rows, 3 n_embd] */
    float *attended; /* [rows, n_embd] */
    float *inner;    /* [rows, n_inner] */
    float *scores;   /* [n_positions] */
};

/* What the steps of one call share. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    int n_rows;
} pass;

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
    s->scores = os_aligned_alloc((size_t)model->config.n_positions * sizeof(float));
    if (!s->residual || !s->normed || !s->qkv || !s->attended || !s->inner || !s->scores) {
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
    os_aligned_free(scratch->scores);
    free(scratch);
}

/* residual[r] = wte[token] + wpe[position] */
static void embed(const pass *p) {
    const gpt2c_model *m = p->model;
    size_t n_embd = (size_t)m->config.n_embd;
    for (int r = 0; r < p->n_rows; r++) {
        const row *at = &p->scratch->rows[r];
        size_t token = (size_t)at->token;
        const float *column = m->wte + token / PANEL * n_embd * PANEL + token % PANEL;
        m->kernels->embed(column, m->wpe + (size_t)at->position * n_embd, (int)n_embd,
                          p->scratch->residual + (size_t)r * n_embd);
    }
}

static void layer_norm(const pass *p, const float *weight, const float *bias) {
    const gpt2c_model *m = p->model;
    size_t n_embd = (size_t)m->config.n_embd;
    for (size_t r = 0; r < (size_t)p->n_rows; r++)
        m->kernels->layer_norm(p->scratch->residual + r * n_embd, weight, bias,
                               m->config.layer_norm_epsilon, (int)n_embd,
                               p->scratch->normed + r * n_embd);
}

typedef struct {
    const float *weight; /* packed */
    const float *bias;   /* or NULL */
    int32_t k, n;
    int32_t activation;
} layer;

/* out = activation(x @ weight + bias), plus what out held where `add` is set. */
static void matmul(const pass *p, const float *x, layer l, float *out, int n_rows, int add) {
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
    p->model->kernels->matmul(&args, 0, (int)panels_of((size_t)l.n));
}

/* Keys and values of all rows go into their pages before any row attends: rows of one prompt see
 * each other. */
static void store_keys_values(const pass *p, int32_t block) {
    const gpt2c_model *m = p->model;
    size_t n_embd = (size_t)m->config.n_embd, head_dim = (size_t)m->head_dim;
    for (int r = 0; r < p->n_rows; r++) {
        const row *at = &p->scratch->rows[r];
        float *page = at->sequence->pages[at->position / PAGE_POSITIONS];
        size_t slot = (size_t)(at->position % PAGE_POSITIONS);
        const float *key = p->scratch->qkv + (size_t)r * 3 * n_embd + n_embd;
        const float *value = key + n_embd;
        for (int32_t head = 0; head < m->config.n_head; head++) {
            float *keys = page + cache_keys(m, block, head);
            float *values = page + cache_values(m, block, head) + slot * head_dim;
            for (size_t d = 0; d < head_dim; d++) {
                keys[d * PAGE_POSITIONS + slot] = key[(size_t)head * head_dim + d];
                values[d] = value[(size_t)head * head_dim + d];
            }
        }
    }
}

static float attention_scale(const gpt2c_config *c, int32_t head_dim, int32_t block) {
    double divisor = c->scale_attn ? sqrt((double)head_dim) : 1.0;
    if (c->scale_by_inverse_layer)
        divisor *= (double)block + 1.0;
    return (float)(1.0 / divisor);
}

static void attend(const pass *p, int32_t block) {
    const gpt2c_model *m = p->model;
    size_t n_embd = (size_t)m->config.n_embd;
    attention_args args = {
        .head_dim = m->head_dim,
        .scale = attention_scale(&m->config, m->head_dim, block),
        .scores = p->scratch->scores,
    };
    for (int32_t head = 0; head < m->config.n_head; head++) {
        args.keys = cache_keys(m, block, head);
        args.values = cache_values(m, block, head);
        size_t column = (size_t)head * (size_t)m->head_dim;
        for (int r = 0; r < p->n_rows; r++) {
            const row *at = &p->scratch->rows[r];
            args.q = p->scratch->qkv + (size_t)r * 3 * n_embd + column;
            args.pages = at->sequence->pages;
            args.n_positions = at->position + 1;
            args.out = p->scratch->attended + (size_t)r * n_embd + column;
            m->kernels->attention(&args);
        }
    }
}

static void run_block(const pass *p, int32_t block) {
    const gpt2c_config *c = &p->model->config;
    const block_weights *w = &p->model->blocks[block];
    gpt2c_scratch *s = p->scratch;
    const layer c_attn = {w->c_attn_weight, w->c_attn_bias, c->n_embd, 3 * c->n_embd,
                          GPT2C_IDENTITY};
    const layer attn_c_proj = {w->attn_c_proj_weight, w->attn_c_proj_bias, c->n_embd, c->n_embd,
                               GPT2C_IDENTITY};
    const layer c_fc = {w->c_fc_weight, w->c_fc_bias, c->n_embd, c->n_inner, c->activation};
    const layer mlp_c_proj = {w->mlp_c_proj_weight, w->mlp_c_proj_bias, c->n_inner, c->n_embd,
                              GPT2C_IDENTITY};

    layer_norm(p, w->ln_1_weight, w->ln_1_bias);
    matmul(p, s->normed, c_attn, s->qkv, p->n_rows, 0);
    store_keys_values(p, block);
    attend(p, block);
    matmul(p, s->attended, attn_c_proj, s->residual, p->n_rows, 1);

    layer_norm(p, w->ln_2_weight, w->ln_2_bias);
    matmul(p, s->normed, c_fc, s->inner, p->n_rows, 0);
    matmul(p, s->inner, mlp_c_proj, s->residual, p->n_rows, 1);
}

/* Only rows whose logits are wanted meet ln_f and the head. */
static void run_head(const pass *p, float *logits) {
    const gpt2c_model *m = p->model;
    size_t n_embd = (size_t)m->config.n_embd;
    int n_wanted = 0;
    for (int r = 0; r < p->n_rows; r++) {
        if (!p->scratch->rows[r].wants_logits)
            continue;
        m->kernels->layer_norm(p->scratch->residual + (size_t)r * n_embd, m->ln_f_weight,
                               m->ln_f_bias, m->config.layer_norm_epsilon, (int)n_embd,
                               p->scratch->normed + (size_t)n_wanted * n_embd);
        n_wanted++;
    }
    const layer head = {m->head, NULL, m->config.n_embd, m->config.n_vocab, GPT2C_IDENTITY};
    if (n_wanted)
        matmul(p, p->scratch->normed, head, logits, n_wanted, 0);
}

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
            p->scratch->rows[p->n_rows++] = (row){
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
    pass p = {.model = model, .scratch = scratch};
    gpt2c_status status = list_rows(&p, feeds, n_feeds);
    if (!status) {
        fp_state caller = fp_enter();
        embed(&p);
        for (int32_t block = 0; block < model->config.n_layer; block++)
            run_block(&p, block);
        run_head(&p, logits);
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
