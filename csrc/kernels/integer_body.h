/* The integer kernels alone, for an instruction set that shares all others with a lesser one. */
#include "kernels/functions.h"

#include "kernels/quantize_rows.h"

#include "kernels/finish.h"
#include "kernels/integer.h"
