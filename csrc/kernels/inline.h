/* How kernels are compiled: what is inlined and unrolled, and for which instructions. */

/* Kernels are small functions that must be inlined and loops that must be unrolled, or their
 * vectors would not stay in registers. */
#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The functions between TARGET_BEGIN and TARGET_END may use the named instructions. System headers
 * are included before, so that their functions are not compiled for these. */
#define PRAGMA(tokens) _Pragma(#tokens)
#if defined(__clang__)
#define TARGET_BEGIN(names) \
    PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(names) PRAGMA(GCC push_options) PRAGMA(GCC target names)
#define TARGET_END PRAGMA(GCC pop_options)
#endif

/* Prefetches a cache line to be read into the second-level cache. */
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
