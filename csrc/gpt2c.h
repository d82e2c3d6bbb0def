/* The C API of gpt2c: a GPT-2 on the CPU, its key/value cache, and the loop that generates.
 *
 * Nothing here aborts, exits, prints or asserts on input: a function that can fail returns a
 * gpt2c_status. A model is immutable once loaded and may be shared by any number of threads;
 * a sequence, a scratch and a job belong to one call at a time. */
#ifndef GPT2C_H
#define GPT2C_H

#include <stddef.h>
#include <stdint.h>

/* The version of the arithmetic: raised when any logit's bits change (see CONTRIBUTING.md). */
#define GPT2C_ARITHMETIC 1

/* Most rows (sequence, position, token) that one forward call takes. */
#define GPT2C_MAX_ROWS 256

#define GPT2C_MAX_THREADS 256

typedef enum {
    GPT2C_OK = 0,
    GPT2C_NO_MEMORY,
    GPT2C_BAD_ARGUMENT,
    GPT2C_CONTEXT_FULL,
    GPT2C_NOT_A_NUMBER,
    GPT2C_NOTHING_LEFT, /* the stages left no token to choose */
    GPT2C_UNSUPPORTED_CPU,
    GPT2C_STOPPED, /* by who looked at a forward call */
} gpt2c_status;

typedef enum {
    GPT2C_GELU_TANH = 0,
    GPT2C_GELU_ERF,
    GPT2C_QUICK_GELU,
    GPT2C_RELU,
    GPT2C_SILU,
    GPT2C_TANH,
    GPT2C_IDENTITY, /* no activation: every matmul but c_fc's */
} gpt2c_activation;

/* What the matrices are kept in. Quantised ones meet rows in 8 bits, by group (kernels.h). */
typedef enum { GPT2C_FLOAT32 = 0, GPT2C_INT8, GPT2C_INT4 } gpt2c_dtype;

typedef struct {
    int32_t layer_dtype;     /* a gpt2c_dtype: of the layers' matrices */
    int32_t embedding_dtype; /* the same of wte and lm_head, both quantised or neither */
    int32_t bfloat16_cache;  /* keys and values are kept in bfloat16 */
    int32_t n_candidates;    /* of each scale of int4, at least 1 */
    int32_t n_vocab;
    int32_t n_positions;
    int32_t n_embd;
    int32_t n_layer; /* may be 0 */
    int32_t n_head;
    int32_t n_inner;
    int32_t activation;             /* a gpt2c_activation */
    int32_t tied_head;              /* 1: the head is wte; 0: LM_HEAD is loaded too */
    int32_t scale_attn;             /* scores are divided by sqrt(head_dim) */
    int32_t scale_by_inverse_layer; /* scores are divided by (layer + 1) too */
    float layer_norm_epsilon;
} gpt2c_config;

/* GPT-2's tensors, in the order of use; model/tensors.c has their shapes. Those from LN_1_WEIGHT to
 * MLP_C_PROJ_BIAS exist once per layer. */
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
    GPT2C_LM_HEAD, /* where the head is not tied */
    GPT2C_N_TENSORS,
} gpt2c_tensor;

/* GPT-2's name of a tensor; of a layer's tensor without its prefix "h.N.". */
const char *gpt2c_tensor_name(gpt2c_tensor tensor);

typedef struct gpt2c_model gpt2c_model;
typedef struct gpt2c_sequence gpt2c_sequence;
typedef struct gpt2c_scratch gpt2c_scratch;
typedef struct gpt2c_lookup gpt2c_lookup;
typedef struct gpt2c_drafter gpt2c_drafter;

/* ---- instruction sets (cpu.c) ---- */

/* The name of instruction set i compiled into this build, slowest first; NULL past the last. */
const char *gpt2c_isa_compiled(int i);
/* 1 where this CPU and operating system can run it. */
int gpt2c_isa_supported(const char *name);

/* ---- model (model.c) ---- */

/* Takes memory for a model of this shape, all weights zero. isa is a supported name; n_threads, from
 * 1 to GPT2C_MAX_THREADS, the most that one call runs on. */
gpt2c_status gpt2c_model_create(const gpt2c_config *config, const char *isa, int32_t n_threads,
                                gpt2c_model **model);
/* Stores rows [begin, begin + n_rows) of a tensor, given as [n_rows, width] float32; a vector
 * is one row of its length. */
