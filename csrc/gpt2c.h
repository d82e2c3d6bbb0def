/* The C API of gpt2c: GPT-2 on the CPU, its KV cache, and the generation loop.
 *
 * Nothing here aborts, exits, prints or asserts on input: a function that can fail returns a
 * gpt2c_status. A model is immutable once loaded and may be shared by any number of threads;
 * a sequence, a scratch and a job belong to one call at a time. A batch runs the jobs of all
 * calls. */
#ifndef GPT2C_H
#define GPT2C_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* The version of the arithmetic. Increase it with every change that alters a bit of any logit (see
 * CONTRIBUTING.md). */
#define GPT2C_ARITHMETIC 1

/* The max number of rows of a forward call, except gpt2c_forward_probed. A row is one token at a
 * position of a sequence. */
#define GPT2C_MAX_ROWS 256

#define GPT2C_MAX_THREADS 256

typedef enum {
    GPT2C_OK = 0,
    GPT2C_NO_MEMORY,
    GPT2C_BAD_ARGUMENT,
    GPT2C_CONTEXT_FULL,
    GPT2C_NOT_A_NUMBER,
    GPT2C_NOTHING_LEFT, /* the sampling stages removed every token */
    GPT2C_UNSUPPORTED_CPU,
    GPT2C_STOPPED,      /* a hook stopped the forward call */
    GPT2C_CACHE_FULL,   /* the KV cache would exceed the model's limit */
    GPT2C_DOES_NOT_FIT, /* the matrix is stored in 16 bits, and a weight does not fit exactly */
} gpt2c_status;

typedef enum {
    GPT2C_GELU_TANH = 0,
    GPT2C_GELU_ERF,
    GPT2C_QUICK_GELU,
    GPT2C_RELU,
    GPT2C_SILU,
    GPT2C_TANH,
    GPT2C_IDENTITY, /* no activation; used by every matmul except c_fc's */
} gpt2c_activation;

/* How matrices are stored. Activations that are multiplied by a quantised matrix are quantised to 8
 * bits, group by group (kernels.h). float16 and bfloat16 are only for matrices of a float32 model
 * whose weights all fit exactly; they give the bits of float32. */
typedef enum {
    GPT2C_FLOAT32 = 0,
    GPT2C_INT8,
    GPT2C_INT4,
    GPT2C_FLOAT16,
    GPT2C_BFLOAT16,
} gpt2c_dtype;

typedef struct {
    int32_t layer_dtype;     /* a gpt2c_dtype, for the layers' matrices */
    int32_t embedding_dtype; /* for wte and lm_head; quantised if and only if layer_dtype is */
    int32_t bfloat16_cache;  /* 1: the KV cache holds bfloat16; 0: float32 */
    int32_t n_scales;        /* scales tried for each int4 group, at least 1 */
    int32_t n_vocab;
    int32_t n_positions;
    int32_t n_embd;
    int32_t n_layer; /* may be 0 */
    int32_t n_head;
    int32_t n_inner;
    int32_t activation;             /* a gpt2c_activation */
    int32_t tied_lm_head;           /* 1: lm_head is wte; 0: lm_head is a separate tensor */
    int32_t scale_attn;             /* scores are divided by sqrt(head_dim) */
    int32_t scale_by_inverse_layer; /* scores are divided by (layer + 1) too */
    float layer_norm_epsilon;
} gpt2c_config;

/* GPT-2's tensors, in the order of use, except that wte, the token embedding, stands beside
 * lm_head. model/tensors.c has their shapes. The tensors from LN_1_WEIGHT to MLP_C_PROJ_BIAS exist
 * once per layer. */
