/* Measures the machine's limits for benchmarks (the roofline model): how fast the threads of a
 * model can read its weights, and how many floating-point operations per second they can do. */
#include "fpenv.h"
#include "model/model.h"
#include "model/tensors.h"
#include "os/os.h"
#include "pool.h"

/* The steps that the multiply-add kernel runs, which take about 2 milliseconds. */
#define MULTIPLY_ADD_STEPS 500000

typedef struct {
    const gpt2c_model *model;
    /* Each worker stores its result, so that the compiler cannot remove the work. */
    float results[GPT2C_MAX_THREADS];
    double operations[GPT2C_MAX_THREADS];
} measurement;

/* The stream kernel reads a multiple of this. */
#define STREAM_BYTES (128 * sizeof(float))

/* How often a matrix has that many bytes; 0 for a vector. Matrices are read one by one, because the
 * arena has holes where a matrix did not fit in 16 bits. */
static size_t stream_units(tensor_view tensor) {
    return tensor.matrix && tensor.n_rows ? pack_bytes(tensor.matrix) / STREAM_BYTES : 0;
}

/* Each worker reads its share of the matrices, as a forward pass of one row does. */
static void stream(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    measurement *m = context;
    const size_t unit = STREAM_BYTES / sizeof(float);
    for (int32_t i = 0; i < tensor_count(m->model); i++) {
        tensor_view tensor = tensor_at(m->model, i);
        size_t n_units = stream_units(tensor);
        size_t begin = n_units * (size_t)worker / (size_t)n_workers * unit;
        size_t end = n_units * ((size_t)worker + 1) / (size_t)n_workers * unit;
        if (begin < end)
            m->results[worker] += m->model->kernels->stream(
                (const float *)tensor.matrix->panels + begin, end - begin);
    }
}

static void multiply_add(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    (void)n_workers;
    measurement *m = context;
    m->operations[worker] =
        m->model->kernels->multiply_add(MULTIPLY_ADD_STEPS, 0.5f, &m->results[worker]);
}

static double seconds_to_run(team_function function, measurement *m) {
    fp_state caller = fp_enter();
    double begin = os_seconds();
    pool_run(function, m, m->model->n_threads);
    double seconds = os_seconds() - begin;
    fp_leave(caller);
    return seconds > 0 ? seconds : 1e-9;
}

double gpt2c_measure_stream(const gpt2c_model *model) {
    measurement m = {.model = model};
    size_t n_units = 0;
    for (int32_t i = 0; i < tensor_count(model); i++)
        n_units += stream_units(tensor_at(model, i));
    return (double)(n_units * STREAM_BYTES) / seconds_to_run(stream, &m);
}

double gpt2c_measure_multiply_add(const gpt2c_model *model) {
    measurement m = {.model = model};
    double seconds = seconds_to_run(multiply_add, &m), operations = 0;
    for (int w = 0; w < GPT2C_MAX_THREADS; w++)
        operations += m.operations[w];
    return operations / seconds;
}
