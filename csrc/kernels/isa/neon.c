/* The kernels for NEON, which every AArch64 CPU has. */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)

#include <math.h>
#include <string.h>

#include "kernels/isa/vec_neon.h"

#include "kernels/isa/dot_neon.h"

#include "kernels/body.h"

#include "kernels/integer.h"

const kernel_table kernels_neon = KERNEL_TABLE;
const integer_table integer_neon = INTEGER_TABLE;

#endif