typedef enum {
    GPT2C_WPE = 0,
    GPT2C_LN_1_WEIGHT,
    GPT2C_LN_1_BIAS,
    GPT2C_C_ATTN_WEIGHT,
    GPT2C_C_ATTN_BIAS,
    GPT2C_ATTN_C_PROJ_WEIGHT,
    GPT2C_ATTN_C_PROJ_BIAS,
    GPT2C_LN_2_WEIGHT,
    GPT2C_LN_2_BIAS,
    GPT2C_C_FC_WEIGHT,
    GPT2C_C_FC_BIAS,
    GPT2C_MLP_C_PROJ_WEIGHT,
    GPT2C_MLP_C_PROJ_BIAS,
    GPT2C_LN_F_WEIGHT,
    GPT2C_LN_F_BIAS,
    GPT2C_WTE,
    GPT2C_LM_HEAD, /* only if tied_lm_head is 0 */
    GPT2C_N_TENSORS,
} gpt2c_tensor;

/* GPT-2's name of a tensor; for a tensor of a layer, without the prefix "h.N.". Defined in
 * model/tensors.c. */
const char *gpt2c_tensor_name(gpt2c_tensor tensor);

typedef struct gpt2c_model gpt2c_model;
typedef struct gpt2c_sequence gpt2c_sequence;
typedef struct gpt2c_scratch gpt2c_scratch;
typedef struct gpt2c_lookup gpt2c_lookup;
typedef struct gpt2c_drafter gpt2c_drafter;

/* ---- instruction sets (cpu.c) ---- */

/* The name of the i-th instruction set of this build, slowest first; NULL if i is too large. */
const char *gpt2c_isa_name(int i);
/* Whether this CPU and operating system support the instruction set `name`. */
int gpt2c_isa_supported(const char *name);

/* ---- model (model/model.c) ---- */

/* Allocates a model of this shape with all weights zero. isa is the name of a supported
 * instruction set. n_threads, from 1 to GPT2C_MAX_THREADS, limits the threads of one call. */
gpt2c_status gpt2c_model_create(const gpt2c_config *config, const char *isa, int32_t n_threads,
                                gpt2c_model **model);
/* Chooses the dtypes of a float32 model's matrices, before any weight is written. dtypes,
 * [n_layer + 1, GPT2C_N_TENSORS], has a float gpt2c_dtype for each matrix; its last row is for wte
 * and lm_head. After an error the model can only be freed. */
gpt2c_status gpt2c_model_set_dtypes(gpt2c_model *model, const uint8_t *dtypes);
/* Changes the dtype of a matrix that is stored in 16 bits. Its weights must be written again. */
gpt2c_status gpt2c_model_change_dtype(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                                      gpt2c_dtype dtype);
/* The dtype in which a tensor is stored. */
gpt2c_dtype gpt2c_model_dtype(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer);
/* Stores rows [begin, begin + n_rows) of a tensor, given as [n_rows, width] float32. A vector is
 * one row. Returns GPT2C_DOES_NOT_FIT if the matrix is stored in 16 bits and a weight does not fit
 * exactly; gpt2c_model_change_dtype must then change the dtype. */
gpt2c_status gpt2c_model_write(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                               const float *rows, size_t begin, size_t n_rows, size_t width);
/* Reads rows [begin, begin + n_rows) back, dequantised if the matrix is quantised. */
gpt2c_status gpt2c_model_read(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                              float *rows, size_t begin, size_t n_rows, size_t width);
/* Returns the packed bytes of a matrix, and sets *n_bytes to their number. Returns NULL for
 * vectors, wpe and tensors that the model lacks. */
unsigned char *gpt2c_model_packed(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                                  size_t *n_bytes);
/* The bytes that gpt2c_model_move needs: the weights in the order of a pass (wpe, the tensors of each
 * layer, ln_f, wte, lm_head), each aligned to 128 bytes. */
size_t gpt2c_model_packed_bytes(const gpt2c_model *model);
/* Copies the weights to `memory`, aligned to a cache line, and gives back the model's own memory
 * meanwhile. Afterwards the model may only be freed. */
gpt2c_status gpt2c_model_move(gpt2c_model *model, void *memory);
/* Replaces a model's weights, before any are written, by those that gpt2c_model_move copied for a
 * model of the same configuration. The memory stays the caller's, who must not free it before the
 * model; it may be read-only, so the model's weights can no longer be written. `dtypes` is as in
 * gpt2c_model_set_dtypes; NULL means that of the configuration. */
