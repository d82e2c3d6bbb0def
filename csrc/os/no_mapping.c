/* Systems on which processes cannot share sealed memory. */
#include "os/os.h"

void *os_file_map(int descriptor, size_t bytes, int is_writable) {
    (void)descriptor;
    (void)bytes;
    (void)is_writable;
    return NULL;
}

void os_file_unmap(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}
