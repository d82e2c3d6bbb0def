/* Which panels of the head can have a row's greatest logits; see shortlist.h. */
#include "shortlist.h"

#include "candidates.h"

#include <float.h>
#include <math.h>

/* |x| |w| times this bounds all that rounding does, to either product: a chain of K_BLOCK steps and the
 * sum of the blocks (float32's), a chain of the groups for each half of x (the packing's), and a few more. A
 * step rounds by at most 2^-24 of what was summed so far, which |x| |w| bounds (Cauchy and Schwarz). */
static double rounding(size_t k) {
    double steps = K_BLOCK + (double)(k / K_BLOCK) + 2.0 * (double)groups_of(k) + 16.0;
    return 1.1 * steps * (double)FLT_EPSILON / 2.0;
}

/* How much of a group's length both halves leave, at most: the first rounds to 1/254 of the greatest, the
 * second to 1/254 of that half step, and a group of 32 is at least as long as its greatest. */
#define UNREAD (1.1 * 5.657 / (254.0 * 254.0))

/* Weights longer than this, and rows, could overflow where the whole head would not, or the other way. */
#define LONGEST 1e15

void shortlist_slack(const packed_matrix *exact, const packed_matrix *packed, size_t begin,
                     size_t end, float *slack) {
    for (size_t panel = begin; panel < end; panel++) {
        float error[PANEL], length[PANEL];
        pack_errors(exact, packed, panel, error, length);
        double greatest = 0;
        for (int c = 0; c < PANEL; c++) {
            /* The squares' sums are of floats, and the least of them are lost. */
            double off = 1.01 * sqrt((double)error[c]) + 1e-15;
            double whole = 1.01 * sqrt((double)length[c]) + 1e-15;
            double most = off + (UNREAD + rounding(exact->k)) * (whole + off);
            if (!(whole < LONGEST && most < greatest))
                greatest = whole < LONGEST ? most : (double)INFINITY;
        }
        slack[panel] = (float)(1.01 * greatest);
    }
}

static quantized_rows half_of(const shortlist *s, int half) {
    quantized_rows q = s->halves;
    size_t first = half ? (size_t)s->n_rows : 0;
    q.stride = 2 * (size_t)s->n_rows;
    q.values_stride = q.stride * GROUP + GROUP_SPACE;
    q.values += first * GROUP;
    q.scales += first;
    q.minus_sums += first;
    return q;
}

void shortlist_quantize(const shortlist *s, int begin, int end) {
    const kernel_table *kernels = s->model->kernels;
    const int k = s->model->config.n_embd;
    const quantized_rows first = half_of(s, 0), second = half_of(s, 1);
    kernels->quantize_rows(s->x.floats, s->x.stride, begin, end, k, &first);
    for (int r = begin; r < end; r++) {
        const float *x = row_of(s->x, r);
        float *remainder = row_of(s->remainders, r);
        double square = 0;
        for (int i = 0; i < k; i++) {
            size_t group = (size_t)(i / GROUP);
            const int8_t *values =
                first.values + group * first.values_stride + (size_t)r * GROUP;
            float scale = first.scales[group * first.stride + (size_t)r];
            remainder[i] = (float)((double)x[i] - (double)values[i % GROUP] * (double)scale);
            square += (double)x[i] * (double)x[i];
        }
        s->lengths[r] = (float)(1.001 * sqrt(square));
    }
    kernels->quantize_rows(s->remainders.floats, s->remainders.stride, begin, end, k, &second);
}

static int n_panels_of(const shortlist *s) {
    return (int)panels_of((size_t)s->model->config.n_vocab);
}

/* How many of a panel's columns there are. */
static int columns_of(const shortlist *s, int panel) {
    int rest = s->model->config.n_vocab - panel * PANEL;
    return rest < PANEL ? rest : PANEL;
}

void shortlist_bound(const shortlist *s, int begin, int end) {
    const packed_matrix *head = &s->packing->head;
    const size_t panel_bytes = pack_panel_bytes(head->weights, head->k);
    float sums[2 * SHORTLIST_MOST_ROWS * PANEL];
    for (int panel = begin; panel < end; panel++) {
        const int n = columns_of(s, panel);
        const matmul_args args = {
            .quantized = half_of(s, 0),
            .n_rows = 2 * s->n_rows,
            .k = (int)head->k,
            .panels = (const char *)head->panels + (size_t)panel * panel_bytes,
            .out = sums,
            .out_stride = PANEL,
            .n = n,
            .activation = GPT2C_IDENTITY,
        };
        s->model->integer->matmul_int8(&args, 0, 1);
        for (int r = 0; r < s->n_rows; r++) {
            float *sum = sums + r * PANEL;
            s->model->kernels->add(sum + s->n_rows * PANEL, n, sum);
            int greatest = s->model->kernels->arg_max(sum, n);
            float value = greatest < 0 ? NAN : sum[greatest];
            float off = s->lengths[r] * s->packing->head_slack[panel] + 1e-30f;
            row_of(s->lower, r)[panel] = value - off;
            row_of(s->upper, r)[panel] = value + off;
        }
    }
}

/* So many panels have a logit of at least this, so that one of the greatest is no less: but for what a
 * division by a temperature makes equal. */
static float threshold_of(const float *lower, int n_panels, int32_t n_greatest) {
    int32_t ids[GPT2C_MOST_TOP];
    top_ids(lower, n_panels, n_greatest, ids);
    float threshold = lower[ids[n_greatest - 1]];
    return threshold - fabsf(threshold) * 0x1p-20f - 1e-30f;
}

int shortlist_thresholds(const shortlist *s, const int32_t *n_greatest, float *thresholds) {
    const int n_panels = n_panels_of(s);
    int n_left = 0;
    for (int r = 0; r < s->n_rows; r++) {
        const float *lower = row_of(s->lower, r), *upper = row_of(s->upper, r);
        if (!(s->lengths[r] < (float)LONGEST && s->lengths[r] > 1e-10f) ||
            n_greatest[r] > n_panels)
            return 0;
        for (int panel = 0; panel < n_panels; panel++)
            if (!(upper[panel] < FLT_MAX && lower[panel] > -FLT_MAX))
                return 0;
        thresholds[r] = threshold_of(lower, n_panels, n_greatest[r]);
        for (int panel = 0; panel < n_panels; panel++)
            n_left += upper[panel] >= thresholds[r];
    }
    return 2 * n_left < n_panels;
}

void shortlist_logits(const shortlist *s, const float *thresholds, int begin, int end,
                      float *logits) {
    const packed_matrix *head = &s->model->head;
    const size_t n_vocab = (size_t)s->model->config.n_vocab;
    for (int r = 0; r < s->n_rows; r++)
        for (int panel = begin; panel < end; panel++) {
            float *out = logits + (size_t)r * n_vocab;
            const matmul_args args = {
                .x = row_of(s->x, r),
                .x_stride = s->x.stride,
                .n_rows = 1,
                .k = (int)head->k,
                .panels = head->panels,
                .out = out,
                .out_stride = n_vocab,
                .n = (int)n_vocab,
                .activation = GPT2C_IDENTITY,
            };
            if (row_of(s->upper, r)[panel] >= thresholds[r])
                s->model->kernels->matmul(&args, panel, panel + 1);
            else
                for (int c = 0; c < columns_of(s, panel); c++)
                    out[panel * PANEL + c] = -INFINITY;
        }
}