gpt2c_status gpt2c_model_attach(gpt2c_model *model, const uint8_t *dtypes, const void *memory,
                                size_t n_bytes);
void gpt2c_model_free(gpt2c_model *model);
/* The size of the weights in bytes, padding included. */
size_t gpt2c_model_bytes(const gpt2c_model *model);

/* ---- sequences and their cache (cache.c) ---- */

/* The bytes of one page of the KV cache. */
size_t gpt2c_model_page_bytes(const gpt2c_model *model);
/* The bytes of the pages that the model's sequences use; a shared page counts once. */
size_t gpt2c_model_cache_bytes(const gpt2c_model *model);
/* The limit of these bytes: a call that would exceed it returns GPT2C_CACHE_FULL. 0 means no limit,
 * as in a new model. Any thread may set it. */
size_t gpt2c_model_cache_limit(const gpt2c_model *model);
void gpt2c_model_set_cache_limit(gpt2c_model *model, size_t bytes);
/* Stops counting the parent's pages. For a forked child, before it allocates pages. */
void gpt2c_model_forget_pages(gpt2c_model *model);

gpt2c_status gpt2c_sequence_create(const gpt2c_model *model, gpt2c_sequence **sequence);
/* Copies a sequence. The copy shares each page until one of the two sequences writes to it
 * (copy-on-write). */
gpt2c_status gpt2c_sequence_copy(const gpt2c_sequence *sequence, gpt2c_sequence **copy);
void gpt2c_sequence_free(gpt2c_sequence *sequence);
int32_t gpt2c_sequence_length(const gpt2c_sequence *sequence);
/* Removes all positions after the first `length`. */
gpt2c_status gpt2c_sequence_truncate(gpt2c_sequence *sequence, int32_t length);
/* Makes a sequence usable again, if a call in another thread of the parent was using it. For a
 * forked child. */
void gpt2c_sequence_forget_call(gpt2c_sequence *sequence);

/* ---- forward (pass/forward.c; the scratch: pass/scratch.c) ---- */

/* Allocates the buffers of calls of up to n_rows rows. n_rows must be GPT2C_MAX_ROWS or, for
 * gpt2c_forward_probed, the number of tokens of the call. */
gpt2c_status gpt2c_scratch_create(const gpt2c_model *model, int32_t n_rows,
                                  gpt2c_scratch **scratch);
void gpt2c_scratch_free(gpt2c_scratch *scratch);
/* Returns a buffer for n_rows rows of logits, at most GPT2C_MAX_ROWS. The scratch owns the buffer.
 * Returns NULL if out of memory. */
float *gpt2c_scratch_logits(gpt2c_scratch *scratch, const gpt2c_model *model, int32_t n_rows);

typedef enum { GPT2C_LOGITS_NONE = 0, GPT2C_LOGITS_LAST, GPT2C_LOGITS_ALL } gpt2c_wanted;

/* Tokens to append to a sequence, and whether the logits of none, the last or all of them are
 * wanted. */
typedef struct {
    gpt2c_sequence *sequence;
    const int32_t *tokens; /* [n_tokens] */
    int32_t n_tokens;
    gpt2c_wanted wanted;
} gpt2c_feed;

/* Feeds several sequences in one call. A sequence may appear only once, and the feeds may have at
 * most GPT2C_MAX_ROWS tokens in total. Writes the wanted logits as rows of n_vocab floats, in the
 * order of the feeds. On success every sequence has grown by its tokens; on an error no sequence
 * has changed. */
gpt2c_status gpt2c_forward(const gpt2c_model *model, gpt2c_scratch *scratch,
                           const gpt2c_feed *feeds, int32_t n_feeds, float *logits);
