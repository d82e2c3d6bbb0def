/* The kernels for AVX2 and FMA (Intel since Haswell, AMD since Zen). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

/* The target holds for this file alone and for no header of the system: those come first. */
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "kernels/vec_avx2.h"

#include "kernels/dot_avx2.h"

#include "kernels/body.h"

#include "kernels/integer.h"

const kernel_table kernels_avx2 = KERNEL_TABLE;
const integer_table integer_avx2 = INTEGER_TABLE;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
