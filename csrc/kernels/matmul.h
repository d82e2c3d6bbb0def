/* Float matrix products with packed panels.
 *
 * An output is defined as follows: one FMA chain from +0 over each block of K_BLOCK steps of k,
 * ascending; then the block sums are added ascending, and then the bias, the activation and the
 * residual are applied. A vector's lanes are output columns, and rows of x have registers of their
 * own, so neither the shape of a tile nor the number of rows changes any bit.
 *
 * Tiles. A tile is `rows` rows of x by VECTORS_OF(rows) vectors of a panel's columns. Each step of
 * k loads these vectors of weights once, broadcasts one element of each row, and does one FMA for
 * each pair. The tile's sums stay in registers through a block of k, so a vector header chooses
 * TILE_ROWS and TILE_VECTORS such that the sums, the weights and a broadcast fit the register file:
 * more rows mean fewer loads of weights per FMA, but too many rows spill sums. The sums of finished
 * blocks (`total`) are touched once per block and may spill. */

/* Vectors of columns in a tile. A tile of one row needs several independent chains to hide the
 * latency of an FMA. */
#define VECTORS_OF(rows) ((rows) == 1 ? ROW_VECTORS : TILE_VECTORS)

/* What a tile prefetches: `lines` cache lines, 0 to 2, at each step of k that is a multiple of
 * 2^shift. */
typedef struct {
    const char *from;
    int lines, shift;
} tile_prefetch;

INLINE void prefetch_at(tile_prefetch f, int i) {
    if (f.lines == 0 || i & ((1 << f.shift) - 1))
        return;
    const char *line = f.from + (size_t)((i >> f.shift) * f.lines) * CACHE_LINE_BYTES;
    prefetch(line);
    if (f.lines > 1)
        prefetch(line + CACHE_LINE_BYTES);
}

/* totals[r][..] = x[r, k] @ panel[k, ..] for `rows` rows and VECTORS_OF(rows) vectors of columns,
 * from `column` on. If is_kept is set, stores the widened weights in a->widened. */
INLINE void multiply_tile(const int rows, const int dtype, const int is_kept, const matmul_args *a,
                          const float *x, const void *panel, int column, tile_prefetch ahead,
                          float *totals) {
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
            for (int v = 0; v < n_vectors; v++) {
                size_t at = (size_t)i * PANEL + (size_t)(column + v * VF_WIDTH);
                weights[v] = load_weights(dtype, panel, at);
                if (is_kept)
                    vf_store(a->widened + at, weights[v]);
            }
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
            vf_store(totals + r * PANEL + column + v * VF_WIDTH, total[r][v]);
    }
}

/* The row counts of a tile; CASE(n) is the code for n rows. */
#if TILE_ROWS == 2
#define TILE_CASES CASE(1) CASE(2)
#elif TILE_ROWS == 6
#define TILE_CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#elif TILE_ROWS == 8
#define TILE_CASES CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#else
#error "add TILE_CASES for this TILE_ROWS"
#endif

/* Each row count has an unrolled copy of multiply_tile, which keeps the sums in registers. */
INLINE void multiply_rows(int rows, const int dtype, const int is_kept, const matmul_args *a,
                          const float *x, const void *panel, int column, tile_prefetch ahead,
                          float *totals) {
    switch (rows) {
#define CASE(n)                                                               \
    case n:                                                                   \
        multiply_tile(n, dtype, is_kept, a, x, panel, column, ahead, totals); \
        break;
        TILE_CASES
#undef CASE
    }
}

typedef void tile_function(int rows, const matmul_args *a, const float *x, const void *panel,
                           int column, tile_prefetch ahead, float *totals);

#define TILE_FUNCTION(name, dtype, is_kept)                                             \
    static void name(int rows, const matmul_args *a, const float *x, const void *panel, \
                     int column, tile_prefetch ahead, float *totals) {                  \
        multiply_rows(rows, dtype, is_kept, a, x, panel, column, ahead, totals);        \
    }

TILE_FUNCTION(tile_float32, GPT2C_FLOAT32, 0)
TILE_FUNCTION(tile_float16, GPT2C_FLOAT16, 0)
TILE_FUNCTION(tile_float16_kept, GPT2C_FLOAT16, 1)
TILE_FUNCTION(tile_bfloat16, GPT2C_BFLOAT16, 0)
TILE_FUNCTION(tile_bfloat16_kept, GPT2C_BFLOAT16, 1)

