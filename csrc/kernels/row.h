/* The sum along a row, and a row's largest element.
 *
 * A sum has 16 virtual lanes (element i in lane i mod 16) that are added by one fixed tree,
 * whatever the width of a vector. A lane starts at +0 and so never becomes -0; adding the zeros of
 * a masked tail therefore changes no bit. */

#define LANES 16
#define LANE_VECTORS (LANES / VF_WIDTH)

typedef struct {
    vf part[LANE_VECTORS];
} lanes;

INLINE lanes lanes_zero(void) {
    lanes sum;
    for (int v = 0; v < LANE_VECTORS; v++)
        sum.part[v] = vf_set1(0.0f);
    return sum;
}

/* Adds lanes 8-15 to 0-7, then 4-7 to 0-3, and so on. */
INLINE float lanes_total(const lanes *sum) {
    vf part[LANE_VECTORS];
    UNROLL
    for (int v = 0; v < LANE_VECTORS; v++)
        part[v] = sum->part[v];
    UNROLL
    for (int half = LANE_VECTORS / 2; half; half /= 2) {
        UNROLL
        for (int v = 0; v < half; v++)
            part[v] = vf_add(part[v], part[v + half]);
    }
    return vf_reduce_add(part[0]);
}

/* The largest of n elements; NaN if any is NaN. The order of the comparisons affects only the sign
 * of a zero. */
static float row_max(const float *row, int n) {
    vf max = vf_set1(row[0]), nan = vf_set1(0.0f); /* nan: NaN in lanes that met a NaN */
    for (int i = 0; i + VF_WIDTH <= n; i += VF_WIDTH) {
        vf x = vf_load(row + i);
        max = vf_max(x, max);
        nan = vf_propagate_nan(x, nan);
    }
    /* The last vector overlaps the one before. A row shorter than a vector is read element by
     * element. */
    for (int i = n < VF_WIDTH ? 0 : n - VF_WIDTH; i < n; i += n < VF_WIDTH ? 1 : VF_WIDTH) {
        vf x = n < VF_WIDTH ? vf_set1(row[i]) : vf_load(row + i);
        max = vf_max(x, max);
        nan = vf_propagate_nan(x, nan);
    }
    float lane[VF_WIDTH], nans[VF_WIDTH];
    vf_store(lane, max);
    vf_store(nans, nan);
    float result = lane[0];
    for (int i = 0; i < VF_WIDTH; i++) {
        if (nans[i] != nans[i])
            return nans[i];
        result = result < lane[i] ? lane[i] : result;
    }
    return result;
}
