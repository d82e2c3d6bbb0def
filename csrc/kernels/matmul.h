/* Matrix products with packed panels.
 *
 * An output is defined as: for each block of K_BLOCK steps of k one FMA chain from +0, k ascending;
 * the block sums added ascending; then the bias, the activation, the residual. Lanes run across the
 * output columns and rows of x across registers, so neither the tile's shape nor the number of rows
 * shows in any bit. */

/* Rows that share a block of a panel while it is in the cache: their part of x, their totals and the
 * block, 48 * 64, 48 * 32 and 64 * 32 floats, take 26 of 32 KB of the first level. */
#define PASS_ROWS 48

/* Vectors of columns in a tile: a single row needs as many chains as hide an FMA's latency. */
#define VECTORS_OF(rows) ((rows) == 1 ? ROW_VECTORS : TILE_VECTORS)

/* What a tile fetches meanwhile: so many cache lines at each step of k, 0 to 2. */
typedef struct {
    const float *from;
    int lines;
} fetch;

/* totals[rows][PANEL] (+)= x[rows, block] @ panel[block, columns c .. c + VECTORS_OF(rows) vectors] */
INLINE void multiply_tile(const int rows, const float *x, size_t x_stride, const float *w,
                          int block_length, int first_block, float *totals, fetch ahead) {
    const int n_vectors = VECTORS_OF(rows);
    vf sum[TILE_ROWS][ROW_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sum[r][v] = vf_set1(0.0f);
    for (int i = 0; i < block_length; i++) {
        vf weights[ROW_VECTORS];
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            weights[v] = vf_load(w + (size_t)i * PANEL + v * VF_WIDTH);
        if (rows > 1 && ahead.lines > 0)
            prefetch(ahead.from + (size_t)(i * ahead.lines) * CACHE_LINE);
        if (rows > 1 && ahead.lines > 1)
            prefetch(ahead.from + (size_t)(i * ahead.lines + 1) * CACHE_LINE);
        UNROLL
        for (int r = 0; r < rows; r++) {
            vf broadcast = vf_set1(x[(size_t)r * x_stride + (size_t)i]);
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sum[r][v] = vf_fma(broadcast, weights[v], sum[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < n_vectors; v++) {
            float *total = totals + r * PANEL + v * VF_WIDTH;
            vf_store(total, first_block ? sum[r][v] : vf_add(vf_load(total), sum[r][v]));
        }
}

/* The row counts of a tile; CASE is what to do for one. */
#if TILE_ROWS == 2
#define TILE_CASES CASE(1) CASE(2)
#elif TILE_ROWS == 6
#define TILE_CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#elif TILE_ROWS == 8
#define TILE_CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#endif

/* Each row count is its own unrolled copy, its sums in registers. */
INLINE void multiply_rows(int rows, const float *x, size_t x_stride, const float *w,
                          int block_length, int first_block, float *totals, fetch ahead) {
    switch (rows) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        multiply_tile(n, x, x_stride, w, block_length, first_block, totals, ahead);                \
        break;
        TILE_CASES
#undef CASE
    }
}

/* While it multiplies many rows a processor looks too few steps ahead to keep the memory busy: a lone
 * tile fetches the next block, of two tiles each a half. (With few rows it looks ahead by itself, and
 * to fetch more was seen to cost decoding a sixth.) Past the last panel's end nothing is read, so that
 * there is no next block does not matter. */
#define FETCHING_ROWS 5

INLINE fetch next_block(const float *block, int n_rows, int n_tiles, int tile) {
    if (n_rows < FETCHING_ROWS)
        return (fetch){block, 0};
    if (n_tiles == 1)
        return (fetch){block, PANEL / CACHE_LINE};
    return (fetch){block + tile % 2 * K_BLOCK * PANEL / 2, PANEL / CACHE_LINE / 2};
}

/* totals[n_rows, PANEL] (+)= x[n_rows, block] @ a block of a panel, in tiles of nearly equal rows. */
static void multiply_block(const matmul_args *a, const float *x, int n_rows, const float *block,
                           int length, int first_block, float *totals) {
    int n_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int tile = 0, row = 0; tile < n_tiles; tile++) {
        int rows = (n_rows - row + n_tiles - tile - 1) / (n_tiles - tile);
        for (int c = 0; c < PANEL; c += VECTORS_OF(rows) * VF_WIDTH)
            multiply_rows(rows, x + (size_t)row * a->x_stride, a->x_stride, block + c, length,
                          first_block, totals + row * PANEL + c,
                          next_block(block + K_BLOCK * PANEL, n_rows, n_tiles, tile));
        row += rows;
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

/* All panels for some rows, then for the next rows: these rows' x stays in the second-level cache, and
 * the panels run through in their order, which the memory likes. */
static void matmul_kernel(const matmul_args *a, int panel_begin, int panel_end) {
    float totals[PASS_ROWS * PANEL];
    for (int row = 0; row < a->n_rows; row += PASS_ROWS) {
        const float *x = a->x + (size_t)row * a->x_stride;
        int n_rows = a->n_rows - row < PASS_ROWS ? a->n_rows - row : PASS_ROWS;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            const float *weights = a->panels + (size_t)panel * (size_t)a->k * PANEL;
            for (int block = 0; block < a->k; block += K_BLOCK)
                multiply_block(a, x + block, n_rows, weights + (size_t)block * PANEL,
                               a->k - block < K_BLOCK ? a->k - block : K_BLOCK, block == 0, totals);
            finish_panel(a, row, n_rows, panel, totals);
        }
    }
}

/* wte's row of a token is a column of a packed panel. */
static void embed_kernel(const float *column, const float *added, int k, float *out) {
    for (int i = 0; i < k; i++)
        out[i] = column[(size_t)i * PANEL] + added[i];
}
