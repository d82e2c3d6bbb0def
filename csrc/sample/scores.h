#ifndef GPT2C_SCORES_H
#define GPT2C_SCORES_H

#include "model/model.h"

/* Writes what logits [n_vocab] say of a token to place `at` of scores. */
void score_token(const gpt2c_model *m, const float *logits, int32_t token,
                 const gpt2c_scores *scores, size_t at);

#endif
