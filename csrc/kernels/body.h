/* Includes all kernels. The including file must have defined the vectors that they use (vec.h). */
#include "kernels/functions.h"
#include "kernels/narrow.h"
#include "kernels/row.h"

#include "kernels/elementwise.h"
#include "kernels/quantize_rows.h"

#include "kernels/finish.h"
#include "kernels/layer_norm.h"
#include "kernels/limits.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"

#include "kernels/attention.h"
#include "kernels/log_prob.h"
#include "kernels/measures.h"
#include "kernels/sampling.h"

#define KERNEL_TABLE                                   \
    {                                                  \
        .tile_rows = TILE_ROWS,                        \
        .matmul = matmul_kernel,                       \
        .layer_norm = layer_norm_kernel,               \
        .attention = attention_kernel,                 \
        .attention_heads = attention_heads_kernel,     \
        .attention_scores = attention_scores_kernel,   \
        .attention_weights = attention_weights_kernel, \
        .attention_values = attention_values_kernel,   \
        .store = store_kernel,                         \
        .add = add_kernel,                             \
        .narrow = narrow_kernel,                       \
        .widen = widen_kernel,                         \
        .quantize_rows = quantize_rows_kernel,         \
        .quantize_int8 = quantize_int8_kernel,         \
        .quantize_int4 = quantize_int4_kernel,         \
        .arg_max = arg_max_kernel,                     \
        .draw = draw_kernel,                           \
        .divide = divide_kernel,                       \
        .uniform = uniform_kernel,                     \
        .log_sum_exp = log_sum_exp_kernel,             \
        .rank = rank_kernel,                           \
        .second_moment = second_moment_kernel,         \
        .renyi_entropy = renyi_entropy_kernel,         \
        .set_log_prob = set_log_prob_kernel,           \
        .cross_entropy = cross_entropy_kernel,         \
        .exp = exp_kernel,                             \
        .log = log_kernel,                             \
        .activate = activate_kernel,                   \
        .stream = stream_kernel,                       \
        .multiply_add = multiply_add_kernel,           \
    }
