/* What follows a panel's sums, whatever they were computed with. */

/* Rows that meet a panel before the next rows do. 48 were seen to be slower by some 5 % in prompts, and
 * 256 no faster. */
#define PASS_ROWS 128

/* Bias, activation and residual, and the store of a panel's n_columns real columns. */
static void finish_panel(const matmul_args *a, int row, int n_rows, int panel, const float *totals) {
    int column = panel * PANEL;
    int n_columns = a->n - column < PANEL ? a->n - column : PANEL;
    for (int r = 0; r < n_rows; r++) {
        float *out = a->out + (size_t)(row + r) * a->out_stride + column;
        const float *residual =
            a->residual ? a->residual + (size_t)(row + r) * a->residual_stride + column : NULL;
        for (int c = 0; c < n_columns; c += VF_WIDTH) {
            vf value = vf_load(totals + r * PANEL + c);
            if (a->bias)
                value = vf_add(value, vf_load(a->bias + column + c));
            value = activated(value, a->activation);
            if (residual)
                value = vf_add(value, vf_load_first(residual + c, n_columns - c));
            vf_store_first(out + c, value, n_columns - c);
        }
    }
}