/* Like gpt2c_forward, but runs only the first n_layers layers and returns their output instead of
 * logits: rows of n_embd floats for all tokens. If n_layers is 0 it is the embeddings, and if all
 * layers run it is the output of ln_f. Afterwards the KV cache of the sequences lacks the other
 * layers, so they may only be fed by this function again, with at most as many layers. */
gpt2c_status gpt2c_hidden_states(const gpt2c_model *model, gpt2c_scratch *scratch,
                                 const gpt2c_feed *feeds, int32_t n_feeds, int32_t n_layers,
                                 float *hidden);

/* The score of a token under the distribution that the model predicted for its position. */
typedef struct {
    float log_prob; /* natural logarithm; NaN if any logit is NaN */
    float entropy;  /* of the distribution, in nats */
    int32_t rank;   /* 1: the most likely token; ties go to the lower id */
} gpt2c_token_score;

typedef struct {
    float log_prob;
    int32_t id; /* -1 if the vocabulary has fewer than n_top ids */
} gpt2c_alternative;

#define GPT2C_MAX_TOP 128

/* More measures of the distribution p at each position. Its row of `values` has, in this order and
 * as far as they are wanted, the second moment of log p, the Renyi entropies, the log-probabilities
 * of the sets, and the cross-entropy with another model's distribution and its log-probability of
 * the target; all NaN if log_prob is. */
typedef struct {
    int32_t has_second_moment;
    int32_t n_orders, n_sets;
    const float *orders;       /* [n_orders], above 0, other than 1; may be infinite */
    const float *sets;         /* [n_sets, n_vocab]: 0 for an id of the set, else -infinity */
    const float *other_logits; /* [n, n_vocab], or NULL for no other model */
    int32_t n_values;          /* in a row */
    float *values;             /* [n, n_values] */
} gpt2c_measures;

/* Output of scoring: a score per token, and the n_top most likely ids (at most GPT2C_MAX_TOP) in
 * descending order of probability. */
typedef struct {
    gpt2c_token_score *scores; /* [n], or NULL for no scores */
    int32_t n_top;
    gpt2c_alternative *top;         /* [n, n_top] */
    const gpt2c_measures *measures; /* or NULL for none */
} gpt2c_scores;

/* Feeds, and a target for each row whose logits are wanted: the token to score. */
typedef struct {
    const gpt2c_feed *feeds; /* [n_feeds] */
    int32_t n_feeds;
    const int32_t *targets;
    gpt2c_scores scores;
} gpt2c_scored_feeds;

/* Like gpt2c_forward for the feeds of all sets, but scores the targets. The logits are computed a
 * few rows at a time and are not returned. */
gpt2c_status gpt2c_score(const gpt2c_model *model, gpt2c_scratch *scratch,
                         const gpt2c_scored_feeds *const *sets, int32_t n_sets);

/* Turns logits [n_rows, n_vocab] into log-probabilities in place; they have the same bits
 * as gpt2c_score's. Defined in sample/scores.c. */
void gpt2c_log_probs(const gpt2c_model *model, float *logits, int32_t n_rows);

/* ---- probing: hooks that read and edit activations at named points of a forward call
 * (pass/forward.c and probe.c) ---- */

/* Shapes are [n, n_embd] unless stated otherwise, for n tokens. */
typedef enum {
    GPT2C_POINT_RESID_PRE,
    GPT2C_POINT_LN_1,
    GPT2C_POINT_Q,
    GPT2C_POINT_K,
    GPT2C_POINT_V,
    GPT2C_POINT_SCORES, /* [n_head * n, n]; -infinity at masked positions */
    GPT2C_POINT_PROBS,  /* [n_head * n, n] */
    GPT2C_POINT_ATTN_OUT,
    GPT2C_POINT_RESID_MID,
    GPT2C_POINT_LN_2,
    GPT2C_POINT_MLP_PRE, /* [n, n_inner] */
    GPT2C_POINT_MLP_ACT, /* [n, n_inner] */
    GPT2C_POINT_MLP_OUT,
    GPT2C_POINT_RESID_POST,
    GPT2C_POINT_EMBED, /* this point and those below exist once, the others in each layer */
    GPT2C_POINT_LN_F,
    GPT2C_POINT_LOGITS, /* [rows whose logits are wanted, n_vocab] */
    GPT2C_N_POINTS,
} gpt2c_point;

