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

static int is_quantized(const place *at) {
    return at->model->config.weights != GPT2C_FLOAT32;
}

/* Rows [begin, end) in 8 bits too, where that is how they are read. */
static void quantize(const place *at, activations x, int begin, int end) {
    if (is_quantized(at))
        at->model->kernels->quantize_rows(x.floats.floats, x.floats.stride, begin, end,
                                          at->model->config.n_embd, &x.quantized);
}

/* Layer norm of the rows whose residual is complete; returns where they are. */
static activations layer_norm(const place *at, const float *weight, const float *bias) {
    int begin = 0, n_rows = at->pass->n_rows, end = n_rows, is_shared = n_rows > OWN_NORM_ROWS;
    activations normed = is_shared ? at->scratch->normed : at->own->normed;
    normed.quantized = arranged(normed.quantized, n_rows);
    if (is_shared)
        team_share(n_rows, at->worker, at->n_workers, &begin, &end);
    for (int r = begin; r < end; r++)
        norm_row(at, r, weight, bias, row_of(normed.floats, r));
    quantize(at, normed, begin, end);
    if (is_shared)
        team_barrier(at->team);
    return normed;
}

typedef struct {
    const packed_matrix *weight;
    const float *bias; /* or NULL */
    int32_t activation;
} layer;

static matmul_args matmul_of(activations x, layer l, int n_rows) {
    return (matmul_args){
        .x = x.floats.floats,
        .x_stride = x.floats.stride,
        .quantized = x.quantized,
        .n_rows = n_rows,
        .k = (int)l.weight->k,
        .panels = l.weight->panels,
        .bias = l.bias,
        .n = (int)l.weight->n,
        .activation = l.activation,
    };
}

/* Panels [begin, end) of the result. */
static void multiply(const place *at, const matmul_args *args, gpt2c_weights weights, int begin,
                     int end) {
    const gpt2c_model *m = at->model;
    if (weights == GPT2C_INT8)
        m->integer->matmul_int8(args, begin, end);
    else if (weights == GPT2C_INT4)
        m->integer->matmul_int4(args, begin, end);
    else
        m->kernels->matmul(args, begin, end);
}

static void run_matmul(const place *at, const matmul_args *args, gpt2c_weights weights) {
    int begin, end;
    team_share((int)panels_of((size_t)args->n), at->worker, at->n_workers, &begin, &end);
    multiply(at, args, weights, begin, end);
    team_barrier(at->team);
}

/* out = activation(x @ weight + bias), plus what out held where `add` is set. */
static void matmul(const place *at, activations x, layer l, float_rows out, int n_rows, int add) {
    matmul_args args = matmul_of(x, l, n_rows);
    args.residual = add ? out.floats : NULL;
    args.out = out.floats;
    args.residual_stride = args.out_stride = out.stride;
    run_matmul(at, &args, l.weight->weights);
}

