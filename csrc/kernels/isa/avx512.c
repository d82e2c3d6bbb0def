/* The kernels for AVX-512 (F, BW, DQ, VL: Intel since Skylake-SP, AMD since Zen 4). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")

#include "kernels/isa/vec_avx512.h"

#include "kernels/body.h"

const kernel_table kernels_avx512 = KERNEL_TABLE;

TARGET_END

#endif
