/* Integer kernels for NEON with int8 matrix instructions (ARMv8.6 and later, Apple CPUs since the
 * M2, Neoverse V1 and N2). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
TARGET_BEGIN("i8mm")
#else
TARGET_BEGIN("arch=armv8.2-a+i8mm")
#endif

#include "kernels/isa/vec_neon.h"

#include "kernels/isa/dot_neoni8mm.h"

#include "kernels/integer_body.h"

const integer_table integer_neoni8mm = INTEGER_TABLE;

TARGET_END

#endif
