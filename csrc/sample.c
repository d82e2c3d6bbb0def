/* From logits to a token. */
#include "fpenv.h"
#include "model.h"

#include <math.h>

/* Whether a comes before b: greater logit first, then lower id. */
static int precedes(gpt2c_candidate a, gpt2c_candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Restores the heap below i: the root is the candidate that all others precede. */
static void sift_down(gpt2c_candidate *heap, int32_t n, int32_t i) {
    for (;;) {
        int32_t last = i, left = 2 * i + 1, right = 2 * i + 2;
        if (left < n && precedes(heap[last], heap[left]))
            last = left;
        if (right < n && precedes(heap[last], heap[right]))
            last = right;
        if (last == i)
            return;
        gpt2c_candidate moved = heap[i];
        heap[i] = heap[last];
        heap[last] = moved;
        i = last;
    }
}

/* The k candidates that precede all others, in no order. */
static void keep_top_k(const float *logits, int32_t n, int32_t k, gpt2c_candidate *heap) {
    for (int32_t id = 0; id < k; id++)
        heap[id] = (gpt2c_candidate){logits[id], id};
    for (int32_t i = k / 2; i-- > 0;)
        sift_down(heap, k, i);
    for (int32_t id = k; id < n; id++)
        if (logits[id] > heap[0].logit) { /* at a tie the lower id, already there, stays */
            heap[0] = (gpt2c_candidate){logits[id], id};
            sift_down(heap, k, 0);
        }
}

static int32_t candidates_kept(const gpt2c_sampling *sampling, int32_t n_vocab) {
    return sampling->top_k > 0 && sampling->top_k < n_vocab ? sampling->top_k : 0;
}

size_t gpt2c_candidates_needed(const gpt2c_sampling *sampling, int32_t n_vocab) {
    return (size_t)candidates_kept(sampling, n_vocab);
}

/* Noise is at least -log(32 log 2 + log 2) = -3.13 and at most log(2^33) = 22.9: an id whose scaled
 * logit lies further than that below the best score so far cannot win, and is not drawn for. */
#define MOST_NOISE 23.0f

typedef struct {
    float score;
    int32_t id;
} draw;

static void draw_for(const gpt2c_model *m, const gpt2c_sampling *sampling, const noise_key *key,
                     gpt2c_candidate c, draw *best) {
    if (best->id >= 0 && c.logit / sampling->temperature < best->score - MOST_NOISE)
        return;
    float score = m->kernels->perturb(c.logit, sampling->temperature, c.id, key);
    if (best->id < 0 || score > best->score || (score == best->score && c.id < best->id))
        *best = (draw){score, c.id};
}

static int32_t choose(const gpt2c_model *m, const gpt2c_sampling *sampling, const float *logits,
                      int32_t position, gpt2c_candidate *candidates) {
    int32_t n_vocab = m->config.n_vocab;
    int32_t greatest = m->kernels->arg_max(logits, n_vocab);
    if (greatest < 0 || sampling->temperature == 0.0f)
        return greatest;
    /* A temperature so low that logits overflow is the greedy limit. */
    if (isinf(logits[greatest] / sampling->temperature))
        return greatest;
    noise_key key = {sampling->seed, sampling->sample, (uint32_t)position};
    draw best = {0.0f, -1};
    int32_t k = candidates_kept(sampling, n_vocab);
    if (k) {
        keep_top_k(logits, n_vocab, k, candidates);
        for (int32_t i = 0; i < k; i++)
            draw_for(m, sampling, &key, candidates[i], &best);
    } else {
        draw_for(m, sampling, &key, (gpt2c_candidate){logits[greatest], greatest}, &best);
        for (int32_t id = 0; id < n_vocab; id++)
            draw_for(m, sampling, &key, (gpt2c_candidate){logits[id], id}, &best);
    }
    return best.id;
}

gpt2c_status gpt2c_choose(const gpt2c_model *model, const gpt2c_sampling *sampling,
                          const float *logits, int32_t position, gpt2c_candidate *candidates,
                          int32_t *token) {
    fp_state caller = fp_enter();
    *token = choose(model, sampling, logits, position, candidates);
    fp_leave(caller);
    return *token < 0 ? GPT2C_NOT_A_NUMBER : GPT2C_OK;
}
