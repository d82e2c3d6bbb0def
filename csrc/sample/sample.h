/* Chooses a job's next token from logits. */
#ifndef GPT2C_SAMPLE_H
#define GPT2C_SAMPLE_H

#include "sample/candidates.h"

/* Whether a job chooses the largest logit and has no stages, so that it needs no candidates. */
int is_greedy(const gpt2c_job *job);
/* Chooses the next token from `logits`, and appends it or sets job->finish. The token's score comes
 * from raw_logits, the model's unchanged logits. */
void advance_job(const gpt2c_model *m, candidates *c, gpt2c_job *job, const float *logits,
                 const float *raw_logits);
/* Applies a job's stages to logits [n_vocab] in place; removed ids get -infinity. */
void apply_stages(candidates *c, const gpt2c_job *job, float *logits);

#endif
