/* Integer kernels for NEON with the dot product (ARMv8.2 and later, all of Apple's). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)

/* The target holds for this file alone and for no header of the system: those come first. */
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "kernels/vec_neon.h"

#include "kernels/dot_neondot.h"

#include "kernels/integer_body.h"

const integer_table integer_neondot = INTEGER_TABLE;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