gpt2c_status gpt2c_model_load(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                              const float *rows, size_t begin, size_t n_rows, size_t width);
/* The same rows, as they were given, or as near as they were kept. */
gpt2c_status gpt2c_model_read(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                              float *rows, size_t begin, size_t n_rows, size_t width);
/* The bytes of a matrix as it is packed; NULL for a vector, wpe, or no tensor of the model. */
unsigned char *gpt2c_model_packed(const gpt2c_model *model, gpt2c_tensor tensor, int32_t layer,
                                  size_t *n_bytes);
void gpt2c_model_free(gpt2c_model *model);
/* Bytes of memory that the weights take, padding included. */
size_t gpt2c_model_bytes(const gpt2c_model *model);

/* ---- sequences and their cache (cache.c) ---- */

gpt2c_status gpt2c_sequence_create(const gpt2c_model *model, gpt2c_sequence **sequence);
/* The copy shares the pages until one of the two writes to them. */
gpt2c_status gpt2c_sequence_copy(const gpt2c_sequence *sequence, gpt2c_sequence **copy);
void gpt2c_sequence_free(gpt2c_sequence *sequence);
int32_t gpt2c_sequence_length(const gpt2c_sequence *sequence);
/* Forgets all but the first length positions. */
gpt2c_status gpt2c_sequence_truncate(gpt2c_sequence *sequence, int32_t length);
/* In a forked child: forgets a call that another thread of the parent was in with this sequence. */
void gpt2c_sequence_forget_call(gpt2c_sequence *sequence);

/* ---- forward (forward.c) ---- */

/* For calls of up to n_rows rows: GPT2C_MAX_ROWS, or for gpt2c_forward_probed the tokens of its text. */
gpt2c_status gpt2c_scratch_create(const gpt2c_model *model, int32_t n_rows,
                                  gpt2c_scratch **scratch);
void gpt2c_scratch_free(gpt2c_scratch *scratch);
/* Room for n_rows of logits, at most GPT2C_MAX_ROWS, which lasts as long as the scratch; NULL without
 * memory. */
float *gpt2c_scratch_logits(gpt2c_scratch *scratch, const gpt2c_model *model, int32_t n_rows);

typedef enum { GPT2C_LOGITS_NONE = 0, GPT2C_LOGITS_LAST, GPT2C_LOGITS_ALL } gpt2c_wanted;

/* Tokens that follow what the sequence holds already, and whose logits are asked for. */
typedef struct {
    gpt2c_sequence *sequence;
    const int32_t *tokens; /* [n_tokens] */
    int32_t n_tokens;
    gpt2c_wanted wanted;
} gpt2c_feed;

/* Feeds several sequences at once, each given once, at most GPT2C_MAX_ROWS tokens in all.
 * The wanted logits are written as rows of n_vocab floats in the order of the feeds. Either
 * every sequence grows by its tokens or, when an error is returned, none has changed. */
gpt2c_status gpt2c_forward(const gpt2c_model *model, gpt2c_scratch *scratch,
                           const gpt2c_feed *feeds, int32_t n_feeds, float *logits);

/* What a model says of a token that followed. */
typedef struct {
    float log_prob; /* natural logarithm; a NaN where a logit is one */
    float entropy;  /* of the distribution it was drawn from, in nats */
    int32_t rank;   /* 1: the most likely; of equal ones the lower id comes first */
} gpt2c_token_score;

typedef struct {
    float log_prob;
    int32_t id; /* -1 past the vocabulary's end */
} gpt2c_alternative;

#define GPT2C_MOST_TOP 128

/* Where scores go: one for each token, and the n_top most likely ids, up to GPT2C_MOST_TOP, in order. */
typedef struct {
    gpt2c_token_score *scores; /* [n], or NULL: none are asked for */
    int32_t n_top;
    gpt2c_alternative *top; /* [n, n_top] */
} gpt2c_scores;

/* As gpt2c_forward, but instead of logits, which are never stored together, it gives a score for each
 * row whose logits are wanted: that of the token in targets. */
gpt2c_status gpt2c_score(const gpt2c_model *model, gpt2c_scratch *scratch, const gpt2c_feed *feeds,
                         int32_t n_feeds, const int32_t *targets, const gpt2c_scores *scores);

