/* The integer kernels alone, for an instruction set that shares all others with a lesser one. */
#include "functions.h"

#include "quantize_rows.h"

#include "finish.h"
#include "integer.h"