/* A hook that may edit rows [n_rows, width], which begin a stride apart. layer is n_layer for
 * points outside the layers. A result other than 0 stops the call. The hook runs on the thread that
 * made the call. */
typedef int (*gpt2c_on_point)(void *context, gpt2c_point point, int32_t layer, float *rows,
                              size_t stride, int32_t n_rows, int32_t width);

typedef struct {
    /* [n_layer + 1, GPT2C_N_POINTS]: not 0 for the points to probe; the last row has the points
     * outside the layers */
    const uint8_t *points;
    const uint8_t *wants_logits; /* [n_tokens] */
    gpt2c_on_point on_point;
    int (*poll)(void *context); /* called before each layer and lm_head; not 0 stops the call */
    void *context;
} gpt2c_hooks;

/* Feeds all tokens in one call to an empty sequence, with a scratch of n_tokens rows, and calls the
 * hooks. Without edits the bits are those of gpt2c_forward. Returns GPT2C_STOPPED if a hook stopped
 * the call. A child that a hook forked lacks the worker threads, so the call returns GPT2C_STOPPED
 * there too. After GPT2C_STOPPED the sequence must be freed. */
gpt2c_status gpt2c_forward_probed(const gpt2c_model *model, gpt2c_scratch *scratch,
                                  gpt2c_sequence *sequence, const int32_t *tokens, int32_t n_tokens,
                                  const gpt2c_hooks *hooks, float *logits);

/* ---- sampling and jobs (sample/) ---- */

/* The stages that change the logits before a token is chosen, in their usual order: STAGE(kind,
 * option) for each. The enum below, the dispatch (sample/sample.c) and the names that Python uses
 * follow from these two lists. The comment beside a stage names the fields of gpt2c_stage that the
 * stage reads. allowed_ids is the only stage that is not an option of users. */

/* Penalties change the logits of single ids, or ban them. */
#define GPT2C_PENALTIES(STAGE)                                                                     \
    STAGE(ALLOWED_IDS, allowed_ids)               /* ids: a bitmask, see apply_allowed_ids */      \
    STAGE(LOGIT_BIAS, logit_bias)                 /* adds values to the logits of ids */           \
    STAGE(REPETITION_PENALTY, repetition_penalty) /* value */                                      \
    STAGE(PRESENCE_PENALTY, presence_penalty)     /* value */                                      \
    STAGE(FREQUENCY_PENALTY, frequency_penalty)   /* value */                                      \
    STAGE(DRY, dry)                               /* see apply_dry */                              \
    STAGE(NO_REPEAT_NGRAM, no_repeat_ngram_size)  /* count */                                      \
    STAGE(BAD_WORDS, bad_words)             /* ids: each word as its length and then its ids */    \
    STAGE(MIN_NEW_TOKENS, min_new_tokens)   /* count: bans ids until count tokens are generated */ \
    STAGE(SUPPRESS_TOKENS, suppress_tokens) /* ids */

/* Filters change logits or remove ids, depending on the distribution. */
#define GPT2C_FILTERS(STAGE)                                                         \
    STAGE(TEMPERATURE, temperature)       /* value */                                \
    STAGE(TOP_N_SIGMA, top_n_sigma)       /* value */                                \
    STAGE(TOP_K, top_k)                   /* count */                                \
    STAGE(TOP_P, top_p)                   /* value */                                \
    STAGE(MIN_P, min_p)                   /* value */                                \
    STAGE(TYPICAL_P, typical_p)           /* value */                                \
    STAGE(EPSILON_CUTOFF, epsilon_cutoff) /* value */                                \
    STAGE(ETA_CUTOFF, eta_cutoff)         /* value */                                \
    STAGE(XTC, xtc)                       /* value: probability, other: threshold */ \
    STAGE(MIROSTAT, mirostat)             /* value: tau in bits, other: eta */

