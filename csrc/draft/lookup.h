/* Prompt lookup: what followed when the last tokens came before (Saxena 2023). */
#ifndef GPT2C_LOOKUP_H
#define GPT2C_LOOKUP_H

#include "gpt2c.h"

/* What a text says of its next tokens. */
typedef struct {
    int32_t place;  /* in the prompt and the new tokens: where the guess begins; 0: there is none */
    int32_t length; /* how many tokens before it are the same, up to LOOKUP_LONGEST */
} lookup_match;

#define LOOKUP_SHORTEST 3
#define LOOKUP_LONGEST 16

/* Takes up what the job has got since the last call, and finds what its last tokens were followed by
 * when they came last. */
lookup_match lookup_find(gpt2c_lookup *lookup, const gpt2c_job *job);

/* Token i of the prompt and the new tokens. */
static inline int32_t lookup_token(const gpt2c_job *job, int32_t i) {
    return i < job->n_prompt ? job->prompt[i] : job->tokens[i - job->n_prompt];
}

#endif
