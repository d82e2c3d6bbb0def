/* The end of a matrix product, float or quantised: adds the bias, applies the activation, adds the
 * residual and stores a panel's columns. */

/* A matmul multiplies MATMUL_ROWS rows by all panels, then the next MATMUL_ROWS rows. With 48 rows
 * prompts were about 5 % slower; with 256 they were no faster. */
#define MATMUL_ROWS 128

/* Returns a vector of a row's outputs, at column c of the panel that begins at `column`, with bias
 * and activation applied. */
INLINE vf finish_vector(const matmul_args *a, const float *totals, int column, int c) {
    vf value = vf_load(totals + c);
    if (a->bias)
        value = vf_add(value, vf_load(a->bias + column + c));
    return activate(value, a->activation);
}

#if PANEL != GROUP
#error "PANEL must equal GROUP: a panel's columns are one group of k of the next product"
#endif

/* Stores a panel's columns quantised: they are one group of k in the next product.
 *
 * All rows get bias and activation before any row is quantised. Both steps of a row wait for the
 * latency of long chains of operations. In a loop of its own each step is short enough for the CPU
 * to overlap several rows. */
INLINE void finish_quantized(const matmul_args *a, int row, int n_rows, int panel, float *totals) {
    int n_columns = a->n - panel * PANEL;
    for (int r = 0; r < n_rows; r++) {
        for (int c = 0; c < PANEL; c += VF_WIDTH)
            vf_store(totals + r * PANEL + c,
                     finish_vector(a, totals + r * PANEL, panel * PANEL, c));
    }
    for (int r = 0; r < n_rows; r++) {
        vf part[PANEL / VF_WIDTH];
        UNROLL
        for (int v = 0; v < PANEL / VF_WIDTH; v++) {
            part[v] = vf_load(totals + r * PANEL + v * VF_WIDTH);
            if (n_columns < PANEL)
                part[v] = vf_keep_first(part[v], n_columns - v * VF_WIDTH);
        }
        quantize_group(part, &a->quantized_out, panel, row + r);
    }
}

/* Applies bias, activation and residual to a panel's totals and stores the columns below n. */
static void finish_panel(const matmul_args *a, int row, int n_rows, int panel, float *totals) {
    if (a->quantized_out.values) {
        finish_quantized(a, row, n_rows, panel, totals);
        return;
    }
    int column = panel * PANEL;
    int n_columns = a->n - column < PANEL ? a->n - column : PANEL;
    for (int r = 0; r < n_rows; r++) {
        float *out = a->out + (size_t)(row + r) * a->out_stride + column;
        const float *residual =
            a->residual ? a->residual + (size_t)(row + r) * a->residual_stride + column : NULL;
        for (int c = 0; c < n_columns; c += VF_WIDTH) {
            vf value = finish_vector(a, totals + r * PANEL, column, c);
            if (residual)
                value = vf_add(value, vf_load_first(residual + c, n_columns - c));
            vf_store_first(out + c, value, n_columns - c);
        }
    }
}
