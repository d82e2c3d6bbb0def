/* The head by bounds: most of its logits are not needed where only the greatest are.
 *
 * A packing of the head in 8 bits, a quarter of the bytes, tells every logit within a bound that holds for
 * float32's own, rounding included. Panels that by it cannot have one of the greatest are left out; the
 * others' logits are computed by float32's kernel, so they are the very bits that the whole head gives. */
#ifndef GPT2C_SHORTLIST_H
#define GPT2C_SHORTLIST_H

#include "model.h"
#include "scratch.h"

typedef struct {
    const gpt2c_model *model;   /* of float32 */
    const gpt2c_model *packing; /* its own, with slack */
    float_rows x;                   /* [n_rows, n_embd] */
    int n_rows;
    /* To be written: */
    float_rows remainders;     /* [n_rows, n_embd] */
    quantized_rows halves; /* [2 n_rows]: their nearest 8 bits, and the nearest of what these leave */
    float *lengths;        /* [n_rows] */
    float_rows lower, upper;   /* [n_rows, panels]: between them lies a panel's greatest logit */
} shortlist;

/* The greatest that a panel's logits can be off by, for a row of length 1: fills slack for panels
 * [begin, end) of a packing in 8 bits. An infinity where there is no telling. */
void shortlist_slack(const packed_matrix *exact, const packed_matrix *packed, size_t begin,
                     size_t end, float *slack);

/* In this order, each with all of its shares done before the next begins: */
void shortlist_quantize(const shortlist *s, int begin, int end); /* rows */
void shortlist_bound(const shortlist *s, int begin, int end);    /* panels */
/* What a panel's upper bound has to reach, for each row, to have one of the row's n_greatest greatest
 * logits. Returns 0 where so many have that the whole head is as good. */
int shortlist_thresholds(const shortlist *s, const int32_t *n_greatest, float *thresholds);
/* Logits [n_rows, n_vocab] of panels [begin, end), -infinity in those left out. */
void shortlist_logits(const shortlist *s, const float *thresholds, int begin, int end,
                      float *logits);

#endif
