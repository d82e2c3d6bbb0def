/* Matrix products of rows and weights. Each worker computes its share of the weights' panels. */
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

static void multiply_share(const worker_view *view, const matmul_args *args, gpt2c_dtype dtype) {
    int begin, end;
    team_share((int)n_panels_for((size_t)args->n), view->worker, view->n_workers, &begin, &end);
    multiply(view, args, dtype, begin, end);
    team_barrier(view->team);
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
