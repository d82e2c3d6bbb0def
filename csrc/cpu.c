#include "cpu.h"

#include "gpt2c.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* The register sets whose state the operating system saves at a context switch (XCR0). */
static unsigned long long saved_state(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((unsigned long long)high << 32) | low;
}

enum { OS_AVX = 0x6, OS_AVX512 = 0xe6 }; /* XMM and YMM; and opmask and both halves of ZMM */

static int has_fma(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    if (!(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA))
        return 0;
    return (saved_state() & OS_AVX) == OS_AVX;
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    return has_fma() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

static int has_avx512(void) {
    unsigned a, b, c, d;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needed) == needed &&
           (saved_state() & OS_AVX512) == OS_AVX512;
}
#endif

typedef struct {
    const kernel_table *kernels;
    int (*supported)(void); /* NULL: always */
} instruction_set;

/* Slowest first: callers take the last that is supported. */
static const instruction_set instruction_sets[] = {
#if defined(__x86_64__)
    {&kernels_scalar, has_fma},
    {&kernels_avx2, has_avx2},
    {&kernels_avx512, has_avx512},
#elif defined(GPT2C_HAS_SCALAR_FMA)
    {&kernels_scalar, NULL},
#endif
#if defined(__aarch64__)
    {&kernels_neon, NULL},
#endif
    {NULL, NULL},
};

const char *gpt2c_isa_compiled(int i) {
    for (int j = 0; instruction_sets[j].kernels; j++)
        if (i == j)
            return instruction_sets[j].kernels->name;
    return NULL;
}

const kernel_table *cpu_kernels(const char *isa) {
    for (const instruction_set *set = instruction_sets; set->kernels; set++)
        if (strcmp(set->kernels->name, isa) == 0)
            return !set->supported || set->supported() ? set->kernels : NULL;
    return NULL;
}

int gpt2c_isa_supported(const char *name) {
    return cpu_kernels(name) != NULL;
}
