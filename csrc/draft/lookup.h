/* Prompt lookup decoding (Saxena 2023): the drafts are the tokens that followed an earlier
 * occurrence of the last tokens. */
#ifndef GPT2C_LOOKUP_H
#define GPT2C_LOOKUP_H

#include "gpt2c.h"

/* An earlier occurrence of a sequence's last tokens. */
typedef struct {
    int32_t continuation; /* the index (see lookup_token) of the token after it; 0: no match */
    int32_t length;       /* how many tokens match, up to LOOKUP_MAX */
} lookup_match;

/* The min and max length of a match. */
#define LOOKUP_MIN 3
#define LOOKUP_MAX 16

/* Indexes the tokens that the job got since the last call, and finds the previous occurrence of the
 * job's last tokens. */
lookup_match lookup_find(gpt2c_lookup *lookup, const gpt2c_job *job);

/* Token i of the prompt and the new tokens together. */
static inline int32_t lookup_token(const gpt2c_job *job, int32_t i) {
    return i < job->n_prompt ? job->prompt[i] : job->tokens[i - job->n_prompt];
}

#endif
