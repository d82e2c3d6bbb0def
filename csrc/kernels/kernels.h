/* The table of kernels: plain functions over pointers and ranges, which own no memory and no
 * threads. Every instruction set has the same kernels, and all give the same bits. */
#ifndef GPT2C_KERNELS_H
#define GPT2C_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Output columns of a packed weight panel [k][PANEL]. 32 floats are two AVX-512 registers, so the
 * sums of 8 rows of x fit the registers, and weights that are loaded once serve 8 rows. (With 64
 * columns and 6 rows, batches of 8 and 32 decoded a quarter to a third slower.) PANEL is not part
 * of the arithmetic. */
#define PANEL 32

#define CACHE_LINE_BYTES 64
#define CACHE_LINE_FLOATS 16

/* A product is summed in blocks of K_BLOCK steps of k: one FMA chain per block, block sums added
 * ascending. K_BLOCK is part of the arithmetic: docs/arithmetic.md has measurements of 32, 64, 128
 * and 256. */
#define K_BLOCK 64

/* GROUP steps of k share a scale, in quantised weights and in quantised rows. GROUP is part of the
 * arithmetic. */
#define GROUP 32

/* Bytes of a block: a panel's weights in one group, GROUP steps of k.
 *   int8: [GROUP / 4][PANEL][4] values
 *   int4: [GROUP / 8][PANEL][4] bytes; the first half of the group is in the lower nibbles, the
 *         second half in the upper ones
 * Then follow 16 bits of scale data for each column (quantize.h). In total a weight takes 8.5 or
 * 4.5 bits. */
#define INT8_BLOCK_BYTES (GROUP * PANEL + 2 * PANEL)
#define INT4_BLOCK_BYTES (GROUP * PANEL / 2 + 2 * PANEL)

/* The scale of an int4 column is stored as a float's bits, shifted right and with a smaller
 * exponent bias. */
#define INT4_SCALE_SHIFT 18
#define INT4_SCALE_EXPONENT 32 /* the float's biased exponent if the stored exponent is 0 */

/* Positions in a page of the KV cache. PAGE_POSITIONS is not part of the arithmetic. */
#define PAGE_POSITIONS 64

/* Softmax sums and value sums run over blocks of POSITION_BLOCK positions, block sums added
 * ascending. POSITION_BLOCK is part of the arithmetic (docs/arithmetic.md). It is a multiple of
 * 16, the lanes of a sum. */
#define POSITION_BLOCK 64

/* A compiler that computes float arithmetic in double would round twice. */
#include <float.h>
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "gpt2c needs float arithmetic in float (FLT_EVAL_METHOD == 0)"
#endif

#if defined(__x86_64__) || defined(FP_FAST_FMAF) || defined(__aarch64__)
#define GPT2C_HAS_SCALAR_FMA 1
#endif

/* Rows in int8, with a scale and the negative sum of the values for each group. The rows of a group
 * lie side by side, so that a kernel needs one address for all rows. */
typedef struct {
    int8_t *values; /* group g of row r: values + g * values_stride + r * GROUP */
    float *scales;  /* scales[g * stride + r]; 0 for zeros, NaN where an element is not finite */
    int32_t *minus_sums; /* minus_sums[g * stride + r]: minus the sum of the group's values */
    size_t stride, values_stride;
} quantized_rows;

/* out = activation(x @ w + bias) + residual for a range of panels of w. */
typedef struct {
    const float *x; /* [n_rows, k]; if w is quantised, `quantized` is read instead */
    size_t x_stride;
    quantized_rows quantized;
    int n_rows;
    int k;
    /* [panels of n]: float or 16 bits [k][PANEL], or blocks [groups of k] */
    const void *panels;
    int dtype;             /* of float panels, a gpt2c_dtype */
    float *widened;        /* scratch, [k][PANEL], for panels of 16 bits */
    const float *bias;     /* [n rounded up to PANEL], or NULL */
    const float *residual; /* [n_rows, n], or NULL; may be out itself */
    size_t residual_stride;
    float *out; /* [n_rows, n] */
    size_t out_stride;
    /* If quantized_out.values is set, the result is stored there, quantised, and not in out. */
    quantized_rows quantized_out;
    int n;
    int activation; /* a gpt2c_activation */
} matmul_args;

/* Cache lines that a kernel prefetches while it works, in the order in which they will be read.
 * Each part has the lines from `next` to `end`, `step` bytes apart. See attention.h. */
#define MAX_PREFETCH_PARTS 128

typedef struct {
    struct {
        const char *next, *end;
        size_t step;
    } parts[MAX_PREFETCH_PARTS];
    int n_parts;
    int part; /* the part that is being prefetched */
} prefetch_list;

/* The max number of rows, or of heads of one row, of one call of an attention kernel. The caller
 * provides room for all their scores. */
#define ATTENTION_ROWS 8

/* Attention of one head for rows at consecutive positions of one sequence, all in one page; or of
 * n_heads consecutive heads for one row. */
