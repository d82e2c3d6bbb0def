/* The smaller of two numbers. */
#ifndef GPT2C_MIN_H
#define GPT2C_MIN_H

#include <stdint.h>

static inline int32_t min_int32(int32_t a, int32_t b) { return a < b ? a : b; }

#endif
