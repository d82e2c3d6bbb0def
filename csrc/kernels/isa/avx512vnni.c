/* Integer kernels for AVX-512 VNNI (Intel since Cascade Lake, AMD since Zen 4). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")

#include "kernels/isa/vec_avx512.h"

#include "kernels/isa/dot_avx512vnni.h"

#include "kernels/integer_body.h"

const integer_table integer_avx512vnni = INTEGER_TABLE;

TARGET_END

#endif
