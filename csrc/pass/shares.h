/* Shares: how the workers of a pass divide a matrix product, and the attention of a layer.
 *
 * A share is part of a line of work that is cut into n_workers pieces of nearly equal work. The
 * lines are chosen such that a share has few rectangles. No output depends on where a line is cut,
 * since each is computed by one worker alone, in the order that docs/arithmetic.md defines. */
#ifndef GPT2C_SHARES_H
#define GPT2C_SHARES_H

#include <stdint.h>

/* Rows [begin_row, end_row) by columns [begin, end): panels of a product, or heads. */
typedef struct {
    int begin_row, end_row;
    int begin, end;
} rectangle;

/* ---- matrix products ---- */

/* A tile of r rows of a panel costs about as much as r + TILE_OVERHEAD rows in full tiles: the
 * weights are loaded once for each tile. On a Zen 4 core, AVX-512 tiles of 1 to 8 rows took 0.87 to
 * 1.23 times as long as this. */
#define TILE_OVERHEAD 1

/* A product of n_rows rows and n_panels panels, by kernels with tiles of up to tile_rows rows. */
typedef struct {
    int n_rows, n_panels, tile_rows;
} product_shape;

/* The rectangles of a share: the end of a panel, whole panels, and the beginning of a panel. */
#define MAX_PRODUCT_RECTANGLES 3

/* Writes a worker's share of a product, and returns the number of its rectangles. The line of work
 * goes panel by panel, and through the rows of each panel. */
int product_share(product_shape shape, int worker, int n_workers,
                  rectangle rectangles[MAX_PRODUCT_RECTANGLES]);

/* ---- attention ---- */

/* The work of a row that does not grow with its position, in attended positions. */
#define ATTENTION_ROW_OVERHEAD 8

/* Consecutive rows of one sequence. */
typedef struct {
    int begin_row;
    int first_position;
} attention_feed;

/* The rows of a pass as attention sees them. The line of work goes feed by feed. A feed of one row
 * is divided by heads. In a longer feed it goes head by head, and through the rows of each head. */
typedef struct {
    int n_rows, n_feeds;
    attention_feed *feeds; /* [n_feeds + 1]; the last one begins at n_rows */
    int64_t *work_before;  /* [n_rows + 1]: of one head, in all rows before this one */
} attention_rows;

/* Appends a row. Room for it must have been allocated. */
void attention_add_row(attention_rows *rows, int position, int begins_feed);

/* A place in the line of work. In a feed of one row, `row` is that row. */
typedef struct {
    int feed, head, row;
} attention_place;

/* The share of a worker is from *begin to *end. */
void attention_share(const attention_rows *rows, int n_head, int worker, int n_workers,
                     attention_place *begin, attention_place *end);

/* Writes the next rectangle of a share and moves *place behind it. Returns 0 at the share's end. */
int attention_next(const attention_rows *rows, int n_head, attention_place *place,
                   attention_place end, rectangle *next);

#endif
