/* Products of bytes, one lane of four at a time. */
#define DOT_VECTORS 1
#define INT8_OFFSET 128
#define INT4_SUMS_ARE_32_BITS 1

INLINE vi dot_int8(vi sum, vi w, vi x) {
    for (int i = 0; i < 32; i += 8)
        sum += (vi)((uint32_t)w >> i & 255) * (int8_t)((uint32_t)x >> i);
    return sum;
}

INLINE vi dot_int4(vi sum, vi w, vi x) { return dot_int8(sum, w, x); }
INLINE vi int4_sum(vi sum) { return sum; }
INLINE vi mul_zero_point(vi a, vi b) { return a * b; }
