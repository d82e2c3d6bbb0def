/* Integer kernels for NEON with dot product instructions (ARMv8.2 and later, all Apple CPUs). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
TARGET_BEGIN("dotprod")
#else
TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

#include "kernels/isa/vec_neon.h"

#include "kernels/isa/dot_neondot.h"

#include "kernels/integer_body.h"

const integer_table integer_neondot = INTEGER_TABLE;

TARGET_END

#endif
