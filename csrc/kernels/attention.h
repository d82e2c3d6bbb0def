/* Causal attention of one head for consecutive rows of one sequence whose positions lie in one
 * page. Each row attends to all positions up to and including its own.
 *
 * A score is one FMA chain over the head's dimensions, ascending, then scaled. The softmax takes
 * two passes: the first finds the largest score, the second computes the weights, exp(score -
 * largest). The sum of the weights and the weighted sum of the values run over blocks of
 * POSITION_BLOCK positions, block sums added ascending; the weighted sum is divided once.
 *
 * Rows are processed in tiles, so that each key or value that is loaded serves all rows of a tile.
 * The size of a tile changes no bit, because each row has sums of its own.
 *
 * There are two kernels. attention_kernel is for a prompt: many rows share the keys and values of
 * one head, which stay in the CPU's caches. attention_heads_kernel is for decoding: one row reads
 * all of its keys and values once, so memory bandwidth is the limit. It therefore works page by
 * page, and takes all heads of a page together, because the heads are contiguous.
 *
 * Prefetching. A page's keys and values are short runs, which a hardware prefetcher notices too
 * late. The caller (pass/attention.c) therefore lists the cache lines that will be read a little
 * later: those that this row reads 32 KB later or, if the next row attends to few positions, all
 * lines of the next row. Wherever the kernel reads n cache lines it prefetches the next n lines of
 * the list, so prefetches come at the pace of the reads and stay the same distance ahead of
 * them. */

#if PAGE_POSITIONS != POSITION_BLOCK
#error "PAGE_POSITIONS must equal POSITION_BLOCK: sums run page by page"
#endif

/* The number of vectors of positions or dimensions in a tile. A tile of a single row (decoding) is
 * as wide as a page, so that it reads the page's keys in the order of memory. (The scalar set's
 * tiles are narrower.) */
#define MAX_VECTORS (VF_WIDTH == 1 ? 8 : PAGE_POSITIONS / VF_WIDTH)
#define ATTENTION_VECTORS(rows) ((rows) == 1 ? MAX_VECTORS : TILE_VECTORS)

/* Rounds to bfloat16, the upper half of a float, to nearest even. A NaN is truncated instead. It
 * stays a NaN, because a computed NaN has a bit set in the upper part of its mantissa. */
INLINE vi to_bfloat16(vf x) {
    vf rounded = vf_propagate_nan(x, vf_from_bits(vi_round_mantissa(vi_bits(x), 16)));
    return vi_shift_right_unsigned(vi_bits(rounded), 16);
}

/* Stores the keys and values of n positions. In the loop over the keys positions are innermost, so
 * that consecutive stores go to the same cache line of the page. */
INLINE void store_floats(const float *key, const float *value, size_t stride, int n, int head_dim,
                         float *keys, float *values) {
    for (int d = 0; d < head_dim; d++)
        for (int i = 0; i < n; i++)
            keys[d * PAGE_POSITIONS + i] = key[(size_t)i * stride + (size_t)d];
    for (int i = 0; i < n; i++)
        memcpy(values + i * head_dim, value + (size_t)i * stride, (size_t)head_dim * sizeof(float));
}

INLINE void store_bfloat16(const float *key, const float *value, size_t stride, int n, int head_dim,
                           uint16_t *keys, uint16_t *values) {
    uint16_t part[PAGE_POSITIONS][VF_WIDTH], part_of_value[VF_WIDTH];
    for (int d = 0; d < head_dim; d += VF_WIDTH) {
        int n_dims = head_dim - d < VF_WIDTH ? head_dim - d : VF_WIDTH;
        for (int i = 0; i < n; i++) {
            size_t at = (size_t)i * stride + (size_t)d;
            vi_store_u16(part[i], to_bfloat16(vf_load_first(key + at, n_dims)));
            vi_store_u16(part_of_value, to_bfloat16(vf_load_first(value + at, n_dims)));
            memcpy(values + i * head_dim + d, part_of_value, (size_t)n_dims * sizeof(uint16_t));
        }
        for (int j = 0; j < n_dims; j++)
            for (int i = 0; i < n; i++)
                keys[(d + j) * PAGE_POSITIONS + i] = part[i][j];
    }
}

