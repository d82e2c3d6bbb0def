/* Integer kernels for AVX-VNNI (Intel since Alder Lake, AMD since Zen 5). */
#include "gpt2c.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__x86_64__)

/* The target holds for this file alone and for no header of the system: those come first. */
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif

#include "kernels/vec_avx2.h"

#include "kernels/dot_avxvnni.h"

#include "kernels/integer_body.h"

const integer_table integer_avxvnni = INTEGER_TABLE;

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
