/* Matrix products with packed panels.
 *
 * An output is defined as: for each block of K_BLOCK steps of k one FMA chain from +0, k ascending;
 * the block sums added ascending; then the bias, the activation, the residual. Lanes run across the
 * output columns and rows of x across registers, so neither the tile's shape nor the number of rows
 * shows in any bit. */

/* Vectors of columns in a tile: a single row needs as many chains as hide an FMA's latency. */
#define VECTORS_OF(rows) ((rows) == 1 ? ROW_VECTORS : TILE_VECTORS)

/* What a tile fetches meanwhile: so many cache lines, 0 to 2, at each step of k that is a multiple of
 * 2^shift. */
typedef struct {
    const float *from;
    int lines, shift;
} tile_prefetch;

INLINE void prefetch_at(tile_prefetch f, int i) {
    if (f.lines == 0 || i & ((1 << f.shift) - 1))
        return;
    const float *line = f.from + (size_t)((i >> f.shift) * f.lines) * CACHE_LINE;
    prefetch(line);
    if (f.lines > 1)
        prefetch(line + CACHE_LINE);
}

/* totals[rows][PANEL] = x[rows, k] @ panel[k, columns c .. c + VECTORS_OF(rows) vectors] */
INLINE void multiply_tile(const int rows, const matmul_args *a, const float *x, const float *panel,
                          tile_prefetch ahead, float *totals) {
    const int n_vectors = VECTORS_OF(rows);
    vf total[TILE_ROWS][ROW_VECTORS], sum[TILE_ROWS][ROW_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            total[r][v] = vf_set1(0.0f); /* replaced by the first block's sum */
    }
    for (int block = 0; block < a->k; block += K_BLOCK) {
        int end = a->k - block < K_BLOCK ? a->k : block + K_BLOCK;
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sum[r][v] = vf_set1(0.0f);
        }
        for (int i = block; i < end; i++) {
            vf weights[ROW_VECTORS];
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                weights[v] = vf_load(panel + (size_t)i * PANEL + v * VF_WIDTH);
            if (rows > 1)
                prefetch_at(ahead, i);
            UNROLL
            for (int r = 0; r < rows; r++) {
                vf broadcast = vf_set1(x[(size_t)r * a->x_stride + (size_t)i]);
                UNROLL
                for (int v = 0; v < n_vectors; v++)
                    sum[r][v] = vf_fma(broadcast, weights[v], sum[r][v]);
            }
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                total[r][v] = block ? vf_add(total[r][v], sum[r][v]) : sum[r][v];
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            vf_store(totals + r * PANEL + v * VF_WIDTH, total[r][v]);
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
INLINE void multiply_rows(int rows, const matmul_args *a, const float *x, const float *panel,
                          tile_prefetch ahead, float *totals) {
    switch (rows) {
#define CASE(n)                                       \
    case n:                                           \
        multiply_tile(n, a, x, panel, ahead, totals); \
        break;
        TILE_CASES
#undef CASE
    }
}

/* While it multiplies many rows a processor looks too few steps ahead to keep the memory busy: a lone
 * tile fetches what it will need a block later, several share the next panel out among them. (With few
 * rows it looks ahead by itself, and to fetch more was seen to cost decoding a sixth.) Past the last
 * panel's end nothing is read, so that nothing need be there. */
#define PREFETCH_MIN_ROWS 5

INLINE tile_prefetch prefetch_of_tile(const matmul_args *a, const float *panel, int n_tiles,
                                      int tile) {
    if (a->n_rows < PREFETCH_MIN_ROWS)
        return (tile_prefetch){panel, 0, 0};
    if (n_tiles == 1)
        return (tile_prefetch){panel + K_BLOCK * PANEL, PANEL / CACHE_LINE, 0};
    int shift = 0, n_shares = PANEL / CACHE_LINE; /* at a line a step */
    while (2 * n_shares <= n_tiles) {
        n_shares *= 2;
        shift++;
    }
    size_t share = (size_t)((a->k >> shift) + 1) * CACHE_LINE;
    return (tile_prefetch){panel + (size_t)a->k * PANEL + (size_t)tile * share, tile < n_shares,
                           shift};
}

/* totals[n_rows, PANEL] = x[n_rows, k] @ panel, in tiles of nearly equal rows. */
static void multiply_panel(const matmul_args *a, const float *x, int n_rows, const float *panel,
                           float *totals) {
    int n_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int tile = 0, row = 0; tile < n_tiles; tile++) {
        int rows = (n_rows - row + n_tiles - tile - 1) / (n_tiles - tile);
        tile_prefetch ahead = prefetch_of_tile(a, panel, n_tiles, tile);
        for (int c = 0; c < PANEL; c += VECTORS_OF(rows) * VF_WIDTH)
            multiply_rows(rows, a, x + (size_t)row * a->x_stride, panel + c, ahead,
                          totals + row * PANEL + c);
        row += rows;
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
            const float *panels = a->panels;
            multiply_panel(a, x, n_rows, panels + (size_t)panel * (size_t)a->k * PANEL, totals);
            finish_panel(a, row, n_rows, panel, totals);
        }
    }
}
