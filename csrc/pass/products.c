/* Matrix products of rows and weights. shares.c divides them among the workers. */
#include "pass/pass.h"

static matmul_args matmul_args_for(const worker_view *view, activations x, linear l, int n_rows) {
    return (matmul_args){
        .x = x.floats.floats,
        .x_stride = x.floats.stride,
        .quantized = x.quantized,
        .n_rows = n_rows,
        .k = (int)l.weight->k,
        .panels = l.weight->panels,
        .dtype = (int)l.weight->dtype,
        .widened = view->own_scratch->widened,
        .bias = l.bias,
        .n = (int)l.weight->n,
        .activation = l.activation,
    };
}

static void multiply(const worker_view *view, const matmul_args *args, gpt2c_dtype dtype, int begin,
                     int end) {
    const gpt2c_model *m = view->model;
    if (dtype == GPT2C_INT8)
        m->integer->matmul_int8(args, begin, end);
    else if (dtype == GPT2C_INT4)
        m->integer->matmul_int4(args, begin, end);
    else
        m->kernels->matmul(args, begin, end);
}

/* Returns the arguments of the same product for rows [begin, end) only. */
static matmul_args rows_of_product(const matmul_args *args, int begin, int end) {
    matmul_args part = *args;
    size_t row = (size_t)begin;
    part.n_rows = end - begin;
    part.x += row * args->x_stride;
    part.out += row * args->out_stride;
    if (args->residual)
        part.residual += row * args->residual_stride;
    if (args->quantized.values)
        part.quantized = quantized_slice(args->quantized, begin, 0);
    if (args->quantized_out.values)
        part.quantized_out = quantized_slice(args->quantized_out, begin, 0);
    return part;
}

static void multiply_share(const worker_view *view, const matmul_args *args, gpt2c_dtype dtype) {
    rectangle share[MAX_PRODUCT_RECTANGLES];
    /* An integer kernel loads weights once for up to MATMUL_ROWS rows, so all rows count as one
     * tile. */
    int tile_rows = is_integer(dtype) ? args->n_rows : view->model->kernels->tile_rows;
    const product_shape shape = {args->n_rows, (int)n_panels_for((size_t)args->n), tile_rows};
    int n = product_share(shape, view->worker, view->n_workers, share);
    for (int i = 0; i < n; i++) {
        const matmul_args part = rows_of_product(args, share[i].begin_row, share[i].end_row);
        multiply(view, &part, dtype, share[i].begin, share[i].end);
    }
    team_barrier(view->team, view->worker);
}

void matmul(const worker_view *view, activations x, linear l, float_rows out, int n_rows,
            int is_added) {
    matmul_args args = matmul_args_for(view, x, l, n_rows);
    args.residual = is_added ? out.floats : NULL;
    args.out = out.floats;
    args.residual_stride = args.out_stride = out.stride;
    multiply_share(view, &args, l.weight->dtype);
}

activations matmul_to_activations(const worker_view *view, activations x, linear l, activations out,
                                  int n_rows) {
    matmul_args args = matmul_args_for(view, x, l, n_rows);
    args.out = out.floats.floats;
    args.out_stride = out.floats.stride;
    if (is_quantized(view))
        args.quantized_out = out.quantized = quantized_layout(out.quantized, n_rows);
    multiply_share(view, &args, l.weight->dtype);
    return out;
}

void matmul_panels(const worker_view *view, activations x, linear l, float_rows out, int n_rows,
                   int begin, int end) {
    matmul_args args = matmul_args_for(view, x, l, n_rows);
    args.out = out.floats;
    args.out_stride = out.stride;
    multiply(view, &args, l.weight->dtype, begin, end);
}