typedef enum {
#define GPT2C_KIND(kind, option) GPT2C_##kind,
    GPT2C_PENALTIES(GPT2C_KIND) GPT2C_N_PENALTIES,
    GPT2C_LAST_PENALTY = GPT2C_N_PENALTIES - 1, /* so that the first filter is GPT2C_N_PENALTIES */
    GPT2C_FILTERS(GPT2C_KIND) GPT2C_N_STAGES,
#undef GPT2C_KIND
} gpt2c_stage_kind;

/* The name of the option that enables a stage. */
const char *gpt2c_stage_name(gpt2c_stage_kind kind);

typedef struct {
    gpt2c_stage_kind kind;
    float value, other;
    int32_t count, span;
    const int32_t *ids;  /* [n_ids]; all but bitmasks and lengths are in the vocabulary */
    const float *values; /* [n_ids] */
    int32_t n_ids;
} gpt2c_stage;

typedef struct {
    const gpt2c_stage *stages; /* [n_stages], run in this order */
    int32_t n_stages;
    int32_t do_sample; /* 0: the largest logit is chosen; 1: the token is drawn */
    uint64_t seed;
    uint32_t sample; /* the index of this sample among the samples of the prompt */
} gpt2c_sampling;

typedef enum {
    GPT2C_RUNNING = 0,
    GPT2C_FINISHED_LENGTH,
    GPT2C_FINISHED_STOP,
    GPT2C_FINISHED_CONTEXT,
    GPT2C_FINISHED_NOT_A_NUMBER, /* a logit for position gpt2c_sequence_length(sequence) is NaN */
    GPT2C_FINISHED_NOTHING_LEFT,
    GPT2C_FINISHED_FED, /* a job that only feeds has fed its prompt */
} gpt2c_finish;

typedef struct gpt2c_caller gpt2c_caller;

/* What the running batch knows about a job. batch/ reads and writes it under the batch's lock;
 * other code may only while the job rests, or in a forked child. */
typedef struct {
    gpt2c_caller *caller; /* that resumed the job; used only while the job is ready */
    int is_ready;         /* the next steps may run the job */
    int is_in_step;       /* the step that runs now uses the job */
    int is_cancelled;
    int is_leaving;               /* gpt2c_batch_leave waits for the end of its step */
    unsigned ready_process;       /* the number of the process in which it was last resumed */
    unsigned resting_process;     /* the process in which it rests unfinished; 0: it does not */
    unsigned expecting_gathering; /* the number of the gathering that expects it; 0: none */
    int lacks_room;               /* it found the cache full in the step that has just ended */
    double blocked_since;         /* when it first lacked room since it was last fed, or 0 */
    double oldest_since; /* when it first was the oldest of the jobs that lack room, or 0 */
    double asked_at;     /* when its caller was last asked to free pages */
    int has_given_up;    /* it has found the cache full for too long */
    uint64_t arrival;    /* its number in the order of first resumes, from 1; 0: never resumed */
} gpt2c_membership;

/* One sequence being generated, or fed. The caller owns every pointer. A job's tokens are those of
 * the prompt and then the new ones; the first gpt2c_sequence_length(sequence) - n_before of them
 * were fed. */
