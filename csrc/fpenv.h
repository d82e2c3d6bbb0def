/* The floating-point environment of a call: round to nearest, denormals kept. Other libraries
 * (torch, anything linked with -ffast-math) may make the caller's thread flush denormals to zero.
 * fp_enter sets the environment that gpt2c needs, and returns the caller's. fp_leave restores the
 * caller's. */
#ifndef GPT2C_FPENV_H
#define GPT2C_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

typedef unsigned int fp_state;

static inline fp_state fp_enter(void) {
    fp_state caller = _mm_getcsr();
    _mm_setcsr(0x1f80); /* the default: all exceptions masked, round to nearest, no flushing */
    return caller;
}

static inline void fp_leave(fp_state caller) { _mm_setcsr(caller); }

#elif defined(__aarch64__)

typedef uint64_t fp_state;

static inline fp_state fp_enter(void) {
    fp_state caller;
    uint64_t defaults = 0; /* round to nearest, no flushing */
    __asm__ volatile("mrs %0, fpcr" : "=r"(caller));
    __asm__ volatile("msr fpcr, %0" : : "r"(defaults));
    return caller;
}

static inline void fp_leave(fp_state caller) { __asm__ volatile("msr fpcr, %0" : : "r"(caller)); }

#else
#include <fenv.h>

typedef fenv_t fp_state;

static inline fp_state fp_enter(void) {
    fp_state caller;
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    return caller;
}

static inline void fp_leave(fp_state caller) { fesetenv(&caller); }
#endif

#endif
