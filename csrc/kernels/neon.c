/* The kernels for NEON, which every AArch64 CPU has. */
#include "../gpt2c.h"
#include "../kernels.h"
#include "inline.h"

#if defined(__aarch64__)

#include <math.h>
#include <string.h>

#include "vec_neon.h"

#include "dot_neon.h"

#include "body.h"

#include "integer.h"

const kernel_table kernels_neon = KERNEL_TABLE;
const integer_table integer_neon = INTEGER_TABLE;

#endif
