/* What the operating system gives: memory and a clock. The only file that includes its headers. */
#ifndef GPT2C_OS_H
#define GPT2C_OS_H

#include <stddef.h>

/* Zeroed memory for weights, aligned to 2 MiB and backed by huge pages where the system has
 * them; NULL where it cannot be had. */
void *os_arena_alloc(size_t bytes);
void os_arena_free(void *memory, size_t bytes);

/* Uninitialised memory aligned to a cache line of 64 bytes. */
void *os_aligned_alloc(size_t bytes);
void os_aligned_free(void *memory);

/* Seconds of a clock that never goes back. */
double os_seconds(void);

#endif
