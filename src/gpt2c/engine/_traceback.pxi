# What Cython puts into the traceback of an exception that passes a function of _engine. Included first.
#
# Under the limited API Cython compiles and runs a line of Python code for each function that an
# exception passes, for the sake of the frame that the code runs in, and drops what is raised
# meanwhile. A signal's handler can run there, so that its KeyboardInterrupt would be lost; and an
# exception without any traceback makes Cython's `except` crash. So all of these functions share one
# frame, made here once: a traceback tells that the exception passed through gpt2c.engine._engine, not where.

cdef extern from *:
    """
    #ifdef Py_LIMITED_API
    static PyObject *traceback_code, *traceback_frame; /* NULL until the module is loaded */

    static PyObject *traceback_part(PyObject *part) {
        Py_INCREF(part);
        return part;
    }

    #define Py_CompileString(text, file, start) \\
        (traceback_code ? traceback_part(traceback_code) : (Py_CompileString)(text, file, start))
    #define PyEval_EvalCode(code, globals, locals) \\
        (traceback_frame ? traceback_part(traceback_frame) : (PyEval_EvalCode)(code, globals, locals))

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
    """Stands in for the code object that Cython makes for a function and a line."""

    def replace(self, **changes):
        return self


def _make_traceback():
    code = compile("frame = __import__('sys')._getframe()", "<gpt2c.engine._engine>", "exec")
    names = {"__name__": "gpt2c.engine._engine"}
    exec(code.replace(co_name="compiled code"), names)
    set_traceback(TracebackCode(), names.pop("frame"))


_make_traceback()
