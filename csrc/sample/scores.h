#ifndef GPT2C_SCORES_H
#define GPT2C_SCORES_H

#include "model/model.h"

/* Writes the score of a token by the model's logits [n_vocab] to scores[at]. */
void score_token(const gpt2c_model *m, const float *logits, int32_t token,
                 const gpt2c_scores *scores, size_t at);

#endif
