#include "cpu.h"

#include "gpt2c.h"
#include "os/os.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Returns XCR0: the register sets that the operating system saves at a context switch. */
static unsigned long long saved_register_sets(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((unsigned long long)high << 32) | low;
}

enum {
    OS_AVX = 0x6,     /* XMM and YMM */
    OS_AVX512 = 0xe6, /* XMM, YMM, opmask and both parts of ZMM */
};

static int has_fma(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    if (!(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA))
        return 0;
    return (saved_register_sets() & OS_AVX) == OS_AVX;
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    return has_fma() && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

static int has_avx512(void) {
    unsigned a, b, c, d;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needed) == needed &&
           (saved_register_sets() & OS_AVX512) == OS_AVX512;
}

static int has_avx512vnni(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & bit_AVX512VNNI);
}

static int has_avxvnni(void) {
    unsigned a, b, c, d;
    const unsigned avxvnni = 1u << 4; /* the headers of old compilers do not define this bit */
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avxvnni);
}
#endif

/* Slowest first: callers take the last supported one. The vnni, dot and i8mm sets use the float
 * kernels of the set that they extend; only their integer kernels differ. avx512 uses the integer
 * kernels of avx2. */
static const instruction_set instruction_sets[] = {
#if defined(__x86_64__)
    {"scalar", &kernels_scalar, &integer_scalar, has_fma},
    {"avx2", &kernels_avx2, &integer_avx2, has_avx2},
    {"avxvnni", &kernels_avx2, &integer_avxvnni, has_avxvnni},
    {"avx512", &kernels_avx512, &integer_avx2, has_avx512},
    {"avx512vnni", &kernels_avx512, &integer_avx512vnni, has_avx512vnni},
#elif defined(GPT2C_HAS_SCALAR_FMA)
    {"scalar", &kernels_scalar, &integer_scalar, NULL},
#endif
#if defined(__aarch64__)
    {"neon", &kernels_neon, &integer_neon, NULL},
    {"neondot", &kernels_neon, &integer_neondot, os_has_dot_product},
    {"neoni8mm", &kernels_neon, &integer_neoni8mm, os_has_int8_matrices},
#endif
    {NULL, NULL, NULL, NULL},
};

const char *gpt2c_isa_name(int i) {
    for (int j = 0; instruction_sets[j].name; j++)
        if (i == j)
            return instruction_sets[j].name;
    return NULL;
}

const instruction_set *cpu_instruction_set(const char *name) {
    for (const instruction_set *set = instruction_sets; set->name; set++)
        if (strcmp(set->name, name) == 0)
            return !set->is_supported || set->is_supported() ? set : NULL;
    return NULL;
}

int gpt2c_isa_supported(const char *name) { return cpu_instruction_set(name) != NULL; }
