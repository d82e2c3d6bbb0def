/* Elementwise kernels: a function over a whole array. */
static void exp_kernel(float *x, int n) {
    for (int i = 0; i < n; i += VF_WIDTH)
        vf_store_first(x + i, vf_exp(vf_load_first(x + i, n - i)), n - i);
}

static void log_kernel(float *x, int n) {
    for (int i = 0; i < n; i += VF_WIDTH)
        vf_store_first(x + i, vf_log(vf_load_first(x + i, n - i)), n - i);
}

static void activate_kernel(float *x, int n, int activation) {
    for (int i = 0; i < n; i += VF_WIDTH)
        vf_store_first(x + i, activate(vf_load_first(x + i, n - i), activation), n - i);
}

static void add_kernel(const float *added, int n, float *x) {
    for (int i = 0; i < n; i += VF_WIDTH) {
        vf sum = vf_add(vf_load_first(x + i, n - i), vf_load_first(added + i, n - i));
        vf_store_first(x + i, sum, n - i);
    }
}

static void divide_kernel(float *x, int n, float by) {
    for (int i = 0; i < n; i += VF_WIDTH)
        vf_store_first(x + i, vf_div(vf_load_first(x + i, n - i), vf_set1(by)), n - i);
}
