/* exp, log and the activations, computed only with fma, mul, add and div and without libm, so that
 * every instruction set and every machine gives the same bits. */
#include "kernels/isa/vec.h"

/* 1.5 * 2^23: added to x, it leaves x's nearest integer (ties to even) in the sum's low bits. */
#define ROUND_MAGIC 12582912.0f

/* Rounds x to the nearest integer, ties to even. |x| must be less than 2^22. */
INLINE vi vi_round(vf x) {
    return vi_sub(vi_bits(vf_add(x, vf_set1(ROUND_MAGIC))), vi_bits(vf_set1(ROUND_MAGIC)));
}

INLINE vf vf_abs(vf x) { return vf_from_bits(vi_and(vi_bits(x), vi_set1(0x7fffffff))); }

/* Rounds a float, given as its bits, to a mantissa that is n bits shorter, ties to even. */
INLINE vi vi_round_mantissa(vi bits, int n) {
    vi odd = vi_and(vi_shift_right_unsigned(bits, n), vi_set1(1));
    vi rounded = vi_add(vi_add(bits, odd), vi_set1((1 << (n - 1)) - 1));
    return vi_and(rounded, vi_set1((int32_t)(~0u << n)));
}

/* ln 2 in two parts. The first ends in zeros, so that n * LN2_HIGH is exact. */
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f

/* 2^n for n from -126 to 127, made from the exponent bits. */
INLINE vf power_of_two(vi n) { return vf_from_bits(vi_shift_left(vi_add(n, vi_set1(127)), 23)); }

/* a * 2^n for an integer n, rounded once. n may be from -150 (denormal results) to 128 (infinite
 * results), so 2^n is applied as two factors. */
#ifndef HAS_VF_LDEXP
INLINE vf vf_ldexp(vf a, vf n) {
    vi exponent = vi_round(n), half = vi_shift_right(exponent, 1);
    return vf_mul(vf_mul(a, power_of_two(half)), power_of_two(vi_sub(exponent, half)));
}
#endif

/* exp(x) = 2^n exp(r) with n = round(x / ln 2), so |r| <= 0.347. For such r the Taylor polynomial
 * of degree 7 has an error of 5e-9. A NaN passes through every step. */
INLINE vf vf_exp(vf x) {
    vf clamped = vf_max(vf_set1(-104.0f), x);
    clamped = vf_min(vf_set1(89.0f), clamped);
    vf shifted = vf_fma(clamped, vf_set1(1.44269504f), vf_set1(ROUND_MAGIC));
    vf n = vf_sub(shifted, vf_set1(ROUND_MAGIC));
    vf r = vf_fma(n, vf_set1(-LN2_HIGH), clamped);
    r = vf_fma(n, vf_set1(-LN2_LOW), r);

    vf p = vf_set1(1.0f / 5040.0f);
    p = vf_fma(p, r, vf_set1(1.0f / 720.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 120.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 24.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 6.0f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));

    return vf_ldexp(p, n);
}

/* log(1 + f) for f in [-0.293, 0.415]. With s = f / (2 + f), log(1 + f) is 2 (s + s^3/3 + s^5/5 +
 * ...). It is computed as f - (f^2/2 - s (f^2/2 + R)) so that the leading term is exact. */
INLINE vf log_of_one_plus(vf f) {
    vf s = vf_div(f, vf_add(vf_set1(2.0f), f));
    vf z = vf_mul(s, s);
    vf series = vf_fma(z, vf_set1(2.0f / 11.0f), vf_set1(2.0f / 9.0f));
    series = vf_fma(z, series, vf_set1(2.0f / 7.0f));
    series = vf_fma(z, series, vf_set1(2.0f / 5.0f));
    series = vf_fma(z, series, vf_set1(2.0f / 3.0f));
    vf half_square = vf_mul(vf_mul(vf_set1(0.5f), f), f);
    vf inner = vf_mul(s, vf_fma(z, series, half_square));
    return vf_sub(f, vf_sub(half_square, inner));
}

/* log(x) for a normal positive x = 2^e m, m in [sqrt(1/2), sqrt(2)). The result for other x is
 * unspecified. */
INLINE vf vf_log(vf x) {
    /* The bits of sqrt(1/2) are subtracted so that the exponent field changes just where m would
     * leave its range. */
    const int32_t root_half = 0x3f3504f3;
    vi offset = vi_sub(vi_bits(x), vi_set1(root_half));
    vi exponent = vi_shift_right(offset, 23);
    vf m = vf_from_bits(vi_add(vi_and(offset, vi_set1(0x007fffff)), vi_set1(root_half)));
    vf e = vf_from_int(exponent);
    vf log_m = log_of_one_plus(vf_sub(m, vf_set1(1.0f)));
    return vf_fma(e, vf_set1(LN2_HIGH), vf_fma(e, vf_set1(LN2_LOW), log_m));
}

/* x * sigmoid(y). x = -infinity is replaced by -3e38, so that its product with a sigmoid of zero is
 * zero, the limit, and not NaN. */