/* With many rows, out-of-order execution does not reach enough steps of k ahead to keep the memory
 * busy, so tiles prefetch. A single tile prefetches the weights of the next block of k; several
 * tiles share the prefetch of the next panel. With few rows out-of-order execution reaches far
 * enough, and prefetching made decoding a sixth slower. A prefetch beyond the last panel is
 * harmless, because it cannot fault. */
#define PREFETCH_MIN_ROWS 5

/* step_bytes is the size of one step of k in the stored panel. */
INLINE tile_prefetch prefetch_of_tile(const matmul_args *a, const char *panel, int step_bytes,
                                      int n_tiles, int tile) {
    const int lines = step_bytes / CACHE_LINE_BYTES;
    if (a->n_rows < PREFETCH_MIN_ROWS)
        return (tile_prefetch){panel, 0, 0};
    if (n_tiles == 1)
        return (tile_prefetch){panel + K_BLOCK * step_bytes, lines, 0};
    int shift = 0, n_shares = lines; /* one line per step */
    while (2 * n_shares <= n_tiles) {
        n_shares *= 2;
        shift++;
    }
    size_t share = (size_t)((a->k >> shift) + 1) * CACHE_LINE_BYTES;
    return (tile_prefetch){panel + (size_t)a->k * (size_t)step_bytes + (size_t)tile * share,
                           tile < n_shares, shift};
}

/* Returns the function that computes a tile. If the tile reads widened weights, sets *panel to
 * them.
 *
 * Widening 16-bit weights in registers makes a tile of 8 rows a tenth slower. If a panel has
 * several tiles, only the first one widens them, and stores them for the others. */
static tile_function *function_of_tile(const matmul_args *a, int n_tiles, int tile,
                                       const void **panel) {
    const int is_kept = n_tiles > 1;
    if (a->dtype == GPT2C_FLOAT32)
        return tile_float32;
    if (tile > 0) {
        *panel = a->widened;
        return tile_float32;
    }
    if (a->dtype == GPT2C_FLOAT16)
        return is_kept ? tile_float16_kept : tile_float16;
    return is_kept ? tile_bfloat16_kept : tile_bfloat16;
}

/* totals[n_rows, PANEL] = x[n_rows, k] @ panel, in tiles of nearly equal numbers of rows.
 * The panel has step_bytes for each step of k. */
static void multiply_panel(const matmul_args *a, const float *x, int n_rows, const char *panel,
                           int step_bytes, float *totals) {
    int n_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int tile = 0, row = 0; tile < n_tiles; tile++) {
        int rows = (n_rows - row + n_tiles - tile - 1) / (n_tiles - tile);
        const void *weights = panel;
        tile_function *multiply = function_of_tile(a, n_tiles, tile, &weights);
        tile_prefetch ahead = prefetch_of_tile(a, panel, step_bytes, n_tiles, tile);
        for (int c = 0; c < PANEL; c += VECTORS_OF(rows) * VF_WIDTH)
            multiply(rows, a, x + (size_t)row * a->x_stride, weights, c, ahead,
                     totals + row * PANEL);
        row += rows;
    }
}

/* Multiplies MATMUL_ROWS rows by all panels, then the next MATMUL_ROWS rows: these rows of x stay
 * in the L2 cache, and the panels are read in the order of memory. */
static void matmul_kernel(const matmul_args *a, int panel_begin, int panel_end) {
    float totals[MATMUL_ROWS * PANEL];
    const int step_bytes = PANEL * (a->dtype == GPT2C_FLOAT32 ? 4 : 2);
    for (int row = 0; row < a->n_rows; row += MATMUL_ROWS) {
        const float *x = a->x + (size_t)row * a->x_stride;
        int n_rows = a->n_rows - row < MATMUL_ROWS ? a->n_rows - row : MATMUL_ROWS;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            const char *panels = a->panels;
            multiply_panel(a, x, n_rows, panels + (size_t)panel * (size_t)a->k * (size_t)step_bytes,
                           step_bytes, totals);
            finish_panel(a, row, n_rows, panel, totals);
        }
    }
}
