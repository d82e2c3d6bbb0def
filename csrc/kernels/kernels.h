/* The table of kernels: plain functions over pointers and ranges, which own no memory and no
 * threads. Every instruction set has the same ones, and all give the same bits. */
#ifndef GPT2C_KERNELS_H
#define GPT2C_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Output columns that lie side by side in a packed weight panel [k][PANEL]. 32 floats are two
 * AVX-512 registers: narrow enough that 8 rows of x fit the registers, and so meet the weights in one
 * pass. (64 with 6 rows decoded batches of 8 and 32 a quarter to a third slower.) Not part of the
 * arithmetic. */
#define PANEL 32

#define CACHE_LINE 16 /* floats */

/* k is cut into blocks of this many: one FMA chain a block, block sums added ascending. Part of
 * the arithmetic: docs/arithmetic.md shows what 32, 64, 128 and 256 measured. */
#define K_BLOCK 64

/* Quantised weights lie in groups of this many steps of k that share a scale, and so do the rows that
 * they meet. Part of the arithmetic. */
#define GROUP 32

/* One group of a panel's columns, in bytes: values, [GROUP / 4][PANEL][4] of 8 bits, or with the upper
 * half of the group in the upper bits [GROUP / 8][PANEL][4] of 4; then a word of 16 bits for each
 * column (quantize.h). 8.5 and 4.5 bits a weight. */
#define INT8_GROUP_BYTES (GROUP * PANEL + 2 * PANEL)
#define INT4_GROUP_BYTES (GROUP * PANEL / 2 + 2 * PANEL)
#define INT4_SCALE_SHIFT 18    /* bits that a float has more than a scale of 4 bits */
#define INT4_SCALE_EXPONENT 32 /* of a float's, where such a scale's is 0 */

/* Positions in a page of the cache. Not part of the arithmetic. */
#define PAGE_POSITIONS 64

/* Soft-max sums and value sums run over blocks of this many positions, block sums added ascending.
 * Part of the arithmetic (docs/arithmetic.md). A multiple of 16, the lanes of a sum. */
#define POSITION_BLOCK 64

/* A C11 compiler that computes float in double would round twice. */
#include <float.h>
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "gpt2c needs float arithmetic in float (FLT_EVAL_METHOD == 0)"
#endif

#if defined(__x86_64__) || defined(FP_FAST_FMAF) || defined(__aarch64__)
#define GPT2C_HAS_SCALAR_FMA 1
#endif

/* Rows in 8 bits, a scale and the values' negative sum for each group: the rows of a group side by side, so that
 * one address finds them all. */
typedef struct {
    int8_t *values; /* group g of row r: values + g * values_stride + r * GROUP */
    float *scales;  /* scales[g * stride + r]; 0 for a group of zeros, NaN for one that has any */
    int32_t *minus_sums; /* minus_sums[g * stride + r] */
    size_t stride, values_stride;
} quantized_rows;

/* out = activation(x @ w + bias) + residual over a range of panels of w. */
typedef struct {
    const float *x; /* [n_rows, k]; where w is quantised, `quantized` instead */
    size_t x_stride;
    quantized_rows quantized;
    int n_rows;
    int k;
    const void *panels;    /* float [ceil(n / PANEL)][k][PANEL], or blocks [..][ceil(k / GROUP)] */
    const float *bias;     /* [n rounded up to PANEL], or NULL */
    const float *residual; /* [n_rows, n], or NULL; may be out itself */
    size_t residual_stride;
    float *out; /* [n_rows, n] */
    size_t out_stride;
    quantized_rows quantized_out; /* instead of out, where it has values: the same in 8 bits */
    int n;
    int activation; /* a gpt2c_activation */
} matmul_args;

/* Lines of memory that a kernel fetches on its way, a step apart, in the order in which they are read. */
#define MAX_FETCHES 128

typedef struct {
    struct {
        const char *next, *end;
        size_t step;
    } parts[MAX_FETCHES];
    int n_parts, part; /* the one that is under way */
} fetch_list;

/* Rows of attention that share what they load; room for the scores of as many is needed. */
#define ATTENTION_ROWS 8

