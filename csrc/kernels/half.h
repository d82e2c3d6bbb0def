/* float16 in plain C. */
#ifndef GPT2C_HALF_H
#define GPT2C_HALF_H

#include <stdint.h>
#include <string.h>

/* The value of a float16, which float32 represents exactly. */
static inline float float16_value(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff, bits;
    if (magnitude < 0x400) { /* zero and subnormals: multiples of 2^-24 */
        float value = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    } else { /* infinities and NaNs have the largest exponent in both formats */
        bits = (magnitude << 13) + ((magnitude < 0x7c00 ? 112u : 224u) << 23);
    }
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
