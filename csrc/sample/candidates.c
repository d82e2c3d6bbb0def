/* The candidates of a draw and their order.
 *
 * Sorting. The upper 32 bits of a key order the logits; the lower 32 bits hold the id (or another
 * payload). The keys are radix-sorted by the upper half: three passes of 11 bits, linear in n and
 * stable, so ids with equal logits keep their order.
 *
 * Selecting. To find the k largest of n logits, with k far below n, sorting all would waste time.
 * select_keys keeps the best k keys seen so far in a heap whose root is the worst of them. A logit
 * that does not beat the root costs one comparison of floats. A logit that beats the root replaces
 * it and sifts down in at most log k steps. In random order, only about k ln(n / k) logits beat the
 * root. The heap is then sorted in place. Ids are visited ascending, so of equal logits the lower
 * id is in the heap already and stays. candidates_keep_top sorts instead if k is more than n /
 * 8. */
#include "sample/candidates.h"

#include "os/os.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

candidates *candidates_create(const kernel_table *kernels, int32_t n_vocab, int32_t n_positions) {
    candidates *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    size_t n = (size_t)n_vocab, n_history = (size_t)n_positions + 1;
    c->kernels = kernels;
    c->n_vocab = n_vocab;
    c->logits = os_aligned_alloc(n * sizeof *c->logits);
    c->ids = os_aligned_alloc(n * sizeof *c->ids);
    c->weights = os_aligned_alloc(n * sizeof *c->weights);
    c->keys = os_aligned_alloc(n * sizeof *c->keys);
    c->spare_keys = os_aligned_alloc(n * sizeof *c->spare_keys);
    c->indices = os_aligned_alloc(n * sizeof *c->indices);
    c->counts = calloc(n, sizeof *c->counts);
    c->history = calloc(n_history, sizeof *c->history);
    c->lengths = calloc(n_history, sizeof *c->lengths);
    if (c->logits && c->ids && c->weights && c->keys && c->spare_keys && c->indices && c->counts &&
        c->history && c->lengths)
        return c;
    candidates_free(c);
    return NULL;
}

void candidates_free(candidates *c) {
    if (!c)
        return;
    os_aligned_free(c->logits);
    os_aligned_free(c->ids);
    os_aligned_free(c->weights);
    os_aligned_free(c->keys);
    os_aligned_free(c->spare_keys);
    os_aligned_free(c->indices);
    free(c->counts);
    free(c->history);
    free(c->lengths);
    free(c);
}

void candidates_fill(candidates *c, const float *logits) {
    memcpy(c->logits, logits, (size_t)c->n_vocab * sizeof *logits);
    for (int32_t id = 0; id < c->n_vocab; id++)
        c->ids[id] = id;
    c->n = c->n_vocab;
    c->is_sorted = c->has_indices = 0;
}

int32_t candidates_argmax(const candidates *c) { return c->kernels->arg_max(c->logits, c->n); }

double candidates_weigh(candidates *c) {
    int32_t index = candidates_argmax(c);
    if (index < 0 || isinf(c->logits[index]))
        return -1.0;
    for (int32_t i = 0; i < c->n; i++)
        c->weights[i] = c->logits[i] - c->logits[index];
    c->kernels->exp(c->weights, c->n);
    double sum = 0.0;
    for (int32_t i = 0; i < c->n; i++)
        sum += (double)c->weights[i];
    return sum;
}

/* ---- sorting ---- */

