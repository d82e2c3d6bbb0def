/* From logits to a job's next token; for the loop of generate.c. */
#ifndef GPT2C_SAMPLE_H
#define GPT2C_SAMPLE_H

#include "sample/candidates.h"

/* Whether a job takes the greatest of the logits as they are, and needs no candidates. */
int is_greedy(const gpt2c_job *job);
/* Chooses the next token by `logits`, appends it, and scores it by `model_logits`, the model's. */
void advance_job(const gpt2c_model *m, candidates *c, gpt2c_job *job, const float *logits,
                 const float *model_logits);

#endif
