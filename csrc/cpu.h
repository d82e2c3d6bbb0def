/* Which compiled instruction sets this CPU can run. Built without instruction-set flags. */
#ifndef GPT2C_CPU_H
#define GPT2C_CPU_H

#include "kernels.h"

/* The kernels named, or NULL where they are not compiled in or cannot run here. */
const kernel_table *cpu_kernels(const char *isa);

#endif