uint32_t ascending_key(float x) {
    uint32_t bits;
    x += 0.0f; /* turns -0 into +0 */
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float logit_of_ascending_key(uint32_t key) {
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A smaller key means a larger logit or, of equal logits, a lower id. */
static uint64_t key_of(float logit, int32_t id) {
    return (uint64_t)~ascending_key(logit) << 32 | (uint32_t)id;
}

#define DIGIT_BITS 11
#define RADIX (1 << DIGIT_BITS)

static void sort_by_digit(const uint64_t *from, uint64_t *to, int32_t n, int shift) {
    int32_t begin[RADIX] = {0};
    for (int32_t i = 0; i < n; i++)
        begin[from[i] >> shift & (RADIX - 1)]++;
    for (int32_t d = 0, total = 0; d < RADIX; d++) {
        int32_t count = begin[d];
        begin[d] = total;
        total += count;
    }
    for (int32_t i = 0; i < n; i++)
        to[begin[from[i] >> shift & (RADIX - 1)]++] = from[i];
}

void candidates_sort_keys(candidates *c, int32_t n) {
    for (int shift = 32; shift < 64; shift += DIGIT_BITS) {
        sort_by_digit(c->keys, c->spare_keys, n, shift);
        uint64_t *sorted = c->spare_keys;
        c->spare_keys = c->keys;
        c->keys = sorted;
    }
}

/* Makes the first n keys the candidates. */
static void set_from_keys(candidates *c, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        c->logits[i] = logit_of_ascending_key(~(uint32_t)(c->keys[i] >> 32));
        c->ids[i] = (int32_t)(uint32_t)c->keys[i];
    }
    c->n = n;
    c->is_sorted = 1;
    c->has_indices = 0;
}

void candidates_sort_by_logit(candidates *c) {
    if (c->is_sorted)
        return;
    for (int32_t i = 0; i < c->n; i++)
        c->keys[i] = key_of(c->logits[i], c->ids[i]);
    candidates_sort_keys(c, c->n);
    set_from_keys(c, c->n);
}

void candidates_sort_by_id(candidates *c) {
    if (!c->is_sorted)
        return;
    for (int32_t i = 0; i < c->n; i++)
        c->keys[i] = (uint64_t)c->ids[i] << 32 | (uint32_t)i;
    candidates_sort_keys(c, c->n);
    for (int32_t i = 0; i < c->n; i++) {
        c->weights[i] = c->logits[(uint32_t)c->keys[i]];
        c->ids[i] = (int32_t)(c->keys[i] >> 32);
    }
    memcpy(c->logits, c->weights, (size_t)c->n * sizeof *c->logits);
    c->is_sorted = c->has_indices = 0;
}

int32_t candidates_index(candidates *c, int32_t id) {
    if (c->n == c->n_vocab)
        return id;
    if (!c->has_indices) {
        for (int32_t i = 0; i < c->n_vocab; i++)
            c->indices[i] = NOT_FOUND;
        for (int32_t i = 0; i < c->n; i++)
            c->indices[c->ids[i]] = i;
        c->has_indices = 1;
    }
    return c->indices[id];
}

/* ---- the k largest ---- */

/* Moves element i down until the heap is valid again. The root is the largest key, and so the worst
 * candidate. */
static void sift_down(uint64_t *heap, int32_t n, int32_t i) {
    for (;;) {
        int32_t largest = i, left = 2 * i + 1, right = 2 * i + 2;
        if (left < n && heap[left] > heap[largest])
            largest = left;
        if (right < n && heap[right] > heap[largest])
            largest = right;
        if (largest == i)
            return;
        uint64_t moved = heap[i];
        heap[i] = heap[largest];
        heap[largest] = moved;
        i = largest;
    }
}

/* Sets `keys` to the k smallest keys of n logits, ascending. ids must ascend; NULL means 0, 1,
 * ... */
static void select_keys(uint64_t *keys, const float *logits, const int32_t *ids, int32_t n,
                        int32_t k) {
    for (int32_t i = 0; i < k; i++)
        keys[i] = key_of(logits[i], ids ? ids[i] : i);
    for (int32_t i = k / 2; i-- > 0;)
        sift_down(keys, k, i);
    float min = logit_of_ascending_key(~(uint32_t)(keys[0] >> 32));
    for (int32_t i = k; i < n; i++)
        if (logits[i] > min) { /* a logit equal to min has a higher id, and loses */
            keys[0] = key_of(logits[i], ids ? ids[i] : i);
            sift_down(keys, k, 0);
            min = logit_of_ascending_key(~(uint32_t)(keys[0] >> 32));
        }
    for (int32_t i = k - 1; i > 0; i--) {
        uint64_t largest = keys[0];
        keys[0] = keys[i];
        keys[i] = largest;
        sift_down(keys, i, 0);
    }
}

void candidates_keep_top(candidates *c, int32_t k) {
    if (k >= c->n || c->is_sorted || k > c->n / 8) {
        candidates_sort_by_logit(c);
        c->n = k < c->n ? k : c->n;
        c->has_indices = 0;
        return;
    }
    select_keys(c->keys, c->logits, c->ids, c->n, k);
    set_from_keys(c, k);
}

void top_ids(const float *logits, int32_t n, int32_t k, int32_t *ids) {
    uint64_t keys[GPT2C_MAX_TOP];
    int32_t n_found = k < n ? k : n;
    if (n_found)
        select_keys(keys, logits, NULL, n, n_found);
    for (int32_t i = 0; i < k; i++)
        ids[i] = i < n_found ? (int32_t)(uint32_t)keys[i] : NOT_FOUND;
}

void candidates_keep_best_or_at_least(candidates *c, double min_weight) {
    c->weights[candidates_argmax(c)] = INFINITY;
    candidates_keep_at_least(c, min_weight);
}

void candidates_keep_at_least(candidates *c, double min_weight) {
    int32_t n = 0;
    for (int32_t i = 0; i < c->n; i++)
        if ((double)c->weights[i] >= min_weight) {
            c->logits[n] = c->logits[i];
            c->ids[n++] = c->ids[i];
        }
    c->n = n;
    c->has_indices = 0;
}
