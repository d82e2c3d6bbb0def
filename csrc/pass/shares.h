/* Shares: how the workers of a pass divide a matrix product, and the attention of a layer.
 *
 * The outputs form a line, which is cut into n_workers shares of nearly equal cost. The order of
 * the line is such that a share consists of few rectangles. No bit depends on where the line is
 * cut: one worker computes each output, in the order that docs/arithmetic.md defines. */
#ifndef GPT2C_SHARES_H
#define GPT2C_SHARES_H

#include <stdint.h>

/* Rows [begin_row, end_row) of panels [begin, end) in a product, or of heads in attention. */
typedef struct {
    int begin_row, end_row;
    int begin, end;
} rectangle;

/* ---- matrix products ---- */

/* A tile of r rows of a panel costs r + TILE_OVERHEAD, where 1 is the cost of a row's FMAs: loading
 * the weights, once per tile, costs about as much as the FMAs of TILE_OVERHEAD rows. On a Zen 4
 * core, AVX-512 tiles of 1 to 8 rows took 0.87 to 1.23 times as long as this predicts. */
#define TILE_OVERHEAD 1

/* A product of n_rows rows and n_panels panels. The kernel's tiles have up to tile_rows rows. */
typedef struct {
    int n_rows, n_panels, tile_rows;
} product_shape;

/* The last rows of a panel, whole panels, and the first rows of a panel. */
#define MAX_PRODUCT_RECTANGLES 3

/* Writes a worker's share of a product, and returns the number of its rectangles. The line runs
 * panel by panel, and row by row in each panel. */
int product_share(product_shape shape, int worker, int n_workers,
                  rectangle rectangles[MAX_PRODUCT_RECTANGLES]);

/* ---- attention ---- */

/* The part of a row's cost that does not grow with its position, as a number of positions. */
#define ATTENTION_ROW_OVERHEAD 8

/* Consecutive rows of one sequence. */
typedef struct {
    int begin_row;
    int first_position;
} attention_feed;

/* The rows of a pass as attention sees them. The line runs feed by feed, head by head in each feed,
 * and row by row for each head. The work of a row is the number of positions that it attends to,
 * its own included, plus ATTENTION_ROW_OVERHEAD. */
typedef struct {
    int n_rows, n_feeds;
    attention_feed *feeds; /* [n_feeds + 1]; the last one begins at n_rows */
    int64_t *work_before;  /* [n_rows + 1]: the work of one head in all earlier rows */
} attention_rows;

/* Appends a row, for which the arrays must have room. */
void attention_add_row(attention_rows *rows, int position, int begins_feed);

/* A place in the line: just before this row of this head and feed. */
typedef struct {
    int feed, head, row;
} attention_place;

/* Sets *begin and *end to the places where a worker's share begins and ends. */
void attention_share(const attention_rows *rows, int n_head, int worker, int n_workers,
                     attention_place *begin, attention_place *end);

/* Writes the next rectangle of a share and moves *place past it. Returns 0 at the share's end. */
int attention_next(const attention_rows *rows, int n_head, attention_place *place,
                   attention_place end, rectangle *next);

#endif
