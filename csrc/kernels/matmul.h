/* Matrix products with packed panels.
 *
 * An output is defined as: for each block of K_BLOCK steps of k one FMA chain from +0, k ascending;
 * the block sums added ascending; then the bias, the activation, the residual. Lanes run across the
 * output columns and rows of x across registers, so neither the tile's shape nor the number of rows
 * shows in any bit. */

/* Rows that share a block of a panel while it is in the cache: their totals, 48 * 64 floats, take
 * 12 KB of the stack. */
#define PASS_ROWS 48

/* totals[rows][PANEL] (+)= x[rows, block] @ panel[block, columns c .. c + TILE_VECTORS vectors] */
INLINE void multiply_tile(const int rows, const float *x, size_t x_stride, const float *w,
                          int block_length, int first_block, float *totals) {
    vf sum[TILE_ROWS][TILE_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++)
            sum[r][v] = vf_set1(0.0f);
    for (int i = 0; i < block_length; i++) {
        vf weights[TILE_VECTORS];
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++)
            weights[v] = vf_load(w + (size_t)i * PANEL + v * VF_WIDTH);
        UNROLL
        for (int r = 0; r < rows; r++) {
            vf broadcast = vf_set1(x[(size_t)r * x_stride + (size_t)i]);
            UNROLL
            for (int v = 0; v < TILE_VECTORS; v++)
                sum[r][v] = vf_fma(broadcast, weights[v], sum[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            float *total = totals + r * PANEL + v * VF_WIDTH;
            vf_store(total, first_block ? sum[r][v] : vf_add(vf_load(total), sum[r][v]));
        }
}

/* Each row count is its own unrolled copy, its sums in registers. */
INLINE void multiply_rows(int rows, const float *x, size_t x_stride, const float *w,
                          int block_length, int first_block, float *totals) {
    switch (rows) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        multiply_tile(n, x, x_stride, w, block_length, first_block, totals);                       \
        break;
        CASE(1)
        CASE(2)
#if TILE_ROWS > 2
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
#endif
#undef CASE
    }
}

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

static void matmul_kernel(const matmul_args *a, int panel_begin, int panel_end) {
    float totals[PASS_ROWS * PANEL];
    for (int panel = panel_begin; panel < panel_end; panel++) {
        const float *weights = a->panels + (size_t)panel * (size_t)a->k * PANEL;
        for (int row = 0; row < a->n_rows; row += PASS_ROWS) {
            int pass_rows = a->n_rows - row < PASS_ROWS ? a->n_rows - row : PASS_ROWS;
            for (int block = 0; block < a->k; block += K_BLOCK) {
                int length = a->k - block < K_BLOCK ? a->k - block : K_BLOCK;
                for (int r = 0; r < pass_rows; r += TILE_ROWS) {
                    int rows = pass_rows - r < TILE_ROWS ? pass_rows - r : TILE_ROWS;
                    const float *x = a->x + (size_t)(row + r) * a->x_stride + block;
                    for (int c = 0; c < PANEL; c += TILE_VECTORS * VF_WIDTH)
                        multiply_rows(rows, x, a->x_stride, weights + (size_t)block * PANEL + c,
                                      length, block == 0, totals + r * PANEL + c);
                }
            }
            finish_panel(a, row, pass_rows, panel, totals);
        }
    }
}

/* wte's row of a token is a column of a packed panel. */
static void embed_kernel(const float *column, const float *added, int k, float *out) {
    for (int i = 0; i < k; i++)
        out[i] = column[(size_t)i * PANEL] + added[i];
}
