# Memory that several processes share. Included by _engine.pyx.


@cython.no_gc
cdef class Mapping:
    """A file of memory, mapped as a whole. Deallocation unmaps it and lets the file go."""

    cdef unsigned char *address
    cdef size_t n_bytes
    cdef object file

    def __cinit__(self, file not None, size_t n_bytes, bint is_writable):
        cdef int descriptor = file.fileno()
        self.file, self.n_bytes = file, n_bytes
        with nogil:
            self.address = <unsigned char *>os_file_map(descriptor, n_bytes, is_writable)
        if self.address == NULL:
            raise CacheMemoryError(f"the system refused {n_bytes} bytes of shared memory")

    def __dealloc__(self):
        os_file_unmap(self.address, self.n_bytes)

    cdef unsigned char *part(self, size_t begin, size_t n_bytes) except NULL:
        """Return the address of a part of the file."""
        if begin % OS_CACHE_LINE or begin > self.n_bytes or n_bytes > self.n_bytes - begin:
            raise OptionError(
                f"found a part of {n_bytes} bytes from byte {begin}, expected an aligned part of "
                f"{self.n_bytes} bytes"
            )
        return self.address + begin
