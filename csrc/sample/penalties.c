/* The stages that change single ids' logits, most of them by what the text holds already. */
#include "sample/candidates.h"

#include <math.h>
#include <string.h>

static void add(candidates *c, int32_t id, float amount) {
    int32_t index = candidates_index(c, id);
    if (index != NOT_FOUND)
        c->logits[index] += amount;
}

static void ban(candidates *c, int32_t id) {
    int32_t index = candidates_index(c, id);
    if (index != NOT_FOUND)
        c->logits[index] = -INFINITY;
}

/* Keskar et al. 2019, "CTRL": every id that the text holds is divided by the penalty, or where it is
 * negative multiplied. */
static void penalize_repetition(candidates *c, float penalty) {
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

/* As OpenAI's API: by the ids that were generated, once for each or once for each time. */
static void penalize_presence(candidates *c, float penalty) {
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        if (!c->counts[c->history[i]]++)
            add(c, c->history[i], -penalty);
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        c->counts[c->history[i]] = 0;
}

static void penalize_frequency(candidates *c, float penalty) {
    for (int32_t i = c->n_prompt; i < c->n_history; i++)
        c->counts[c->history[i]]++;
    for (int32_t i = c->n_prompt; i < c->n_history; i++) {
        int32_t id = c->history[i];
        if (c->counts[id])
            add(c, id, -penalty * (float)c->counts[id]);
        c->counts[id] = 0;
    }
}

/* Paulus et al. 2017, "A Deep Reinforced Model for Abstractive Summarization": no n ids in a row come
 * twice. */
static void ban_repeated_ngrams(candidates *c, int32_t n) {
    const int32_t *last = c->history + c->n_history - (n - 1);
    for (int32_t i = 0; i + n <= c->n_history; i++)
        if (!memcmp(c->history + i, last, (size_t)(n - 1) * sizeof *last))
            ban(c, c->history[i + n - 1]);
}

/* ids are words as their length and then their ids: where a word's beginning ends the text, what would
 * complete it is banned. */
static void ban_words(candidates *c, const int32_t *ids, int32_t n_ids) {
    for (int32_t at = 0; at < n_ids; at += 1 + ids[at]) {
        const int32_t *word = ids + at + 1;
        int32_t before = ids[at] - 1;
        if (before <= c->n_history &&
            !memcmp(c->history + c->n_history - before, word, (size_t)before * sizeof *word))
            ban(c, word[before]);
    }
}

static int is_among(int32_t id, const int32_t *ascending, int32_t n) {
    int32_t begin = 0, end = n;
    while (begin < end) {
        int32_t middle = begin + (end - begin) / 2;
        if (ascending[middle] < id)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin < n && ascending[begin] == id;
}

/* lengths[i]: how many ids before place i are those that the text ends with (Gusfield's Z algorithm,
 * read backwards): linear, whatever repeats. */
static void match_endings(const int32_t *history, int32_t n, int32_t *lengths) {
    int32_t begin = n, end = n; /* the match that reaches furthest back: history[begin, end) */
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

/* "Don't repeat yourself" (p-e-w 2024, oobabooga/text-generation-webui pull request 5677): an id that
 * would lengthen a repetition of at least allowed ids loses multiplier * base^(length - allowed).
 * Breakers end a repetition. */
static void penalize_repeated_runs(candidates *c, const gpt2c_stage *stage) {
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
        add(c, history[i], -penalty);
    }
}

int penalize(candidates *c, const gpt2c_stage *stage) {
    if (stage->kind > GPT2C_LAST_PENALTY)
        return 0;
    candidates_unsort(c);
    switch (stage->kind) {
    case GPT2C_LOGIT_BIAS:
        for (int32_t i = 0; i < stage->n_ids; i++)
            add(c, stage->ids[i], stage->values[i]);
        break;
    case GPT2C_SUPPRESS_TOKENS:
        for (int32_t i = 0; i < stage->n_ids; i++)
            ban(c, stage->ids[i]);
        break;
    case GPT2C_MIN_NEW_TOKENS:
        for (int32_t i = 0; c->n_history - c->n_prompt < stage->count && i < stage->n_ids; i++)
            ban(c, stage->ids[i]);
        break;
    case GPT2C_REPETITION_PENALTY:
        penalize_repetition(c, stage->value);
        break;
    case GPT2C_PRESENCE_PENALTY:
        penalize_presence(c, stage->value);
        break;
    case GPT2C_FREQUENCY_PENALTY:
        penalize_frequency(c, stage->value);
        break;
    case GPT2C_DRY:
        penalize_repeated_runs(c, stage);
        break;
    case GPT2C_NO_REPEAT_NGRAM:
        if (c->n_history >= stage->count)
            ban_repeated_ngrams(c, stage->count);
        break;
    case GPT2C_BAD_WORDS:
        ban_words(c, stage->ids, stage->n_ids);
        break;
    default:
        break;
    }
    return 1;
}
