/* Divides products and attention among the workers of a pass: see shares.h. */
#include "pass/shares.h"

#include "min.h"
#include "pool.h"

/* ---- matrix products ---- */

/* With fewer rows, panels stay whole: reading the weights takes longer than multiplying them, and
 * two workers would read the same weights. */
#define MIN_DIVIDED_ROWS 16
/* The largest share may exceed the mean by 1 / EXCESS_DIVISOR of it. While it exceeds the mean by
 * more, larger numbers of pieces per panel are tried. Such a number is taken only if it lowers the
 * largest share by more than about 1 / EXCESS_DIVISOR, because larger pieces have fuller tiles. */
#define EXCESS_DIVISOR 32
/* Every number of pieces up to this one is tried; from it on, each is twice the one before. */
#define DOUBLE_PIECES_FROM 8

static long long divide_up(long long n, long long by) { return (n + by - 1) / by; }

/* The cost of n_rows rows of a panel, as TILE_OVERHEAD defines it. */
static long long cost_of_rows(product_shape s, long long n_rows) {
    return n_rows + TILE_OVERHEAD * divide_up(n_rows, s.tile_rows);
}

/* An upper bound on the largest share's cost if each panel's rows are cut into n_pieces pieces. */
static long long largest_cost(product_shape s, int n_pieces, int n_workers) {
    long long n = divide_up((long long)s.n_panels * n_pieces, n_workers);
    if (n_pieces == 1)
        return n * cost_of_rows(s, s.n_rows);
    long long whole = n / n_pieces, rest = n % n_pieces * divide_up(s.n_rows, n_pieces);
    return whole * cost_of_rows(s, s.n_rows) + cost_of_rows(s, rest) + TILE_OVERHEAD;
}

/* How many pieces the rows of each panel are cut into. */
static int n_row_pieces(product_shape s, int n_workers) {
    int best = 1;
    long long cost = largest_cost(s, 1, n_workers), total = s.n_panels * cost_of_rows(s, s.n_rows);
    if (s.n_rows < MIN_DIVIDED_ROWS)
        return 1;
    for (int n = 2; n <= s.n_rows; n += n < DOUBLE_PIECES_FROM ? 1 : n) {
        if (cost * n_workers * EXCESS_DIVISOR <= total * (EXCESS_DIVISOR + 1))
            break;
        long long other = largest_cost(s, n, n_workers);
        if (other * (EXCESS_DIVISOR + 1) < cost * EXCESS_DIVISOR) {
            cost = other;
            best = n;
        }
    }
    return best;
}

/* The first row of a piece of a panel. */
static int row_of_piece(product_shape s, int piece, int n_pieces) {
    return (int)((long long)s.n_rows * piece / n_pieces);
}

int product_share(product_shape s, int worker, int n_workers,
                  rectangle rectangles[MAX_PRODUCT_RECTANGLES]) {
    if (s.n_rows == 0)
        return 0;
    int n_pieces = n_row_pieces(s, n_workers), begin, end, n = 0;
    team_share(s.n_panels * n_pieces, worker, n_workers, &begin, &end);
    while (begin < end) {
        int panel = begin / n_pieces, piece = begin % n_pieces, n_whole = (end - begin) / n_pieces;
        int rest = min_int32(n_pieces - piece, end - begin);
        if (piece == 0 && n_whole > 0) {
            rectangles[n++] = (rectangle){0, s.n_rows, panel, panel + n_whole};
            begin += n_whole * n_pieces;
        } else {
            rectangles[n++] =
                (rectangle){row_of_piece(s, piece, n_pieces),
                            row_of_piece(s, piece + rest, n_pieces), panel, panel + 1};
            begin += rest;
        }
    }
    return n;
}

/* ---- attention ---- */

void attention_add_row(attention_rows *rows, int position, int begins_feed) {
    if (begins_feed)
        rows->feeds[rows->n_feeds++] = (attention_feed){rows->n_rows, position};
    int64_t before = rows->n_rows ? rows->work_before[rows->n_rows] : 0;
    rows->work_before[rows->n_rows] = before;
    rows->work_before[++rows->n_rows] = before + position + 1 + ATTENTION_ROW_OVERHEAD;
    rows->feeds[rows->n_feeds].begin_row = rows->n_rows;
}

