/* Macros that inline functions, unroll loops and compile for an instruction set. */

/* The small functions of kernels must be inlined and their loops unrolled; otherwise vectors would
 * not stay in registers. */
#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The functions between TARGET_BEGIN and TARGET_END may use the named instructions. Include system
 * headers before TARGET_BEGIN, so that their inline functions are not compiled for these
 * instructions. */
#define PRAGMA(tokens) _Pragma(#tokens)
#if defined(__clang__)
#define TARGET_BEGIN(names) \
    PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(names) PRAGMA(GCC push_options) PRAGMA(GCC target names)
#define TARGET_END PRAGMA(GCC pop_options)
#endif

/* Prefetches a cache line into the L2 cache, for reading. */
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