INLINE void store_positions(const float *key, const float *value, size_t stride, int n,
                            int head_dim, int is_bfloat16, void *keys, void *values) {
    if (is_bfloat16)
        store_bfloat16(key, value, stride, n, head_dim, keys, values);
    else
        store_floats(key, value, stride, n, head_dim, keys, values);
}

static void store_kernel(const float *key, const float *value, size_t stride, int n, int head_dim,
                         int is_bfloat16, void *keys, void *values) {
    if (n == 1) /* decoding: without the loops over positions */
        store_positions(key, value, stride, 1, head_dim, is_bfloat16, keys, values);
    else
        store_positions(key, value, stride, n, head_dim, is_bfloat16, keys, values);
}

/* Points to an element of a page, a float or a bfloat16, by its index. */
typedef struct {
    const void *page;
    size_t index;
} cache_pointer;

INLINE cache_pointer cache_pointer_add(cache_pointer s, int n) {
    return (cache_pointer){s.page, s.index + (size_t)n};
}

/* Loads the first n elements of a vector from a page. If n is 0 or less, it does not touch memory:
 * a CPU waits for the cache line of a masked load even if the whole mask is off. Such waits took
 * nearly half of attention's time for short sequences that were not in the CPU's cache. */
INLINE vf load_cached(cache_pointer s, const int is_bfloat16, int n) {
    if (n <= 0)
        return vf_set1(0.0f);
    if (is_bfloat16)
        return vf_from_bits(
            vi_shift_left(vi_load_first_u16((const uint16_t *)s.page + s.index, n), 16));
    return vf_load_first((const float *)s.page + s.index, n);
}

/* Prefetches the next n cache lines of the list, if there is one. */
INLINE void prefetch_lines(prefetch_list *f, int n) {
    for (int i = 0; f && i < n && f->part < f->n_parts; i++) {
        const char *line = f->parts[f->part].next;
        prefetch(line);
        line += f->parts[f->part].step;
        f->parts[f->part].next = line;
        f->part += line >= f->parts[f->part].end;
    }
}

/* How many cache lines n elements of a page take. */
INLINE int lines_in(const int is_bfloat16, int n) {
    const int line = CACHE_LINE_FLOATS * (is_bfloat16 ? 2 : 1); /* elements in a line */
    return (n + line - 1) / line;
}

/* scores[r][i ..] = scale * q[r] . key[i ..] for n_vectors vectors of positions, of which the first
 * n positions exist. */