/* Logits [n_rows, n_vocab] become log-probabilities, with the bits that gpt2c_score gives. */
void gpt2c_log_probs(const gpt2c_model *model, float *logits, int32_t n_rows);

/* ---- probing: a forward call that is looked at, and changed, at named points (probe.c) ---- */

/* Of [n, n_embd] where nothing else is said, n being the text's tokens. */
typedef enum {
    GPT2C_POINT_RESID_PRE,
    GPT2C_POINT_LN_1,
    GPT2C_POINT_Q,
    GPT2C_POINT_K,
    GPT2C_POINT_V,
    GPT2C_POINT_SCORES, /* [n_head * n, n]; -infinity where a token does not look */
    GPT2C_POINT_PROBS,  /* [n_head * n, n] */
    GPT2C_POINT_ATTN_OUT,
    GPT2C_POINT_RESID_MID,
    GPT2C_POINT_LN_2,
    GPT2C_POINT_MLP_PRE, /* [n, n_inner] */
    GPT2C_POINT_MLP_ACT, /* [n, n_inner] */
    GPT2C_POINT_MLP_OUT,
    GPT2C_POINT_RESID_POST,
    GPT2C_POINT_EMBED, /* this and the next are points of the model, the others of each layer */
    GPT2C_POINT_LN_F,
    GPT2C_POINT_LOGITS, /* [rows that want them, n_vocab] */
    GPT2C_N_POINTS,
} gpt2c_point;

/* Gets rows [n_rows, width], each a stride after the last, which it may change; layer is n_layer for points
 * of the model. What is not 0 stops the call. Called by the call's own thread. */
typedef int (*gpt2c_on_point)(void *context, gpt2c_point point, int32_t layer, float *rows,
                              size_t stride, int32_t n_rows, int32_t width);

typedef struct {
    /* [n_layer + 1, GPT2C_N_POINTS]: which are shown; the last row is the model's */
    const uint8_t *points;
    const uint8_t *wants_logits; /* [n_tokens] */
    gpt2c_on_point on_point;
    int (*poll)(void *context); /* before each layer; what is not 0 stops the call */
    void *context;
} gpt2c_probe;

/* Feeds a whole text at once to an empty sequence, with a scratch for as many rows, and shows what the
 * probe asks for. What is not changed has the bits that gpt2c_forward computes. GPT2C_STOPPED where the probe
 * stopped it, and in a child that it forked, which lacks the other workers: the sequence is then of no use. */
gpt2c_status gpt2c_forward_probed(const gpt2c_model *model, gpt2c_scratch *scratch,
                                  gpt2c_sequence *sequence, const int32_t *tokens, int32_t n_tokens,
                                  const gpt2c_probe *probe, float *logits);

/* ---- generation (sample.c, generate.c) ---- */

/* What is done to the logits before a token is chosen. */
typedef enum {
    GPT2C_LOGIT_BIAS,         /* values are added to the logits of ids */
    GPT2C_REPETITION_PENALTY, /* value */
    GPT2C_PRESENCE_PENALTY,   /* value */
    GPT2C_FREQUENCY_PENALTY,  /* value */
    GPT2C_DRY,                /* value: multiplier, other: base, count: allowed length, span; ids
                               * ascending: breakers */
    GPT2C_NO_REPEAT_NGRAM,    /* count */
    GPT2C_BAD_WORDS,          /* ids: each word as its length and then its ids */
    GPT2C_MIN_NEW_TOKENS,     /* count, of ids that may not come before */
    GPT2C_SUPPRESS_TOKENS,    /* ids */
    GPT2C_LAST_PENALTY = GPT2C_SUPPRESS_TOKENS,
    GPT2C_TEMPERATURE,    /* value */
    GPT2C_TOP_N_SIGMA,    /* value */
    GPT2C_TOP_K,          /* count */
    GPT2C_TOP_P,          /* value */
    GPT2C_MIN_P,          /* value */
    GPT2C_TYPICAL_P,      /* value */
    GPT2C_EPSILON_CUTOFF, /* value */
    GPT2C_ETA_CUTOFF,     /* value */
    GPT2C_XTC,            /* value: probability, other: threshold */
    GPT2C_MIROSTAT,       /* value: tau in bits, other: eta */
    GPT2C_N_STAGES,
} gpt2c_stage_kind;

