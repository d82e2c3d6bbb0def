/* The scalar kernels: one float at a time. Tests compare every other instruction set with them. On
 * x86-64 the scalar kernels need the FMA instruction, because fma in software is 50 times
 * slower. */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(GPT2C_HAS_SCALAR_FMA)

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
TARGET_BEGIN("fma")
#endif

#include "kernels/isa/vec_scalar.h"

#include "kernels/isa/dot_scalar.h"

#include "kernels/body.h"

#include "kernels/integer.h"

const kernel_table kernels_scalar = KERNEL_TABLE;
const integer_table integer_scalar = INTEGER_TABLE;

#if defined(__x86_64__)
TARGET_END
#endif

#endif