INLINE void score_vectors(const attention_args *a, const int is_bfloat16, const int rows,
                          const int n_vectors, const float *q, cache_pointer key, int n,
                          prefetch_list *prefetches, float *scores) {
    vf sum[TILE_ROWS][MAX_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sum[r][v] = vf_set1(0.0f);
    }
    for (int d = 0; d < a->head_dim; d++) {
        vf k[MAX_VECTORS];
        if (rows == 1)
            prefetch_lines(prefetches, lines_in(is_bfloat16, PAGE_POSITIONS));
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            k[v] = load_cached(cache_pointer_add(key, d * PAGE_POSITIONS + v * VF_WIDTH),
                               is_bfloat16, n - v * VF_WIDTH);
        UNROLL
        for (int r = 0; r < rows; r++) {
            vf broadcast = vf_set1(q[(size_t)r * a->q_stride + (size_t)d]);
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sum[r][v] = vf_fma(broadcast, k[v], sum[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            vf_store_first(scores + (size_t)r * a->scores_stride + v * VF_WIDTH,
                           vf_mul(sum[r][v], vf_set1(a->scale)), n - v * VF_WIDTH);
    }
}

/* Computes the scores of a page's first n positions. Later positions are never read. */
INLINE void compute_page_scores(const attention_args *a, const int is_bfloat16, const int rows,
                                const float *q, cache_pointer key, int n, prefetch_list *prefetches,
                                float *scores) {
    const int width = ATTENTION_VECTORS(rows) * VF_WIDTH;
    int i = 0;
    for (; i + width <= n; i += width)
        score_vectors(a, is_bfloat16, rows, ATTENTION_VECTORS(rows), q, cache_pointer_add(key, i),
                      width, i ? NULL : prefetches, scores + i);
    /* A single row also computes the rest as one wide tile. Tiles of one vector would each be one
     * FMA chain, limited by the latency of an FMA. */
    for (; rows == 1 && i < n; i += width)
        score_vectors(a, is_bfloat16, rows, ATTENTION_VECTORS(rows), q, cache_pointer_add(key, i),
                      n - i, i ? NULL : prefetches, scores + i);
    for (; i < n; i += VF_WIDTH)
        score_vectors(a, is_bfloat16, rows, 1, q, cache_pointer_add(key, i), n - i, NULL,
                      scores + i);
}

/* Replaces scores by exp(score - max) and returns their sum. If a score is NaN, the sum is NaN for
 * every max. */
static float exp_and_sum(float *scores, int n, float max) {
    float total = 0.0f;
    for (int block = 0; block < n; block += POSITION_BLOCK) {
        int end = n - block < POSITION_BLOCK ? n : block + POSITION_BLOCK;
        lanes sum = lanes_zero();
        int i = block;
        for (; i + LANES <= end; i += LANES) {
            UNROLL
            for (int v = 0; v < LANE_VECTORS; v++) {
                float *at = scores + i + v * VF_WIDTH;
                vf e = vf_exp(vf_sub(vf_load(at), vf_set1(max)));
                vf_store(at, e);
                sum.part[v] = vf_add(sum.part[v], e);
            }
        }
        for (; i < end; i += LANES)
            for (int v = 0; v < LANE_VECTORS; v++) {
                int at = i + v * VF_WIDTH;
                if (at < end) {
                    vf e = vf_exp(vf_sub(vf_load_first(scores + at, end - at), vf_set1(max)));
                    e = vf_keep_first(e, end - at);
                    vf_store_first(scores + at, e, end - at);
                    sum.part[v] = vf_add(sum.part[v], e);
                }
            }
        total = block ? total + lanes_total(&sum) : lanes_total(&sum);
    }
    return total;
}

/* sum[r] = fma(scores[r][i], value, sum[r]) for rows `first` and later of the tile. */
INLINE void add_value(const attention_args *a, const int is_bfloat16, const int rows,
                      const int first, const int n_vectors, cache_pointer value, int n,
                      const float *scores, vf sum[TILE_ROWS][MAX_VECTORS]) {
    vf loaded[MAX_VECTORS];
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        loaded[v] =
            load_cached(cache_pointer_add(value, v * VF_WIDTH), is_bfloat16, n - v * VF_WIDTH);
    UNROLL
    for (int r = first; r < rows; r++) {
        vf weight = vf_set1(scores[(size_t)r * a->scores_stride]);
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            sum[r][v] = vf_fma(weight, loaded[v], sum[r][v]);
    }
}

/* out[r][dim ..] = sum(scores[r][i] * value[i][dim ..]) / divisor[r] for n_vectors vectors of
 * dimensions, of which the first n dimensions exist. The first row attends to n_positions
 * positions, and each later row to one more. */
INLINE void sum_value_vectors(const attention_args *a, const int is_bfloat16, const int rows,
                              const int n_vectors, int dim, int n, int n_positions,
                              const float *divisor, float *out) {
    vf total[TILE_ROWS][MAX_VECTORS], sum[TILE_ROWS][MAX_VECTORS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < n_vectors; v++)
            total[r][v] = vf_set1(0.0f); /* replaced by the first block's sum */
    }
    for (int block = 0; block < n_positions; block += POSITION_BLOCK) {
        cache_pointer value = {a->pages[block / PAGE_POSITIONS], a->value_offset + (size_t)dim};
        const float *scores = a->scores + block;
        int end = n_positions - block < POSITION_BLOCK ? n_positions - block : POSITION_BLOCK;
        UNROLL
        for (int r = 0; r < rows; r++) {
            UNROLL
            for (int v = 0; v < n_vectors; v++)
                sum[r][v] = vf_set1(0.0f);
        }
        for (int i = 0; i < end; i++, value.index += (size_t)a->head_dim)
            add_value(a, is_bfloat16, rows, 0, n_vectors, value, n, scores + i, sum);
        /* Each later row continues up to its own position. */
        if (block + end == n_positions) {
            UNROLL
            for (int first = 1; first < rows; first++, value.index += (size_t)a->head_dim)
                add_value(a, is_bfloat16, rows, first, n_vectors, value, n,
                          scores + end + first - 1, sum);
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
            vf_store_first(out + (size_t)r * a->out_stride + dim + v * VF_WIDTH,
                           vf_div(total[r][v], vf_set1(divisor[r])), n - v * VF_WIDTH);
    }
}

/* Computes the scores of a tile of rows that begins at `row`, for all positions of its last row. */
INLINE void compute_tile_scores(const attention_args *a, const int is_bfloat16, const int rows,
                                int row) {
    const float *q = a->q + (size_t)row * a->q_stride;
    int n_positions = a->n_positions + row + rows - 1;
    for (int i = 0; i < n_positions; i += PAGE_POSITIONS) {
        int n = n_positions - i < PAGE_POSITIONS ? n_positions - i : PAGE_POSITIONS;
        cache_pointer key = {a->pages[i / PAGE_POSITIONS], a->key_offset};
        compute_page_scores(a, is_bfloat16, rows, q, key, n, NULL, a->scores + i);
    }
}

/* Replaces a tile's scores by unnormalised softmax weights, and computes their sums, sum[rows]. */
INLINE void compute_tile_weights(const attention_args *a, const int rows, int row, float *sum) {
    for (int r = 0; r < rows; r++) {
        float *scores = a->scores + (size_t)r * a->scores_stride;
        int n_positions = a->n_positions + row + r;
        sum[r] = exp_and_sum(scores, n_positions, row_max(scores, n_positions));
    }
}

/* Computes the weighted sums of the values for a tile of rows, divided by sum[rows]. */
INLINE void compute_tile_values(const attention_args *a, const int is_bfloat16, const int rows,
                                int row, const float *sum) {
    const int width = ATTENTION_VECTORS(rows) * VF_WIDTH;
    float *out = a->out + (size_t)row * a->out_stride;
    int dim = 0, n_positions = a->n_positions + row;
    for (; dim + width <= a->head_dim; dim += width)
        sum_value_vectors(a, is_bfloat16, rows, ATTENTION_VECTORS(rows), dim, width, n_positions,
                          sum, out);
    for (; dim < a->head_dim; dim += VF_WIDTH)
        sum_value_vectors(a, is_bfloat16, rows, 1, dim, a->head_dim - dim, n_positions, sum, out);
}

INLINE void attend_tile(const attention_args *a, const int is_bfloat16, const int rows, int row) {
    float sum[TILE_ROWS];
    compute_tile_scores(a, is_bfloat16, rows, row);
    compute_tile_weights(a, rows, row, sum);
    compute_tile_values(a, is_bfloat16, rows, row, sum);
}

INLINE void attend_in_tiles(const attention_args *a, const int is_bfloat16) {
    for (int row = 0; row < a->n_rows; row += TILE_ROWS) {
        int rows = a->n_rows - row < TILE_ROWS ? a->n_rows - row : TILE_ROWS;
        switch (rows) { /* one unrolled copy for each count */
#define CASE(n)                              \
    case n:                                  \
        attend_tile(a, is_bfloat16, n, row); \
        break;
            TILE_CASES
#undef CASE
        }
    }
}

static void attention_kernel(const attention_args *a) {
    if (a->is_bfloat16)
        attend_in_tiles(a, 1);
    else
        attend_in_tiles(a, 0);
}

/* out[dim ..] += sum(weights[i] * value[i][dim ..]) over one block of positions, for n_vectors
 * vectors of dimensions, of which the first n dimensions exist. The first block overwrites out. */
INLINE void add_block(const attention_args *a, const int is_bfloat16, const int n_vectors,
                      cache_pointer value, int n, const float *weights, int n_positions,
                      int is_first, float *out) {
    vf sum[TILE_ROWS][MAX_VECTORS];
    UNROLL
    for (int v = 0; v < n_vectors; v++)
        sum[0][v] = vf_set1(0.0f);
    for (int i = 0; i < n_positions; i++, value.index += (size_t)a->head_dim) {
        prefetch_lines(a->prefetches, lines_in(is_bfloat16, n_vectors * VF_WIDTH));
        add_value(a, is_bfloat16, 1, 0, n_vectors, value, n, weights + i, sum);
    }
    UNROLL
    for (int v = 0; v < n_vectors; v++) {
        float *total = out + v * VF_WIDTH;
        vf before = vf_load_first(total, n - v * VF_WIDTH);
        vf_store_first(total, is_first ? sum[0][v] : vf_add(before, sum[0][v]), n - v * VF_WIDTH);
    }
}

/* Adds the weighted values of one head and page to the head's output. */
INLINE void add_page(const attention_args *a, const int is_bfloat16, int head, int page) {
    const int width = MAX_VECTORS * VF_WIDTH, first = page * PAGE_POSITIONS;
    int n = a->n_positions - first < PAGE_POSITIONS ? a->n_positions - first : PAGE_POSITIONS;
    cache_pointer value = {a->pages[page],
                           a->value_offset + (size_t)(head * a->head_dim * PAGE_POSITIONS)};
    const float *weights = a->scores + (size_t)head * a->scores_stride + first;
    float *out = a->out + head * a->head_dim;
    int dim = 0;
    for (; dim + width <= a->head_dim; dim += width)
        add_block(a, is_bfloat16, MAX_VECTORS, cache_pointer_add(value, dim), width, weights, n,
                  page == 0, out + dim);
    for (; dim < a->head_dim; dim += VF_WIDTH)
        add_block(a, is_bfloat16, 1, cache_pointer_add(value, dim), a->head_dim - dim, weights, n,
                  page == 0, out + dim);
}

INLINE void attend_page_by_page(const attention_args *a, const int is_bfloat16) {
    int n_pages = (a->n_positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
    for (int page = 0, first = 0; page < n_pages; page++, first += PAGE_POSITIONS) {
        int n = a->n_positions - first < PAGE_POSITIONS ? a->n_positions - first : PAGE_POSITIONS;
        for (int h = 0; h < a->n_heads; h++) {
            cache_pointer key = {a->pages[page],
                                 a->key_offset + (size_t)(h * a->head_dim * PAGE_POSITIONS)};
            compute_page_scores(a, is_bfloat16, 1, a->q + h * a->head_dim, key, n, a->prefetches,
                                a->scores + (size_t)h * a->scores_stride + first);
        }
    }
    float sum[ATTENTION_ROWS];
    for (int h = 0; h < a->n_heads; h++) {
        float *scores = a->scores + (size_t)h * a->scores_stride;
        sum[h] = exp_and_sum(scores, a->n_positions, row_max(scores, a->n_positions));
    }
    for (int page = 0; page < n_pages; page++)
        for (int h = 0; h < a->n_heads; h++)
            add_page(a, is_bfloat16, h, page);
    for (int h = 0; h < a->n_heads; h++)
        divide_kernel(a->out + h * a->head_dim, a->head_dim, sum[h]);
}

static void attention_heads_kernel(const attention_args *a) {
    if (a->is_bfloat16)
        attend_page_by_page(a, 1);
    else
        attend_page_by_page(a, 0);
}

static void attention_scores_kernel(const attention_args *a) {
    if (a->is_bfloat16)
        compute_tile_scores(a, 1, 1, 0);
    else
        compute_tile_scores(a, 0, 1, 0);
}

static void attention_weights_kernel(const attention_args *a) {
    compute_tile_weights(a, 1, 0, a->sums);
}

static void attention_values_kernel(const attention_args *a) {
    if (a->is_bfloat16)
        compute_tile_values(a, 1, 1, 0, a->sums);
    else
        compute_tile_values(a, 0, 1, 0, a->sums);
}
