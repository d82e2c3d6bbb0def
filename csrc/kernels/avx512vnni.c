/* Integer kernels for AVX-512's VNNI (Intel since Cascade Lake, AMD since Zen 4). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

/* The target holds for this file alone and for no header of the system: those come first. */
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif

#include "kernels/vec_avx512.h"

#include "kernels/dot_avx512vnni.h"

#include "kernels/integer_body.h"

const integer_table integer_avx512vnni = INTEGER_TABLE;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
