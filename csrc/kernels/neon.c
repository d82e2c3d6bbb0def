/* The kernels for NEON, which every AArch64 CPU has. */
#include "../gpt2c.h"
#include "../kernels.h"
#include "inline.h"

#if defined(__aarch64__)

#include <string.h>

#include "vec_neon.h"

#include "body.h"

const kernel_table kernels_neon = KERNEL_TABLE("neon");

#endif
