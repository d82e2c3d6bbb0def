/* Memory of several processes, on Linux: a file of memory (memfd_create), mapped. */
#define _GNU_SOURCE /* MAP_ANONYMOUS, fallocate */
#include "os/os.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#if !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* Linux 6.1; older headers do not define it */
#endif

/* Each failure may have cost milliseconds of looking for a huge page. */
#define MAX_FAILURES 16

/* Linux maps a huge page only at an address that is aligned to its size. So this reserves one huge
 * page more than it needs, and unmaps both ends. */
static char *reserve_aligned(size_t bytes) {
    size_t reserved = bytes + HUGE_PAGE;
    char *raw = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED)
        return NULL;
    size_t before = -(size_t)(uintptr_t)raw & (HUGE_PAGE - 1);
    if (before)
        munmap(raw, before);
    munmap(raw + before + bytes, reserved - before - bytes);
    return raw + before;
}

/* Gives a new file its pages: huge ones, as far as there are any. Most systems give a file of memory
 * huge pages only where a program asks by MADV_COLLAPSE, which needs one page in each of them. If
 * memory runs out, this returns 0, whereas the first use of a page would raise SIGBUS. */
static int add_pages(int descriptor, char *memory, size_t bytes) {
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    int n_failures = 0;
    for (size_t i = 0; i + HUGE_PAGE <= bytes && n_failures < MAX_FAILURES; i += HUGE_PAGE) {
        if (fallocate(descriptor, 0, (off_t)i, OS_FILE_UNIT))
            break;
        n_failures += madvise(memory + i, HUGE_PAGE, MADV_COLLAPSE) != 0;
    }
    return fallocate(descriptor, 0, 0, (off_t)bytes) == 0;
}

void *os_file_map(int descriptor, size_t bytes, int is_writable) {
    if (bytes == 0 || bytes % OS_FILE_UNIT || bytes > SIZE_MAX / 4)
        return NULL;
    char *memory = reserve_aligned(bytes);
    if (!memory)
        return NULL;
    int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mmap(memory, bytes, protection, MAP_SHARED | MAP_FIXED, descriptor, 0) == MAP_FAILED) {
        munmap(memory, bytes);
        return NULL;
    }
    if (!is_writable) {
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
        return memory;
    }
    /* While a child has a writable mapping, a file cannot be sealed. */
    if (madvise(memory, bytes, MADV_DONTFORK) || !add_pages(descriptor, memory, bytes)) {
        munmap(memory, bytes);
        return NULL;
    }
    return memory;
}

void os_file_unmap(void *memory, size_t bytes) {
    if (memory)
        munmap(memory, bytes);
}
