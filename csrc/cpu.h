/* Which of the compiled instruction sets this CPU can run. cpu.c itself is built without
 * instruction-set flags. */
#ifndef GPT2C_CPU_H
#define GPT2C_CPU_H

#include "kernels/kernels.h"

typedef struct {
    const char *name;
    const kernel_table *kernels;
    const integer_table *integer;
    int (*supported)(void); /* NULL: always */
} instruction_set;

/* The instruction set with this name; NULL if it is not compiled in or cannot run here. */
const instruction_set *cpu_instruction_set(const char *name);

#endif
