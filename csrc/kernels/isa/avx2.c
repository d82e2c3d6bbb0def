/* The kernels for AVX2, FMA and F16C (Intel since Haswell, AMD since Zen). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

TARGET_BEGIN("avx2,fma,f16c")

#include "kernels/isa/vec_avx2.h"

#include "kernels/isa/dot_avx2.h"

#include "kernels/body.h"

#include "kernels/integer.h"

const kernel_table kernels_avx2 = KERNEL_TABLE;
const integer_table integer_avx2 = INTEGER_TABLE;

TARGET_END

#endif
