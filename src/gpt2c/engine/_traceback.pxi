# The traceback entries of _engine's functions. _engine.pyx includes this file first.
#
# Under the limited API, whenever an exception passes through a Cython function, Cython compiles and
# runs a line of Python to get a frame for the traceback, and drops any exception that this line
# raises. A signal handler can run there, and its KeyboardInterrupt would be lost. An exception
# without any traceback would make Cython's `except` crash. So all functions share one frame, which
# is made once, here. A traceback therefore shows that the exception passed through this module, but
# not at which line.

cdef extern from *:
    """
    #ifdef Py_LIMITED_API
    static PyObject *traceback_code, *traceback_frame; /* NULL until the module is loaded */

    static PyObject *new_ref(PyObject *object) {
        Py_INCREF(object);
        return object;
    }

    #define Py_CompileString(text, file, start) \\
        (traceback_code ? new_ref(traceback_code) : (Py_CompileString)(text, file, start))
    #define PyEval_EvalCode(code, globals, locals) \\
        (traceback_frame ? new_ref(traceback_frame) : (PyEval_EvalCode)(code, globals, locals))

    static void set_traceback(PyObject *code, PyObject *frame) {
        Py_INCREF(code);
        Py_INCREF(frame);
        traceback_code = code;
        traceback_frame = frame;
    }
    #else
    static void set_traceback(PyObject *code, PyObject *frame) {
        (void)code, (void)frame;
    }
    #endif
    """
    void set_traceback(object code, object frame)


cdef class TracebackCode:
    """Replaces the code object that Cython makes for a function and a line."""

    def replace(self, **changes):
        return self


def _make_traceback():
    code = compile("frame = __import__('sys')._getframe()", "<gpt2c.engine._engine>", "exec")
    names = {"__name__": "gpt2c.engine._engine"}
    exec(code.replace(co_name="compiled code"), names)
    set_traceback(TracebackCode(), names.pop("frame"))


_make_traceback()
