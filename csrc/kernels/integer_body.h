/* The integer kernels alone, for an instruction set that otherwise uses the kernels of a smaller
 * one. */
#include "kernels/functions.h"

#include "kernels/quantize_rows.h"

#include "kernels/finish.h"
#include "kernels/integer.h"
