# A Plan's sampler stages as C's structs. Included by _engine.pyx.

cdef class Stages:
    """An array of gpt2c_stage, checked against one vocabulary."""

    cdef gpt2c_stage *pointer
    cdef int32_t n
    cdef list arrays  # the arrays that the stages point to, kept alive

    def __cinit__(self, stages, int n_vocab):
        cdef gpt2c_stage *stage
        cdef const int32_t[::1] ids
        cdef const float[::1] values
        cdef Py_ssize_t i
        self.arrays = []
        self.n = <int32_t>len(stages)
        self.pointer = <gpt2c_stage *>calloc(self.n or 1, sizeof(gpt2c_stage))
        if self.pointer == NULL:
            raise CacheMemoryError("not enough memory for the sampling options")
        for i, given in enumerate(stages):
            stage = &self.pointer[i]
            stage.kind = STAGES[given.name]
            stage.value, stage.other = given.value, given.other
            stage.count, stage.span = given.count, given.span
            ids, values = given.ids, given.values
            if stage.kind == GPT2C_BAD_WORDS:
                check_words(ids, n_vocab)
            elif stage.kind == GPT2C_ALLOWED_IDS:
                check_mask(ids, n_vocab)
            else:
                check_ids(ids, n_vocab)
            stage.n_ids = <int32_t>ids.shape[0]
            if stage.kind == GPT2C_LOGIT_BIAS and values.shape[0] != ids.shape[0]:
                raise OptionError(
                    f"logit_bias needs a value for each id; found {ids.shape[0]} ids and "
                    f"{values.shape[0]} values"
                )
            self.arrays.append((ids, values))
            if ids.shape[0]:
                stage.ids = &ids[0]
            if values.shape[0]:
                stage.values = &values[0]
            if stage.kind in (GPT2C_TOP_K, GPT2C_NO_REPEAT_NGRAM, GPT2C_DRY) and stage.count < 1:
                raise OptionError(f"{given.name}: count is {stage.count}; it must be at least 1")

    def __dealloc__(self):
        free(self.pointer)

    cdef int attach_to(self, gpt2c_job *job) except -1:
        """Set a job's stages, and the initial state of mirostat."""
        cdef int32_t i
        job.sampling.stages, job.sampling.n_stages = self.pointer, self.n
        for i in range(self.n):
            if self.pointer[i].kind == GPT2C_MIROSTAT:
                job.mirostat_mu = 2 * self.pointer[i].value
        return 0


cdef int check_words(const int32_t[::1] packed, int n_vocab) except -1:
    """Raise OptionError unless `packed` is a series of words, each as its length and its ids."""
    cdef Py_ssize_t at = 0
    while at < packed.shape[0]:
        if packed[at] < 1 or packed[at] >= packed.shape[0] - at:
            raise OptionError(
                f"bad_words: found a word of length {packed[at]} and {packed.shape[0] - at - 1} "
                "ids left"
            )
        check_ids(packed[at + 1:at + 1 + packed[at]], n_vocab)
        at += 1 + packed[at]
    return 0


cdef int check_mask(const int32_t[::1] words, int n_vocab) except -1:
    """Raise OptionError unless `words` has a bit for each id, and at least one is set."""
    cdef Py_ssize_t i, n = (n_vocab + 31) // 32
    cdef uint32_t set_bits = 0
    if words.shape[0] != n:
        raise OptionError(
            f"allowed_ids has {words.shape[0]} words of 32 bits; {n_vocab} ids take {n} words"
        )
    for i in range(n - 1):
        set_bits |= <uint32_t>words[i]
    # The last word's upper bits may be beyond the vocabulary.
    set_bits |= <uint32_t>words[n - 1] << (32 * n - n_vocab)
    if set_bits == 0:
        raise OptionError(
            f"allowed_ids leaves no token: set the bit of at least one id from 0 to {n_vocab - 1}"
        )
    return 0