typedef struct {
    const float *q; /* [n_rows, head_dim] */
    size_t q_stride;
    int n_rows;
    void *const *pages; /* the sequence's pages of PAGE_POSITIONS positions */
    int is_bfloat16;    /* the elements of pages are bfloat16, else float */
    /* Where the head's keys [head_dim][PAGE_POSITIONS] and values [PAGE_POSITIONS][head_dim] begin
     * in a page, in elements. */
    size_t key_offset, value_offset;
    int n_positions; /* that the first row attends to: its own position + 1 */
    int head_dim;
    int n_heads; /* for attention_heads: consecutive in all arrays, up to ATTENTION_ROWS */
    prefetch_list *prefetches; /* for attention_heads, or NULL */
    float scale;
    float *scores; /* scratch, [ATTENTION_ROWS, the last row's positions] */
    size_t scores_stride;
    /* [n_rows], for attention_weights and attention_values: the softmax denominators */
    float *sums;
    float *out; /* [n_rows, head_dim] */
    size_t out_stride;
} attention_args;

/* The noise of a draw depends on this key and on the token's id: see sampling.h. */
typedef struct {
    uint64_t seed;
    uint32_t sample;
    uint32_t position;
} noise_key;

/* KERNEL_TABLE (body.h) must name every member: a member that it leaves out would be NULL. */
typedef struct {
    int tile_rows; /* of matmul: the max number of rows that share each load of weights */
    void (*matmul)(const matmul_args *args, int panel_begin, int panel_end);
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float epsilon, int n,
                       float *out);
    void (*attention)(const attention_args *args);
    /* Attention of one row and n_heads heads, page by page, so that memory is read in long runs. */
    void (*attention_heads)(const attention_args *args);
    /* The steps of attention for one row of one head: the scores, the softmax weights (in place of
     * the scores) with their sum, and the weighted sum of the values. Together they give the same
     * bits as `attention`. */
    void (*attention_scores)(const attention_args *args);
    void (*attention_weights)(const attention_args *args);
    void (*attention_values)(const attention_args *args);
    /* Stores a head's keys and values of n consecutive positions of a page, [n, head_dim] each with
     * rows `stride` floats apart. In the page a key's elements lie PAGE_POSITIONS apart, a value's
     * side by side. */
    void (*store)(const float *key, const float *value, size_t stride, int n, int head_dim,
                  int is_bfloat16, void *keys, void *values);
    /* x += added */
    void (*add)(const float *added, int n, float *x);
    /* Stores rows of n_columns floats, at most PANEL, that begin `stride` apart, in 16 bits: dtype
     * is GPT2C_FLOAT16 or GPT2C_BFLOAT16. Rows of `to` begin PANEL apart. Returns 0 if a value does
     * not fit exactly; then the content of `to` is undefined. A NaN may not fit. */
    int (*narrow)(const float *rows, size_t stride, int n_rows, int n_columns, int dtype,
                  uint16_t *to);
    /* Widens n weights of 16 bits, a multiple of PANEL, to float. */
    void (*widen)(const void *weights, size_t n, int dtype, float *to);
    /* Quantises rows [begin, end) of x, [.., k], to int8. */
    void (*quantize_rows)(const float *x, size_t x_stride, int begin, int end, int k,
                          const quantized_rows *out);
    /* Quantise one group of a panel, [GROUP][PANEL] finite weights, to a block: see quantize.h. */
    void (*quantize_int8)(const float *weights, uint8_t *packed);
    void (*quantize_int4)(const float *weights, int n_scales, uint8_t *packed);
    /* The lowest id with the largest logit, or -1 if any logit is NaN. */
    int (*arg_max)(const float *logits, int n);
    /* Sets *log_sum_exp, such that logit - log_sum_exp is a log-probability, and *entropy, in nats:
     * see log_prob.h. */
    void (*log_sum_exp)(const float *logits, int n, float *log_sum_exp, float *entropy);
    /* The rank of an id: 1 for the most likely. Of equal logits the lower id comes first. */
    int (*rank)(const float *logits, int n, int id);
    /* More measures of a distribution p, given the row's log_sum_exp: see measures.h. */
    float (*second_moment)(const float *logits, int n, float log_sum_exp);
    float (*renyi_entropy)(const float *logits, int n, float log_sum_exp, float order);
    float (*set_log_prob)(const float *logits, int n, float log_sum_exp, const float *added);
    float (*cross_entropy)(const float *logits, int n, float log_sum_exp, const float *other,
                           float other_log_sum_exp);
    /* Returns the id with the largest score, logit + Gumbel noise, and sets *score to it. Of equal
     * scores the lowest id wins. ids are below 2^24. */
    int (*draw)(const float *logits, const int32_t *ids, int n, const noise_key *key, float *score);
    /* x /= by */
    void (*divide)(float *x, int n, float by);
    /* A uniform number in [0, 1), determined by the key. */
    float (*uniform)(const noise_key *key);
    /* Elementwise functions, in place. */
    void (*exp)(float *x, int n);
    void (*log)(float *x, int n);
    void (*activate)(float *x, int n, int activation);
    /* Measure the machine's limits, for benchmarks (limits.h): `stream` reads n floats, a multiple
     * of 128; `multiply_add` computes in registers and returns the number of operations. */
    float (*stream)(const float *x, size_t n);
    double (*multiply_add)(long long steps, float factor, float *result);
} kernel_table;

/* Products of quantised rows and quantised weights. Each output adds its groups ascending, from +0:
 * acc = fma((float)sum, row's scale * column's scale, acc), where `sum` is the group's exact
 * integer sum. */
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
extern const integer_table integer_neoni8mm;
#endif

#endif
