# Model.forward, which passes activations to a callback. Included by _engine.pyx.

cdef int on_point(
    void *context, gpt2c_point point, int32_t layer, float *rows, size_t stride, int32_t n_rows,
    int32_t width,
) noexcept with gil:
    """Pass rows [n_rows, width] to the Python callback; return 1 on an error.

    gpt2c_forward_probed calls this function.
    """
    cdef Probing probing = <Probing>context
    cdef float[::1] numbers
    try:
        numbers = <float[:(n_rows - 1) * stride + width]>rows
        view = np.lib.stride_tricks.as_strided(
            np.asarray(numbers), (n_rows, width), (stride * sizeof(float), sizeof(float))
        )
        if point < GPT2C_POINT_EMBED:
            probing.on_activation(BLOCK_POINTS[<int>point], layer, view)
        else:
            probing.on_activation(MODEL_POINTS[<int>point - <int>GPT2C_POINT_EMBED], 0, view)
        PyErr_CheckSignals()
    except BaseException as error:
        probing.error = after_signals(error)
        return 1
    return 0


cdef object after_signals(error):
    """Return the exception that a pending signal raises, or `error` if there is none.

    The signal's exception has `error` as its context.
    """
    try:
        PyErr_CheckSignals()
    except BaseException as interrupt:
        return interrupt
    return error


cdef int poll_signals(void *context) noexcept with gil:
    """Handle signals; return 1 after Ctrl-C. Called before each layer, as a layer may take long."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Probing>context).error = error
        return 1
    return 0


cdef class Probing:
    """One call of Model.forward."""

    cdef Model model
    cdef Sequence sequence
    cdef const int32_t[::1] ids
    cdef uint8_t[:, ::1] points
    cdef uint8_t[::1] wants_logits
    cdef object on_activation, error

    def __cinit__(
        self, Model model, const int32_t[::1] ids, locations, logit_rows, on_activation
    ):
        self.model, self.ids, self.on_activation = model, ids, on_activation
        self.sequence = Sequence(model)
        n_layer = model.n_layer
        names = [*BLOCK_POINTS, *MODEL_POINTS]
        points = np.zeros((n_layer + 1, GPT2C_N_POINTS), dtype=np.uint8)
        for name, block in locations:
            points[n_layer if name in MODEL_POINTS else block, names.index(name)] = 1
        self.points = points
        self.wants_logits = np.array(logit_rows, dtype=np.uint8)
        if not 0 < ids.shape[0] == self.wants_logits.shape[0] <= model.n_positions:
            raise OptionError(
                f"forward takes 1 to {model.n_positions} ids and as many logit_rows; found "
                f"{ids.shape[0]} and {self.wants_logits.shape[0]}"
            )

    def run(self):
        """Run the call and return the wanted logits."""
        cdef Model model = self.model
        cdef gpt2c_hooks hooks
        cdef gpt2c_status status
        cdef int32_t n = <int32_t>self.ids.shape[0]
        cdef gpt2c_scratch *scratch = NULL
        cdef float *out
        n_rows = np.count_nonzero(self.wants_logits)
        logits = empty((n_rows, model.n_vocab), np.float32, f"{n_rows} rows of logits")
        cdef float[::1] flat = logits.reshape(-1)
        out = &flat[0] if flat.shape[0] else NULL
        hooks.points, hooks.wants_logits = &self.points[0, 0], &self.wants_logits[0]
        hooks.on_point, hooks.poll, hooks.context = on_point, poll_signals, <void *>self
        with model.held():
            raise_status(gpt2c_scratch_create(model.pointer, n, &scratch), "scratch buffers")
            try:
                while True:
                    with nogil:
                        status = gpt2c_forward_probed(
                            model.pointer, scratch, self.sequence.pointer, &self.ids[0], n, &hooks,
                            out,
                        )
                    if not model.try_to_reclaim(status):
                        break
            finally:
                gpt2c_scratch_free(scratch)
        if status == GPT2C_STOPPED:
            raise self.error if self.error is not None else ForkError(
                "this process was forked in the middle of a forward call, by an edit or a signal "
                "handler, and the call's other threads exist only in the parent: end the child "
                "inside the edit (os._exit), or fork before or after the call"
            )
        raise_status(status, f"a forward call of {n} tokens", model)
        return logits
