/* The kernels for AVX-512 (F, BW, DQ, VL: Intel since Skylake-SP, AMD since Zen 4). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

/* The target holds for this file alone and for no header of the system: those come first. */
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#include "kernels/vec_avx512.h"

#include "kernels/body.h"

const kernel_table kernels_avx512 = KERNEL_TABLE;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
