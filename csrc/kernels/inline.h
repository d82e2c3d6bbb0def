/* Kernels are written as small functions that must be inlined and loops that must be unrolled for
 * their vectors to stay in registers; both compilers are told so rather than asked. */
#define INLINE static inline __attribute__((always_inline))
/* Fetches a cache line into the second-level cache. */
INLINE void prefetch(const float *p) { __builtin_prefetch(p, 0, 2); }

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
