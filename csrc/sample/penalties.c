/* The stages that change the logits of single ids. Most depend on c->history: the ids of the prompt
 * and the generated ones. sample.c sorts the candidates by id before each of these stages. */
#include "sample/candidates.h"

#include <math.h>
#include <string.h>

static void add_to_logit(candidates *c, int32_t id, float amount) {
    int32_t index = candidates_index(c, id);
    if (index != NOT_FOUND)
        c->logits[index] += amount;
}

static void ban(candidates *c, int32_t id) {
    int32_t index = candidates_index(c, id);
    if (index != NOT_FOUND)
        c->logits[index] = -INFINITY;
}

/* Keeps the ids whose bits are set in the mask: an id's bit is 1 << id % 32 of word id / 32. The
 * words are stage->ids, at least one for every 32 ids of the vocabulary; bits beyond the vocabulary
 * are ignored.
 *
 * Other ids are removed, so no later stage can bring them back, and later stages have fewer
 * candidates to work on. If no id is left, one candidate with the logit -infinity stays. */
void apply_allowed_ids(candidates *c, const gpt2c_stage *stage) {
    int has_all = c->n == c->n_vocab; /* then an id is its own index */
    int32_t n = 0;
    for (int32_t first = 0; first < c->n_vocab; first += 32) {
        uint32_t bits = (uint32_t)stage->ids[first / 32];
        if (c->n_vocab - first < 32)
            bits &= (1u << (c->n_vocab - first)) - 1;
        for (; bits; bits &= bits - 1) {
            int32_t id = first + __builtin_ctz(bits);
            int32_t index = has_all ? id : candidates_index(c, id);
            if (index == NOT_FOUND)
                continue;
            c->logits[n] = c->logits[index];
            c->ids[n++] = id;
        }
    }
    if (n == 0)
        c->logits[n++] = -INFINITY;
    c->n = n;
    c->has_indices = 0;
}

void apply_logit_bias(candidates *c, const gpt2c_stage *stage) {
    for (int32_t i = 0; i < stage->n_ids; i++)
        add_to_logit(c, stage->ids[i], stage->values[i]);
}

/* Keskar et al. 2019, "CTRL: A Conditional Transformer Language Model": for each id in the history,
 * divides a positive logit by the penalty and multiplies a negative logit by it. */
void apply_repetition_penalty(candidates *c, const gpt2c_stage *stage) {
    float penalty = stage->value;
    for (int32_t i = 0; i < c->n_history; i++) {
        int32_t id = c->history[i];
        int32_t index = c->counts[id]++ ? NOT_FOUND : candidates_index(c, id);
        if (index != NOT_FOUND)
            c->logits[index] =
                c->logits[index] < 0.0f ? c->logits[index] * penalty : c->logits[index] / penalty;
    }
    for (int32_t i = 0; i < c->n_history; i++)
        c->counts[c->history[i]] = 0;
}

/* As in OpenAI's API: subtracts the penalty from the logit of each id that was generated. */
void apply_presence_penalty(candidates *c, const gpt2c_stage *stage) {
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        if (!c->counts[c->history[i]]++)
            add_to_logit(c, c->history[i], -stage->value);
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        c->counts[c->history[i]] = 0;
}

/* As in OpenAI's API: subtracts the penalty once for each time that the id was generated. */
void apply_frequency_penalty(candidates *c, const gpt2c_stage *stage) {
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        c->counts[c->history[i]]++;
    for (int32_t i = c->n_prompt; i < c->n_history; i++) {
        int32_t id = c->history[i];
        if (c->counts[id])
            add_to_logit(c, id, -stage->value * (float)c->counts[id]);
        c->counts[id] = 0;
    }
}

/* Paulus et al. 2017, "A Deep Reinforced Model for Abstractive Summarization": bans each id that
 * would repeat an n-gram of the history. */
