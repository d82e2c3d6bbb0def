# Holding a model's weights in memory while calls use them, also across forks and interrupts.
# Included by _engine.pyx.

# For each fork between the process that imported this module and this process, the thread that
# forked: the only thread that exists in the child.
cdef list forking_threads = []


def _note_fork():
    forking_threads.append(get_ident())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


cdef bint is_of_this_process(thread, Py_ssize_t n_forks) except -1:
    """Whether a thread, seen after n_forks forks, is in this process: it made all later forks."""
    for i in range(n_forks, len(forking_threads)):
        if forking_threads[i] != thread:
            return False
    return True


@cython.no_gc
cdef class Held:
    """A context manager that holds a model's weights.

    Deallocation ends the hold too, because an interrupt can come between `__enter__` and the block.
    """

    cdef Model model
    cdef object thread  # the thread that entered the block; None outside it

    def __cinit__(self, Model model not None):
        self.model = model

    def __enter__(self):
        if self.thread is not None:
            raise RuntimeError("this context manager is already entered; call held() again")
        with cython.critical_section(self.model):
            self.model.check_held_or_open()
            self.thread = get_ident()
            self.model.hold(self.thread)

    def __exit__(self, kind, error, trace):
        self.end()
        PyErr_CheckSignals()  # so that Ctrl-C is raised here, not just after the block

    def __dealloc__(self):
        self.end()

    cdef int end(self) except -1:
        thread, self.thread = self.thread, None
        if thread is not None:
            self.model.let_go(thread)
        return 0
