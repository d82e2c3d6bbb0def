/* An index of every three tokens of a text: where they came last. */
#include "draft/lookup.h"

#include <stdlib.h>

/* Places are by a hash of three tokens; of several with the same one the last stays. */
struct gpt2c_lookup {
    int32_t *places;   /* [n_places]: where the tokens end, 0: nowhere */
    uint32_t n_places; /* a power of two */
    int32_t n_indexed; /* tokens that were taken up */
};

gpt2c_status gpt2c_lookup_create(int32_t n_positions, gpt2c_lookup **lookup) {
    gpt2c_lookup *l = calloc(1, sizeof *l);
    if (!l)
        return GPT2C_NO_MEMORY;
    l->n_places = 64;
    while (l->n_places < 2 * (uint32_t)n_positions)
        l->n_places *= 2;
    l->places = calloc(l->n_places, sizeof *l->places);
    if (!l->places) {
        free(l);
        return GPT2C_NO_MEMORY;
    }
    *lookup = l;
    return GPT2C_OK;
}

void gpt2c_lookup_free(gpt2c_lookup *lookup) {
    if (!lookup)
        return;
    free(lookup->places);
    free(lookup);
}

/* The place of the tokens that end before token `end`; the factors are odd and of 32 random bits. */
static int32_t *place_of(const gpt2c_lookup *l, const gpt2c_job *job, int32_t end) {
    uint32_t hash = (uint32_t)lookup_token(job, end - 3) * 0x9e3779b1u;
    hash = (hash ^ (uint32_t)lookup_token(job, end - 2)) * 0x85ebca6bu;
    hash = (hash ^ (uint32_t)lookup_token(job, end - 1)) * 0xc2b2ae35u;
    return &l->places[(hash ^ hash >> 15) & (l->n_places - 1)];
}

/* How many tokens before both places are the same. */
static int32_t same_before(const gpt2c_job *job, int32_t place, int32_t end) {
    int32_t n = 0;
    while (n < LOOKUP_LONGEST && n < place &&
           lookup_token(job, place - 1 - n) == lookup_token(job, end - 1 - n))
        n++;
    return n;
}

lookup_match lookup_find(gpt2c_lookup *lookup, const gpt2c_job *job) {
    int32_t end = job->n_prompt + job->n_tokens;
    /* The last tokens themselves are not looked up but have to be found before. */
    for (int32_t i = lookup->n_indexed + 1; i < end; i++)
        if (i >= LOOKUP_SHORTEST)
            *place_of(lookup, job, i) = i;
    lookup->n_indexed = end - 1;
    if (end < LOOKUP_SHORTEST)
        return (lookup_match){0, 0};
    int32_t place = *place_of(lookup, job, end);
    int32_t length = place ? same_before(job, place, end) : 0;
    return length < LOOKUP_SHORTEST ? (lookup_match){0, 0} : (lookup_match){place, length};
}
