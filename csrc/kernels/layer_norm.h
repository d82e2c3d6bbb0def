/* Layer norm of one row (Ba et al. 2016) in two passes: the mean, then the mean squared deviation
 * from it. */
static void layer_norm_kernel(const float *x, const float *weight, const float *bias, float epsilon,
                              int n, float *out) {
    lanes sum = lanes_zero();
    for (int i = 0; i < n; i += LANES)
        for (int v = 0; v < LANE_VECTORS; v++) {
            int at = i + v * VF_WIDTH;
            if (at < n)
                sum.part[v] = vf_add(sum.part[v], vf_load_first(x + at, n - at));
        }
    float mean = lanes_total(&sum) / (float)n;

    lanes squares = lanes_zero();
    for (int i = 0; i < n; i += LANES)
        for (int v = 0; v < LANE_VECTORS; v++) {
            int at = i + v * VF_WIDTH;
            if (at < n) {
                vf d = vf_sub(vf_load_first(x + at, n - at), vf_set1(mean));
                d = vf_keep_first(d, n - at);
                squares.part[v] = vf_fma(d, d, squares.part[v]);
            }
        }
    float variance = lanes_total(&squares) / (float)n;

    vf scale = vf_div(vf_set1(1.0f), vf_sqrt(vf_set1(variance + epsilon)));
    for (int i = 0; i < n; i += VF_WIDTH) {
        vf normed = vf_mul(vf_sub(vf_load_first(x + i, n - i), vf_set1(mean)), scale);
        vf value = vf_fma(normed, vf_load_first(weight + i, n - i), vf_load_first(bias + i, n - i));
        vf_store_first(out + i, value, n - i);
    }
}