typedef struct {
    gpt2c_stage_kind kind;
    float value, other;
    int32_t count, span;
    const int32_t *ids;  /* [n_ids], in the vocabulary */
    const float *values; /* [n_ids] */
    int32_t n_ids;
} gpt2c_stage;

typedef struct {
    const gpt2c_stage *stages; /* [n_stages], run in this order */
    int32_t n_stages;
    int32_t draws; /* 0: the greatest logit is taken */
    uint64_t seed;
    uint32_t sample; /* numbers the samples drawn for one prompt */
} gpt2c_sampling;

typedef enum {
    GPT2C_RUNNING = 0,
    GPT2C_FINISHED_LENGTH,
    GPT2C_FINISHED_STOP,
    GPT2C_FINISHED_CONTEXT,
    GPT2C_FINISHED_NOT_A_NUMBER, /* at position gpt2c_sequence_length(sequence) */
    GPT2C_FINISHED_NOTHING_LEFT,
} gpt2c_finish;

/* One text being continued. The caller owns every pointer. */
typedef struct {
    gpt2c_sequence *sequence;
    const int32_t *prompt; /* [n_prompt], not yet fed */
    int32_t n_prompt;
    int32_t n_fed; /* of the prompt */
    gpt2c_sampling sampling;
    float mirostat_mu;       /* at first twice tau */
    const int32_t *stop_ids; /* [n_stop_ids] */
    int32_t n_stop_ids;
    int32_t max_new_tokens;
    int32_t *tokens; /* [max_new_tokens], the tokens generated */
    int32_t n_tokens;
    gpt2c_scores scores; /* of the tokens generated, by the model's own logits */
    gpt2c_finish finish;
    int32_t end_id;                 /* with GPT2C_FINISHED_STOP: the token that ended it */
    gpt2c_lookup *lookup;           /* NULL: nothing is drafted */
    gpt2c_sequence *draft_sequence; /* of a draft model that is another than this model's packing */
    /* Forward calls after the prompt, and what they took. */
    int32_t n_passes, n_drafted, n_accepted;
} gpt2c_job;

/* Runs a job's stages over logits [n_vocab]; those of ids that were removed become -infinity. */
gpt2c_status gpt2c_process(const gpt2c_model *model, gpt2c_scratch *scratch, const gpt2c_job *job,
                           float *logits);
/* Chooses a job's next token from logits [n_vocab], and scores it by `own`, the model's. */
gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *own);

/* Advances all running jobs together until one of them finishes, tokens have been generated in
 * max_steps forward calls, or `seconds` have passed (at least one call is always made). *n_steps
 * counts the calls that generated a token; with a drafter (or NULL) a call may generate several. */
gpt2c_status gpt2c_run(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_drafter *drafter,
                       gpt2c_job *const *jobs, int32_t n_jobs, int32_t max_steps, double seconds,
                       int32_t *n_steps);

/* ---- drafts: tokens that are guessed, and verified together (lookup.c, draft.c) ---- */

/* A model's own matrices in 4 bits, without a search for scales; all else, and the sequences, are the
 * base's, which has to outlive it. */
gpt2c_status gpt2c_draft_model_create(const gpt2c_model *base, gpt2c_model **draft);

/* An index of one text, of a context of so many positions. */
gpt2c_status gpt2c_lookup_create(int32_t n_positions, gpt2c_lookup **lookup);
void gpt2c_lookup_free(gpt2c_lookup *lookup);

/* What is learnt of speeds and of guesses; for one call at a time, as a scratch is. */
gpt2c_status gpt2c_drafter_create(gpt2c_drafter **drafter);
void gpt2c_drafter_free(gpt2c_drafter *drafter);

enum { GPT2C_DRAFT_LOOKUP = 1 };

/* What guesses in the runs to come: a model of the same vocabulary (or NULL), and of sources lookup. With
 * fixed > 0 always so many tokens are guessed, else as many as pay. */
gpt2c_status gpt2c_drafter_set(gpt2c_drafter *drafter, const gpt2c_model *model, int32_t sources,
                               int32_t fixed);

/* ---- the machine's limits, for benchmarks (measure.c) ---- */

/* Bytes a second at which the model's threads read its weights and do nothing but add them. */
double gpt2c_measure_stream(const gpt2c_model *model);
/* Float multiplications and additions a second that the model's threads do in registers. */
double gpt2c_measure_multiply_add(const gpt2c_model *model);

#endif