/* The same where another matmul comes next, which takes the result as it reads it. */
static activations matmul_between(const place *at, activations x, layer l, activations out,
                                  int n_rows) {
    matmul_args args = matmul_of(x, l, n_rows);
    args.out = out.floats.floats;
    args.out_stride = out.floats.stride;
    if (is_quantized(at))
        args.quantized_out = out.quantized = arranged(out.quantized, n_rows);
    run_matmul(at, &args, l.weight->weights);
    return out;
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
        size_t number = m->config.narrow_cache ? sizeof(uint16_t) : sizeof(float);
        m->kernels->store(key, key + n_embd, m->head_dim, m->config.narrow_cache,
                          (char *)page + keys * number, (char *)page + values * number);
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
        .out = row_of(at->scratch->attended.floats, r) + column,
        .out_stride = at->scratch->attended.floats.stride,
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

/* Whether heads are whole panels, and so whole groups of what they are quantised to. */
static int heads_are_panels(const place *at) {
    return at->model->head_dim % PANEL == 0;
}

/* What rows [begin, end) have of a worker's heads, in 8 bits: nobody else need wait for it. */
static void quantize_heads(const place *at, activations x, int first, int last, int begin, int end) {
    size_t head_dim = (size_t)at->model->head_dim, column = (size_t)first * head_dim;
    const quantized_rows out = part_of(x.quantized, 0, column / GROUP);
    at->model->kernels->quantize_rows(x.floats.floats + column, x.floats.stride, begin, end,
                                      (last - first) * at->model->head_dim, &out);
}

/* Attention of the rows [begin, end) of one sequence by some heads; next_row comes after them, or -1. */
static void attend_sequence(const place *at, int32_t block, int first, int last, int begin, int end,
                            int next_row) {
    for (int32_t head = first; head < last; head++) {
        for (int r = begin, next; r < end; r = next) {
            next = end_of_page(at, r, end);
            store_keys_values(at, block, head, r, next);
            if (next < end)
                attend_rows(at, block, head, r, next - r, head, next);
            else if (head + 1 < last)
                attend_rows(at, block, head, r, next - r, head + 1, begin);
            else
                attend_rows(at, block, head, r, next - r, next_row < 0 ? -1 : first, next_row);
        }
    }
}

/* Attention of all rows by heads [first, last). A sequence's heads follow each other, as they do in its
 * pages. */
static void attend_heads(const place *at, int32_t block, int first, int last, activations attended) {
    int n_rows = at->pass->n_rows;
    for (int begin = 0, end; begin < n_rows && first < last; begin = end) {
        end = end_of_sequence(at, begin);
        attend_sequence(at, block, first, last, begin, end, end < n_rows ? end : -1);
        if (is_quantized(at) && heads_are_panels(at))
            quantize_heads(at, attended, first, last, begin, end);
    }
}

/* q, k and v of heads [first, last), which are panels each. */
static void project_heads(const place *at, activations normed, layer c_attn, int first, int last) {
    matmul_args args = matmul_of(normed, c_attn, at->pass->n_rows);
    args.out = at->scratch->qkv.floats;
    args.out_stride = at->scratch->qkv.stride;
    int in_head = at->model->head_dim / PANEL, in_part = at->model->config.n_embd / PANEL;
    for (int part = 0; part < 3; part++)
        multiply(at, &args, c_attn.weight->weights, part * in_part + first * in_head,
                 part * in_part + last * in_head);
}

/* With so many rows the q, k and v of more than a head would not stay in the second-level cache until
 * attention has read them: 64 rows of all 12 of GPT-2 124M are 590 KB. */
#define ROWS_HEAD_BY_HEAD 64

/* Attention of all rows, from their norm on. Heads are shared out whole: the worker that stores a head's
 * keys and values is the one that attends to them, so rows of one prompt see each other and nobody waits in
 * between; nor before, where all workers have as many heads, whose q, k and v each then computes itself. */
static activations attend(const place *at, int32_t block, activations normed, layer c_attn) {
    int first, last, n_rows = at->pass->n_rows, n_head = at->model->config.n_head;
    int projects = heads_are_panels(at) && n_head % at->n_workers == 0;
    activations attended = at->scratch->attended;
    attended.quantized = arranged(attended.quantized, n_rows);
    team_share(n_head, at->worker, at->n_workers, &first, &last);
    if (!projects)
        matmul(at, normed, c_attn, at->scratch->qkv, n_rows, 0);
    int step = projects && n_rows >= ROWS_HEAD_BY_HEAD ? 1 : n_head;
    for (int begin = first; begin < last; begin += step) {
        int end = last - begin < step ? last : begin + step;
        if (projects)
            project_heads(at, normed, c_attn, begin, end);
        attend_heads(at, block, begin, end, attended);
    }
    team_barrier(at->team);
    if (is_quantized(at) && !heads_are_panels(at)) {
        team_share(n_rows, at->worker, at->n_workers, &first, &last);
        quantize(at, attended, first, last);
        team_barrier(at->team);
    }
    return attended;
}

static void run_block(const place *at, int32_t block) {
    const block_weights *w = &at->model->blocks[block];
    gpt2c_scratch *s = at->scratch;
    int n_rows = at->pass->n_rows;
    const layer c_attn = {&w->c_attn_weight, w->c_attn_bias, GPT2C_IDENTITY};
    const layer attn_c_proj = {&w->attn_c_proj_weight, w->attn_c_proj_bias, GPT2C_IDENTITY};
    const layer c_fc = {&w->c_fc_weight, w->c_fc_bias, at->model->config.activation};
    const layer mlp_c_proj = {&w->mlp_c_proj_weight, w->mlp_c_proj_bias, GPT2C_IDENTITY};

    activations normed = layer_norm(at, w->ln_1_weight, w->ln_1_bias);
    activations attended = attend(at, block, normed, c_attn);
    matmul(at, attended, attn_c_proj, s->residual, n_rows, 1);

    normed = layer_norm(at, w->ln_2_weight, w->ln_2_bias);
    activations inner = matmul_between(at, normed, c_fc, s->inner, n_rows);
    matmul(at, inner, mlp_c_proj, s->residual, n_rows, 1);
}

/* ln_f of the rows whose logits are wanted, the only ones that meet the head; sets how many. */
static activations norm_wanted(const place *at, int *n_wanted) {
    const gpt2c_model *m = at->model;
    const input_row *rows = at->scratch->rows;
    activations normed = at->scratch->normed;
    *n_wanted = 0;
    for (int r = 0; r < at->pass->n_rows; r++)
        *n_wanted += rows[r].wants_logits != 0;
    normed.quantized = arranged(normed.quantized, *n_wanted);
    for (int r = 0, i = 0; r < at->pass->n_rows; r++) {
        if (!rows[r].wants_logits)
            continue;
        if (i % at->n_workers == at->worker) {
            norm_row(at, r, m->ln_f_weight, m->ln_f_bias, row_of(normed.floats, i));
            quantize(at, normed, i, i + 1);
        }
        i++;
    }
    if (*n_wanted)
        team_barrier(at->team);
    return normed;
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
    int n_wanted;
    activations normed = norm_wanted(at, &n_wanted);
    if (!at->pass->scores && n_wanted)
        matmul(at, normed, head, logits, n_wanted, 0);
    for (int begin = 0; at->pass->scores && begin < n_wanted; begin += SCORE_ROWS) {
        int end = begin + SCORE_ROWS < n_wanted ? begin + SCORE_ROWS : n_wanted;
        activations x = {{row_of(normed.floats, begin), normed.floats.stride},
                         part_of(normed.quantized, begin, 0)};
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
