/* Kernels that measure the machine's limits, with which benchmarks compare the other kernels. */

#define STREAM_CHAINS 8

/* Reads n floats, a multiple of STREAM_CHAINS vectors, and adds them. */
static float stream_kernel(const float *x, size_t n) {
    vf sum[STREAM_CHAINS];
    UNROLL
    for (int v = 0; v < STREAM_CHAINS; v++)
        sum[v] = vf_set1(0.0f);
    for (size_t i = 0; i < n; i += STREAM_CHAINS * VF_WIDTH) {
        UNROLL
        for (int v = 0; v < STREAM_CHAINS; v++)
            sum[v] = vf_add(sum[v], vf_load(x + i + (size_t)v * VF_WIDTH));
    }
    for (int v = 1; v < STREAM_CHAINS; v++)
        sum[0] = vf_add(sum[0], sum[v]);
    float lane[VF_WIDTH];
    vf_store(lane, sum[0]);
    return lane[0];
}

/* 12 independent chains fill two FMA units with a latency of four to six cycles, and fit AVX2's 16
 * registers. */
#define CHAIN_PAIRS 6

/* Multiplies and adds in registers only. Returns the number of operations. */
static double multiply_add_kernel(long long steps, float factor, float *result) {
    vf sum[2][CHAIN_PAIRS];
    vf f = vf_set1(factor);
    UNROLL
    for (int v = 0; v < CHAIN_PAIRS; v++) {
        sum[0][v] = vf_set1((float)v);
        sum[1][v] = vf_set1((float)-v - 1.0f);
    }
    for (long long i = 0; i < steps; i++) {
        UNROLL
        for (int v = 0; v < CHAIN_PAIRS; v++) {
            sum[0][v] = vf_fma(sum[0][v], f, f);
            sum[1][v] = vf_fma(sum[1][v], f, f);
        }
    }
    vf total = vf_set1(0.0f);
    UNROLL
    for (int v = 0; v < CHAIN_PAIRS; v++)
        total = vf_add(total, vf_add(sum[0][v], sum[1][v]));
    float lane[VF_WIDTH];
    vf_store(lane, total);
    *result = lane[0];
    return 2.0 * 2 * CHAIN_PAIRS * VF_WIDTH * (double)steps;
}
