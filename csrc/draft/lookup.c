/* An index of a sequence's trigrams, which finds the last occurrence of each. */
#include "draft/lookup.h"

#include <stdlib.h>

/* A hash table without collision lists: each slot holds the last trigram with its hash. lookup_find
 * compares the tokens themselves, so a collision can only lose a match. */
struct gpt2c_lookup {
    int32_t *slots;    /* [n_slots]: the index of the token after the trigram; 0: empty */
    uint32_t n_slots;  /* a power of two */
    int32_t n_indexed; /* tokens in the index */
};

gpt2c_status gpt2c_lookup_create(int32_t n_positions, gpt2c_lookup **lookup) {
    gpt2c_lookup *l = calloc(1, sizeof *l);
    if (!l)
        return GPT2C_NO_MEMORY;
    l->n_slots = 64;
    while (l->n_slots < 2 * (uint32_t)n_positions)
        l->n_slots *= 2;
    l->slots = calloc(l->n_slots, sizeof *l->slots);
    if (!l->slots) {
        free(l);
        return GPT2C_NO_MEMORY;
    }
    *lookup = l;
    return GPT2C_OK;
}

void gpt2c_lookup_free(gpt2c_lookup *lookup) {
    if (!lookup)
        return;
    free(lookup->slots);
    free(lookup);
}

/* The slot of the trigram that ends just before index `end`. The factors of the hash are odd random
 * numbers of 32 bits. */
static int32_t *slot_of(const gpt2c_lookup *l, const gpt2c_job *job, int32_t end) {
    uint32_t hash = (uint32_t)lookup_token(job, end - 3) * 0x9e3779b1u;
    hash = (hash ^ (uint32_t)lookup_token(job, end - 2)) * 0x85ebca6bu;
    hash = (hash ^ (uint32_t)lookup_token(job, end - 1)) * 0xc2b2ae35u;
    return &l->slots[(hash ^ hash >> 15) & (l->n_slots - 1)];
}

/* How many tokens before one index equal those before the other, up to LOOKUP_MAX. */
static int32_t n_same_before(const gpt2c_job *job, int32_t continuation, int32_t end) {
    int32_t n = 0;
    while (n < LOOKUP_MAX && n < continuation &&
           lookup_token(job, continuation - 1 - n) == lookup_token(job, end - 1 - n))
        n++;
    return n;
}

lookup_match lookup_find(gpt2c_lookup *lookup, const gpt2c_job *job) {
    int32_t end = job->n_prompt + job->n_tokens;
    /* The last trigram is not indexed yet, because the search must find an earlier occurrence. */
    for (int32_t i = lookup->n_indexed + 1; i < end; i++)
        if (i >= LOOKUP_MIN)
            *slot_of(lookup, job, i) = i;
    lookup->n_indexed = end - 1;
    if (end < LOOKUP_MIN)
        return (lookup_match){0, 0};
    int32_t continuation = *slot_of(lookup, job, end);
    int32_t length = continuation ? n_same_before(job, continuation, end) : 0;
    return length < LOOKUP_MIN ? (lookup_match){0, 0} : (lookup_match){continuation, length};
}
