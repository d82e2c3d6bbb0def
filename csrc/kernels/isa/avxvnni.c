/* Integer kernels for AVX-VNNI (Intel since Alder Lake, AMD since Zen 5). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

#include <math.h>
#include <string.h>

TARGET_BEGIN("avx2,fma,f16c,avxvnni")

#include "kernels/isa/vec_avx2.h"

#include "kernels/isa/dot_avxvnni.h"

#include "kernels/integer_body.h"

const integer_table integer_avxvnni = INTEGER_TABLE;

TARGET_END

#endif
