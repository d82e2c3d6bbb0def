/* Includes the integer kernels alone, for an instruction set that has no other kernels of its own:
 * cpu.c combines it with the float kernels of a smaller set. */
#include "kernels/functions.h"

#include "kernels/quantize_rows.h"

#include "kernels/finish.h"
#include "kernels/integer.h"
