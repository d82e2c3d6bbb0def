# Who holds a model's weights, also in a forked child and after an interrupt. Included by _engine.pyx.

cimport cython

# For each fork between the process that imported this module and this one: the thread that forked,
# the only one that went on in the child.
cdef list forking_threads = []


def _note_fork():
    forking_threads.append(get_ident())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


cdef bint is_of_this_process(thread, Py_ssize_t n_forks) except -1:
    """Whether a thread that ran after n_forks forks went through all later ones."""
    for i in range(n_forks, len(forking_threads)):
        if forking_threads[i] != thread:
            return False
    return True


@cython.no_gc
cdef class Held:
    """A hold on a model's weights for a with block.

    Being dropped ends it too: an interrupt can come after `__enter__` and before the block.
    """

    cdef Model model
    cdef object thread  # in the block, the one that entered it

    def __cinit__(self, Model model not None):
        self.model = model

    def __enter__(self):
        if self.thread is not None:
            raise RuntimeError("this hold is in use; take another with held()")
        self.model.check_held_or_open()
        self.thread = get_ident()
        self.model.hold(self.thread)

    def __exit__(self, kind, error, trace):
        self.end()
        PyErr_CheckSignals()  # so that Ctrl-C comes from this call, not just after it

    def __dealloc__(self):
        self.end()

    cdef int end(self) except -1:
        thread, self.thread = self.thread, None
        if thread is not None:
            self.model.let_go(thread)
        return 0
