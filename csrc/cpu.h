/* Which of the compiled instruction sets this CPU can run. cpu.c itself runs on every CPU of the
 * architecture. */
#ifndef GPT2C_CPU_H
#define GPT2C_CPU_H

#include "kernels/kernels.h"

typedef struct {
    const char *name;
    const kernel_table *kernels;
    const integer_table *integer;
    int (*is_supported)(void); /* NULL: on every CPU of this build */
} instruction_set;

/* Finds an instruction set by name. Returns NULL if this build lacks it or this CPU cannot run
 * it. */
const instruction_set *cpu_instruction_set(const char *name);

#endif