typedef struct {
    gpt2c_sequence *sequence;
    const int32_t *prompt; /* [n_prompt] */
    int32_t n_prompt;
    int32_t n_before; /* tokens in the sequence before the prompt; 0 unless the job only feeds */
    gpt2c_sampling sampling;
    float mirostat_mu;       /* begins at twice tau */
    const int32_t *stop_ids; /* [n_stop_ids] */
    int32_t n_stop_ids;
    int32_t max_new_tokens;
    int32_t *tokens; /* [max_new_tokens], the generated tokens */
    /* Atomic, because any thread may look at a running job's progress. It is increased after the
     * token was written, so a reader may read that many tokens. */
    atomic_int n_tokens;
    gpt2c_scores scores; /* of the generated tokens and then end_id, from the raw logits */
    gpt2c_finish finish;
    int32_t end_id;      /* with GPT2C_FINISHED_STOP: the stop id that was chosen */
    float *logits_out;   /* a job that only feeds its prompt: where to write logits */
    gpt2c_wanted wanted; /* of such a job: which logits to write */
    int is_feed;         /* 1: the job only feeds its prompt */
    int32_t rest_at;     /* the job comes to rest when it has this many new tokens */
    gpt2c_status status; /* why the last step failed for this job */
    gpt2c_membership member;
    gpt2c_drafter *drafter;         /* NULL: no speculative decoding */
    gpt2c_lookup *lookup;           /* needed with a drafter */
    gpt2c_sequence *draft_sequence; /* of a separate draft model; NULL without one */
    /* Counts of forward calls that chose tokens, of drafted tokens, and of accepted drafts. */
    int32_t n_passes, n_drafted, n_accepted;
} gpt2c_job;

/* Applies a job's stages to logits [n_vocab] in place; removed ids get -infinity. */
gpt2c_status gpt2c_apply_stages(const gpt2c_model *model, gpt2c_scratch *scratch,
                                const gpt2c_job *job, float *logits);
/* Chooses a job's next token from logits [n_vocab]. The token's score comes from raw_logits, the
 * model's logits before any edit. */
gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *raw_logits);

/* ---- the running batch (batch/) ---- */

/* The jobs of all calls of a model. batch/batch.h describes who runs them. */
typedef struct gpt2c_batch gpt2c_batch;

/* A thread that waits for jobs: its own, or those of many tasks. Zero it before its first use. */
struct gpt2c_caller {
    atomic_uint n_wakes; /* the word that a waiting caller sleeps on */
    int rests_together;  /* 1: when one of its jobs comes to rest, all of them do */
    int n_waiting;       /* threads that wait, usually one */
    int leads;           /* it was given the lead, and has not begun to lead yet */
    int is_notified;     /* the next wait returns: a job rests, or gpt2c_batch_wake was called */
    int n_ready;         /* its jobs that are ready */
    int n_chosen;        /* used by choose.c: its jobs in the next step */
};

gpt2c_status gpt2c_batch_create(const gpt2c_model *model, gpt2c_batch **batch);
void gpt2c_batch_free(gpt2c_batch *batch);

/* Makes jobs ready: the batch's next steps run each of them until it has rest_at new tokens,
 * finishes, fails or is cancelled. The job then comes to rest, and the batch no longer touches it. A
 * job with a drafter may get several tokens in a step. The jobs must rest and have a token to feed.
 * The caller must not touch them while they are ready. */
gpt2c_status gpt2c_batch_resume(gpt2c_batch *batch, gpt2c_caller *caller, gpt2c_job *const *jobs,
                                int32_t n_jobs);
/* Waits for at most `seconds` until a job of the caller comes to rest, or until gpt2c_batch_wake.
 * The thread may run steps of the batch meanwhile. Returns 0 if the time ran out. */
int gpt2c_batch_wait(gpt2c_batch *batch, gpt2c_caller *caller, double seconds);
/* Takes jobs out of the batch, whether they rest or not. If a step is using one, waits for its
 * end. */
void gpt2c_batch_leave(gpt2c_batch *batch, gpt2c_job *const *jobs, int32_t n_jobs);
/* Whether a job that was resumed has come to rest. */
int gpt2c_batch_has_rested(gpt2c_batch *batch, const gpt2c_job *job);
/* Brings a job to rest before the next step. No step waits for a cancelled job to return. Any thread
 * may call this. */
void gpt2c_batch_cancel(gpt2c_batch *batch, gpt2c_job *job);
/* Makes the caller's wait in another thread return; if none is in progress, the next one. */
void gpt2c_batch_wake(gpt2c_batch *batch, gpt2c_caller *caller);
/* Forgets the parent's jobs and callers. For a forked child. A job that was in a step at the fork
 * (is_in_step) is lost, because only the parent ends the step. On an error nothing has changed. */