/* Attention of one head for rows at consecutive positions, all in one page, of one sequence. */
typedef struct {
    const float *q; /* [n_rows, head_dim] */
    size_t q_stride;
    int n_rows;
    void *const *pages;  /* the sequence's, PAGE_POSITIONS positions each */
    int is_bfloat16;     /* pages hold bfloat16 and not float */
    size_t keys, values; /* where in a page, in numbers, this head's lie: */
                         /* [head_dim][PAGE_POSITIONS] and [PAGE_POSITIONS][head_dim] */
    int n_positions;     /* the first row's own position + 1 */
    int head_dim;
    /* Of a single row: */
    int n_heads;         /* that follow each other in all arrays; up to ATTENTION_ROWS */
    fetch_list *fetches; /* or NULL */
    float scale;
    float *scores; /* scratch, [ATTENTION_ROWS, the last row's positions] */
    size_t scores_stride;
    float *sums; /* [n_rows], of the weights; for the parts alone */
    float *out;  /* [n_rows, head_dim] */
    size_t out_stride;
} attention_args;

/* The noise of a draw: u at (seed, sample, position, id), see kernels/sampling.h. */
typedef struct {
    uint64_t seed;
    uint32_t sample;
    uint32_t position;
} noise_key;

typedef struct {
    void (*matmul)(const matmul_args *args, int panel_begin, int panel_end);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float epsilon, int n,
                       float *out);
    void (*attention)(const attention_args *args);
    /* The same of a single row and several heads: page by page, so that memory is read in long runs. */
    void (*attention_heads)(const attention_args *args);
    /* Its parts, of a single row: its scores, the weights that become of them and their sum, and the values'
     * sum by these. One after the other they are the whole, to the bit. */
    void (*attention_scores)(const attention_args *args);
    void (*attention_weights)(const attention_args *args);
    void (*attention_values)(const attention_args *args);
    /* Puts a head's key and value of one position, [head_dim] each, where a page has them: the key's numbers
     * PAGE_POSITIONS apart, the value's side by side. */
    void (*store)(const float *key, const float *value, int head_dim, int is_bfloat16, void *keys,
                  void *values);
    void (*add)(const float *added, int n, float *x);
    /* Rows [begin, end) of x, [.., k], in 8 bits. */
    void (*quantize_rows)(const float *x, size_t x_stride, int begin, int end, int k,
                          const quantized_rows *out);
    /* A group of a panel's columns, [GROUP][PANEL], all finite, as a block: see quantize.h. */
    void (*quantize_int8)(const float *weights, uint8_t *packed);
    void (*quantize_int4)(const float *weights, int n_candidates, uint8_t *packed);
    /* The lowest id of the greatest logit, or -1 where any is NaN. */
    int (*arg_max)(const float *logits, int n);
    /* What to take from a logit for its log-probability, and the entropy: see log_prob.h. */
    void (*log_sum_exp)(const float *logits, int n, float *log_sum_exp, float *entropy);
    /* 1 for the most likely id; of equal logits the lower id comes first. */
    int (*rank)(const float *logits, int n, int id);
    /* The id, below 2^24, whose logit plus Gumbel noise is the greatest; of equal ones the lowest. */
    int (*draw)(const float *logits, const int32_t *ids, int n, const noise_key *key, float *score);
    void (*divide)(float *x, int n, float by);
    /* From 0 up to, and not, 1. */
    float (*uniform)(const noise_key *key);
    /* Elementwise functions, here so that tests reach them: exp, log, and the activations. */
    void (*exp)(float *x, int n);
    void (*log)(float *x, int n);
    void (*activate)(float *x, int n, int activation);
    /* The machine's limits, for benchmarks: reads n floats, a multiple of 128; multiplies and
     * adds in registers, and returns how many operations that were. */
    float (*stream)(const float *x, size_t n);
    double (*multiply_add)(long long steps, float factor, float *result);
} kernel_table;

/* Products of quantised rows and weights: out as matmul's, each output's groups added ascending to +0,
 * acc = fma((float)sum, row's scale * column's scale, acc), sum being exact. */
typedef struct {
    void (*matmul_int8)(const matmul_args *args, int panel_begin, int panel_end);
    void (*matmul_int4)(const matmul_args *args, int panel_begin, int panel_end);
} integer_table;

#if defined(GPT2C_HAS_SCALAR_FMA)
extern const kernel_table kernels_scalar;
extern const integer_table integer_scalar;
#endif
#if defined(__x86_64__)
extern const kernel_table kernels_avx2;
extern const integer_table integer_avx2;
extern const integer_table integer_avxvnni;
extern const kernel_table kernels_avx512;
extern const integer_table integer_avx512vnni;
#endif
#if defined(__aarch64__)
extern const kernel_table kernels_neon;
extern const integer_table integer_neon;
extern const integer_table integer_neondot;
#endif

#endif