void apply_no_repeat_ngram_size(candidates *c, const gpt2c_stage *stage) {
    int32_t n = stage->count;
    if (c->n_history < n)
        return;
    const int32_t *last = c->history + c->n_history - (n - 1);
    for (int32_t i = 0; i + n <= c->n_history; i++)
        if (!memcmp(c->history + i, last, (size_t)(n - 1) * sizeof *last))
            ban(c, c->history[i + n - 1]);
}

/* Bans the last id of each bad word whose other ids are the last ids of the history. stage->ids
 * holds each word as its length followed by its ids. */
void apply_bad_words(candidates *c, const gpt2c_stage *stage) {
    for (int32_t at = 0; at < stage->n_ids; at += 1 + stage->ids[at]) {
        const int32_t *word = stage->ids + at + 1;
        int32_t n_before = stage->ids[at] - 1;
        if (n_before <= c->n_history &&
            !memcmp(c->history + c->n_history - n_before, word, (size_t)n_before * sizeof *word))
            ban(c, word[n_before]);
    }
}

void apply_suppress_tokens(candidates *c, const gpt2c_stage *stage) {
    for (int32_t i = 0; i < stage->n_ids; i++)
        ban(c, stage->ids[i]);
}

/* Bans the stop ids until `count` tokens are generated. */
void apply_min_new_tokens(candidates *c, const gpt2c_stage *stage) {
    if (c->n_history - c->n_prompt < stage->count)
        apply_suppress_tokens(c, stage);
}

static int is_among(int32_t id, const int32_t *sorted_ids, int32_t n) {
    int32_t begin = 0, end = n;
    while (begin < end) {
        int32_t middle = begin + (end - begin) / 2;
        if (sorted_ids[middle] < id)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin < n && sorted_ids[begin] == id;
}

/* Sets lengths[i] to the length of the longest run of ids that ends just before i and also ends the
 * history. This is Gusfield's Z algorithm, run backwards: its time is linear in n for every
 * history. */
static void match_endings(const int32_t *history, int32_t n, int32_t *lengths) {
    int32_t begin = n, end = n; /* history[begin, end): the match that reaches furthest back */
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t length = 0;
        if (i > begin) {
            int32_t known = lengths[n - (end - i)];
            length = known < i - begin ? known : i - begin;
        }
        while (length < i && history[i - 1 - length] == history[n - 1 - length])
            length++;
        lengths[i] = length;
        if (i - length < begin) {
            begin = i - length;
            end = i;
        }
    }
}

/* DRY, "don't repeat yourself" (p-e-w 2024, oobabooga/text-generation-webui pull request 5677):
 * subtracts multiplier * base^(length - allowed) from the logit of an id that would continue a
 * repetition of `length` ids, if length is at least `allowed`. A repetition does not cross a
 * breaker, and no breaker is penalised.
 *
 * stage->value is the multiplier, other the base, count the allowed length, ids the breakers,
 * ascending; a span above 0 limits the search to the last `span` ids.
 *
 * For each id, c->counts holds the length of the longest repetition that the id would continue. */
void apply_dry(candidates *c, const gpt2c_stage *stage) {
    int32_t n = c->n_history;
    const int32_t *history = c->history;
    if (stage->span > 0 && stage->span < n) {
        history += n - stage->span;
        n = stage->span;
    }
    int32_t longest = 0;
    while (longest < n && !is_among(history[n - 1 - longest], stage->ids, stage->n_ids))
        longest++;
    match_endings(history, n, c->lengths);
    for (int32_t i = 1; i < n; i++) {
        int32_t length = c->lengths[i] < longest ? c->lengths[i] : longest;
        if (length > c->counts[history[i]])
            c->counts[history[i]] = length;
    }
    for (int32_t i = 1; i < n; i++) {
        int32_t length = c->counts[history[i]];
        c->counts[history[i]] = 0;
        if (length < stage->count || length == 0 || is_among(history[i], stage->ids, stage->n_ids))
            continue;
        float penalty = stage->value;
        for (int32_t k = stage->count; k < length && !isinf(penalty); k++)
            penalty *= stage->other;
        add_to_logit(c, history[i], -penalty);
    }
}