gpt2c_status gpt2c_batch_forget(gpt2c_batch *batch);

/* The turn of a call that makes a pass outside the batch. Turns alternate with steps. Zero it before
 * its first use. */
typedef struct gpt2c_turn {
    atomic_uint n_wakes; /* the word that its thread sleeps on */
    int is_granted, is_queued;
    int is_waiting; /* its thread is in gpt2c_turn_wait */
    /* What the turn scores, or NULL. The pass of another scoring turn may score it instead. */
    const gpt2c_scored_feeds *scored;
    int is_joined; /* the pass of another turn scores these feeds now */
    int is_scored; /* such a pass has ended, with this status: */
    gpt2c_status status;
    struct gpt2c_turn *next;
} gpt2c_turn;

/* Waits for at most `seconds`. Returns whether the turn was granted, or another turn has scored its
 * feeds. If not, it keeps its place in the queue, or in the pass that is scoring its feeds. */
int gpt2c_turn_wait(gpt2c_batch *batch, gpt2c_turn *turn, double seconds);
/* Scores the feeds of a granted turn, unless another turn has done this, and ends the turn. The
 * pass also scores the feeds of other waiting turns that fit into its rows. */
gpt2c_status gpt2c_turn_score(gpt2c_batch *batch, gpt2c_turn *turn);
/* Ends the turn, or gives up its place in the queue. Waits for the end of a pass that scores its
 * feeds. A second call does nothing. */
void gpt2c_turn_end(gpt2c_batch *batch, gpt2c_turn *turn);
/* The max number of rows of the turn's pass. It is small if jobs wait for the next step. */
int32_t gpt2c_turn_rows(gpt2c_batch *batch);
/* The buffers for the pass of a turn. */
gpt2c_scratch *gpt2c_turn_scratch(gpt2c_batch *batch);

/* ---- speculative decoding (draft/) ---- */

/* Makes a draft model with the base's matrices in 4 bits, quantised without a search for scales.
 * (wte and lm_head have 8 bits if they are a small share of the weights.) The draft model shares
 * the base's vectors and runs on the base's sequences; the base must outlive it. Defined in
 * model/model.c. */
gpt2c_status gpt2c_draft_model_create(const gpt2c_model *base, gpt2c_model **draft);
/* The same with the weights that gpt2c_model_move copied from another such draft model. */
gpt2c_status gpt2c_draft_model_attach(const gpt2c_model *base, const void *memory, size_t n_bytes,
                                      gpt2c_model **draft);

/* Makes an index for prompt lookup in one sequence of up to n_positions tokens. */
gpt2c_status gpt2c_lookup_create(int32_t n_positions, gpt2c_lookup **lookup);
void gpt2c_lookup_free(gpt2c_lookup *lookup);

/* A drafter holds the measured costs and acceptance rates of drafts. Like a scratch, it belongs to
 * one call at a time. */
gpt2c_status gpt2c_drafter_create(gpt2c_drafter **drafter);
void gpt2c_drafter_free(gpt2c_drafter *drafter);

enum { GPT2C_DRAFT_LOOKUP = 1 };

/* Sets the sources of drafts: a draft model with the same vocabulary (or NULL), and a set of
 * GPT2C_DRAFT_ flags. If n_fixed > 0, n_fixed tokens are drafted at a time; otherwise the number
 * that is expected to save the most time. */
gpt2c_status gpt2c_drafter_set(gpt2c_drafter *drafter, const gpt2c_model *model, int32_t sources,
                               int32_t n_fixed);

/* ---- the machine's limits, for benchmarks (roofline.c) ---- */

/* Bytes per second at which the model's threads read and sum its weights. */
double gpt2c_measure_stream(const gpt2c_model *model);
/* Floating-point operations per second of the model's threads on values in registers. An FMA counts
 * as two. */
double gpt2c_measure_multiply_add(const gpt2c_model *model);

#endif