INLINE vf times_sigmoid(vf x, vf y) {
    vf e = vf_exp(vf_sub(vf_set1(0.0f), y));
    vf finite = vf_max(vf_set1(-3e38f), x);
    return vf_div(finite, vf_add(vf_set1(1.0f), e));
}

/* GPT-2's own GELU: 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3). The
 * sigmoid keeps its relative accuracy where tanh is near -1. */
INLINE vf gelu_tanh(vf x) {
    const float two_root = 1.59576912f; /* 2 sqrt(2 / pi) */
    vf square = vf_mul(x, x);
    vf u = vf_mul(x, vf_fma(square, vf_set1(two_root * 0.044715f), vf_set1(two_root)));
    return times_sigmoid(x, u);
}

/* x Phi(x), where Phi is the normal distribution function. With t = |x| / sqrt(2): for t < 1 Phi
 * comes from the Taylor series of erf, else from erfc(t) = exp(-t^2) y p(y), y = 1 / (1 + t / 2),
 * where p was fitted at 200 Chebyshev nodes over t from 1 to 11 (relative error 1.4e-8). */
INLINE vf gelu_erf(vf x) {
    vf negated = vf_sub(vf_set1(0.0f), x);
    vf magnitude = vf_select_less(x, vf_set1(0.0f), negated, x);
    vf t = vf_mul(magnitude, vf_set1(0.707106781f));
    vf z = vf_mul(vf_mul(x, x), vf_set1(0.5f));

    /* (2 / sqrt(pi)) sum of (-1)^n t^(2n+1) / (n! (2n + 1)) */
    static const float series[] = {1.12837917f,    -0.376126389f,   0.112837917f,   -0.0268661706f,
                                   5.22397762e-3f, -8.54832701e-4f, 1.20553330e-4f, -1.49256504e-5f,
                                   1.64621144e-6f, -1.63658447e-7f, 1.48071928e-8f};
    vf small = vf_set1(series[10]);
    for (int i = 9; i >= 0; i--)
        small = vf_fma(small, z, vf_set1(series[i]));
    vf signed_t = vf_mul(x, vf_set1(0.707106781f));
    vf phi_small = vf_fma(vf_mul(small, signed_t), vf_set1(0.5f), vf_set1(0.5f));

    static const float fit[] = {0.282097489f,  0.28205654f,   0.246834069f, 0.17930986f,
                                0.0597534664f, 0.0841747522f, -0.22753273f, 0.0938845128f};
    vf y = vf_div(vf_set1(1.0f), vf_fma(t, vf_set1(0.5f), vf_set1(1.0f)));
    vf p = vf_set1(fit[7]);
    for (int i = 6; i >= 0; i--)
        p = vf_fma(p, y, vf_set1(fit[i]));
    vf tail = vf_mul(vf_mul(vf_exp(vf_sub(vf_set1(0.0f), z)), y), vf_mul(p, vf_set1(0.5f)));
    vf phi_large = vf_select_less(x, vf_set1(0.0f), tail, vf_sub(vf_set1(1.0f), tail));

    vf phi = vf_select_less(t, vf_set1(1.0f), phi_small, phi_large);
    vf finite = vf_select_less(x, vf_set1(-3e38f), vf_set1(-3e38f), x);
    return vf_propagate_nan(x, vf_mul(finite, phi));
}

/* tanh(x). Near zero it is Lambert's continued fraction, truncated after four terms (relative error
 * 8e-10 up to 0.625); elsewhere 1 - 2 / (exp(2 |x|) + 1). */
INLINE vf vf_tanh(vf x) {
    vf z = vf_mul(x, x);
    vf numerator = vf_fma(z, vf_add(z, vf_set1(105.0f)), vf_set1(945.0f));
    vf denominator = vf_fma(z, vf_fma(z, vf_set1(15.0f), vf_set1(420.0f)), vf_set1(945.0f));
    vf near_zero = vf_mul(x, vf_div(numerator, denominator));

    vf negated = vf_sub(vf_set1(0.0f), x);
    vf magnitude = vf_select_less(x, vf_set1(0.0f), negated, x);
    vf e = vf_exp(vf_add(magnitude, magnitude));
    vf far = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(e, vf_set1(1.0f))));
    far = vf_select_less(x, vf_set1(0.0f), vf_sub(vf_set1(0.0f), far), far);
    vf result = vf_select_less(magnitude, vf_set1(0.625f), near_zero, far);
    return vf_propagate_nan(x, result);
}

INLINE vf activate(vf x, int activation) {
    switch (activation) {
    case GPT2C_GELU_TANH:
        return gelu_tanh(x);
    case GPT2C_GELU_ERF:
        return gelu_erf(x);
    case GPT2C_QUICK_GELU:
        return times_sigmoid(x, vf_mul(x, vf_set1(1.702f)));
    case GPT2C_RELU: /* as in torch, a NaN stays NaN */
        return vf_select_less(x, vf_set1(0.0f), vf_set1(0.0f), x);
    case GPT2C_SILU:
        return times_sigmoid(x, x);
    case GPT2C_TANH:
        return vf_tanh(x);
    default:
        return x;
    }
}
