#ifndef GPT2C_SCORES_H
#define GPT2C_SCORES_H

#include "model/model.h"

/* Computes a token's score from the model's logits [n_vocab] and writes it to scores[at]. */
void score_token(const gpt2c_model *m, const float *logits, int32_t token,
                 const gpt2c_scores *scores, size_t at);

#endif