/* A feed is cut only before positions that are multiples of this, so that tiles of 8 rows are full.
 * In a long feed, that many rows may be too large a part of a share: more than 1 / EXCESS_DIVISOR.
 * Then the feed is cut before multiples of a smaller number. */
#define MAX_POSITIONS_BETWEEN_CUTS 8

static int positions_between_cuts(const attention_rows *rows, int end_row, int64_t share_work) {
    int64_t max_work = rows->work_before[end_row] - rows->work_before[end_row - 1];
    int n = MAX_POSITIONS_BETWEEN_CUTS;
    while (n > 1 && n * max_work * EXCESS_DIVISOR > share_work)
        n /= 2;
    return n;
}

/* Returns the row of a feed, or its end, where it may be cut and one head has about `work` before
 * it. */
static int row_to_cut(const attention_rows *rows, int feed, int64_t work, int64_t share_work) {
    const attention_feed *f = &rows->feeds[feed];
    const int64_t *before = rows->work_before;
    int begin = f[0].begin_row, end = f[1].begin_row, low = begin, high = end;
    while (low + 1 < high) { /* before[low] <= before[begin] + work < before[high] */
        int middle = low + (high - low) / 2;
        if (before[middle] <= before[begin] + work)
            low = middle;
        else
            high = middle;
    }
    int n = positions_between_cuts(rows, end, share_work);
    int past = (f->first_position + low - begin) % n; /* rows since the last place to cut */
    low = low - past > begin ? low - past : begin;
    high = low + n - (f->first_position + low - begin) % n;
    high = min_int32(high, end);
    int64_t excess = work - (before[low] - before[begin]);
    return 2 * excess < before[high] - before[low] ? low : high;
}

/* Returns the place in the line that has about `work` before it. */
static attention_place place_after(const attention_rows *rows, int n_head, int64_t work,
                                   int64_t share_work) {
    const int64_t *before = rows->work_before;
    int feed = 0;
    while (feed + 1 < rows->n_feeds && n_head * before[rows->feeds[feed + 1].begin_row] <= work)
        feed++;
    int begin = rows->feeds[feed].begin_row, end = rows->feeds[feed + 1].begin_row, row = begin;
    int64_t head_work = before[end] - before[begin];
    work -= n_head * before[begin];
    int head = (int)(work / head_work);
    work %= head_work;
    if (end - begin > 1)
        row = row_to_cut(rows, feed, work, share_work);
    else if (2 * work >= head_work)
        row = end;
    if (row == end) {
        head++;
        row = begin;
    }
    return head < n_head ? (attention_place){feed, head, row} : (attention_place){feed + 1, 0, end};
}

void attention_share(const attention_rows *rows, int n_head, int worker, int n_workers,
                     attention_place *begin, attention_place *end) {
    *begin = *end = (attention_place){0, 0, 0};
    if (rows->n_rows == 0)
        return;
    int64_t total = n_head * rows->work_before[rows->n_rows], mean = total / n_workers;
    *begin = place_after(rows, n_head, total * worker / n_workers, mean);
    *end = worker + 1 == n_workers
               ? (attention_place){rows->n_feeds, 0, rows->n_rows}
               : place_after(rows, n_head, total * (worker + 1) / n_workers, mean);
}

int attention_next(const attention_rows *rows, int n_head, attention_place *place,
                   attention_place end, rectangle *next) {
    attention_place from = *place;
    if (from.feed == end.feed && from.head == end.head && from.row == end.row)
        return 0;
    int begin_row = rows->feeds[from.feed].begin_row,
        end_row = rows->feeds[from.feed + 1].begin_row;
    int is_last = from.feed == end.feed, end_head = is_last ? end.head : n_head;
    if (from.row > begin_row || from.head == end_head) { /* a part of one head */
        int ends = is_last && from.head == end.head;
        *next = (rectangle){from.row, ends ? end.row : end_row, from.head, from.head + 1};
        *place = ends ? end : (attention_place){from.feed, from.head + 1, begin_row};
    } else {
        *next = (rectangle){begin_row, end_row, from.head, end_head};
        *place = (attention_place){from.feed, end_head, begin_row};
    }
    if (place->feed == from.feed && place->head == n_head)
        *place = (attention_place){from.feed + 1, 0, end_row};
    return 1;
}
