/* Includes only the integer kernels, for an instruction set that uses another set's float kernels
 * (cpu.c). */
#include "kernels/functions.h"

#include "kernels/quantize_rows.h"

#include "kernels/finish.h"
#include "kernels/integer.h"
