# A text being continued, for Model.run. Included by _engine.pyx.

cdef class Job:
    """One text being continued."""

    cdef gpt2c_job job
    cdef readonly Sequence sequence
    cdef readonly bint cancelled
    cdef gpt2c_stage *stages
    cdef list arrays  # what the stages point to
    cdef object score_array, top_array
    cdef object drafts
    cdef Sequence draft_sequence
    cdef const int32_t[::1] prompt
    cdef const int32_t[::1] stop_ids
    cdef int32_t[::1] tokens

    def __cinit__(
        self, Model model not None, const int32_t[::1] ids not None, int32_t max_new_tokens,
        plan, uint64_t seed, uint32_t sample, const int32_t[::1] stop_ids not None,
        n_top=None, Sequence sequence=None, drafts=None,
    ):
        cdef int32_t room = model.n_positions - <int32_t>ids.shape[0] + 1
        if ids.shape[0] == 0 or room < 1 or max_new_tokens < 1:
            raise OptionError(f"a job needs 1 to {model.n_positions} ids; found {ids.shape[0]}")
        self.sequence = Sequence(model) if sequence is None else sequence
        self.check_model(model)
        if self.sequence.length >= ids.shape[0]:
            raise OptionError(f"a job's sequence has all of its {ids.shape[0]} ids already")
        self.prompt = ids
        self.check_ids(ids)
        self.job.n_fed = <int32_t>self.sequence.length
        self.stop_ids = stop_ids
        # The context ends a job before its tokens outgrow this buffer.
        self.tokens = np.empty(min(max_new_tokens, room), dtype=np.int32)
        self.job.sequence = self.sequence.pointer
        self.job.prompt = &self.prompt[0]
        self.job.n_prompt = <int32_t>ids.shape[0]
        self.job.sampling.seed = seed
        self.job.sampling.sample = sample
        self.job.sampling.draws = plan.draws
        self.take_stages(plan.stages)
        self.job.n_stop_ids = <int32_t>stop_ids.shape[0]
        if self.job.n_stop_ids:
            self.job.stop_ids = &self.stop_ids[0]
        self.job.max_new_tokens = max_new_tokens
        self.job.tokens = &self.tokens[0]
        if n_top is not None:
            self.take_scores(n_top)
        if drafts is not None:
            self.take_drafts(drafts)

    def __dealloc__(self):
        gpt2c_lookup_free(self.job.lookup)
        free(self.stages)

    cdef int take_drafts(self, drafts) except -1:
        cdef Model model = self.sequence.model
        raise_status(gpt2c_lookup_create(model.n_positions, &self.job.lookup), "drafts")
        self.drafts = drafts
        if drafts.model is not None:
            if drafts.model.n_vocab != model.n_vocab:
                raise OptionError("a draft model's vocabulary has the same size")
            self.draft_sequence = Sequence(drafts.model)
            self.job.draft_sequence = self.draft_sequence.pointer
        return 0

    cdef int check_ids(self, const int32_t[::1] ids) except -1:
        """Penalties use ids as places in tables."""
        cdef Py_ssize_t i
        for i in range(ids.shape[0]):
            if not 0 <= ids[i] < self.sequence.model.n_vocab:
                raise OptionError(f"id {ids[i]} is not in the vocabulary")
        return 0

    cdef int take_stages(self, stages) except -1:
        cdef gpt2c_stage *stage
        cdef const int32_t[::1] ids
        cdef const float[::1] values
        cdef Py_ssize_t i
        self.arrays = []
        self.stages = <gpt2c_stage *>calloc(len(stages) or 1, sizeof(gpt2c_stage))
        if self.stages == NULL:
            raise CacheMemoryError("not enough memory for the sampling options")
        for i, given in enumerate(stages):
            stage = &self.stages[i]
            stage.kind = STAGES[given.name]
            stage.value, stage.other = given.value, given.other
            stage.count, stage.span = given.count, given.span
            ids, values = given.ids, given.values
            if stage.kind == GPT2C_BAD_WORDS:
                self.check_words(ids)
            else:
                self.check_ids(ids)
            stage.n_ids = <int32_t>ids.shape[0]
            if stage.kind == GPT2C_LOGIT_BIAS and values.shape[0] != ids.shape[0]:
                raise OptionError("logit_bias needs a value for each id")
            self.arrays.append((ids, values))
            if ids.shape[0]:
                stage.ids = &ids[0]
            if values.shape[0]:
                stage.values = &values[0]
            if stage.kind == GPT2C_MIROSTAT:
                self.job.mirostat_mu = 2 * stage.value
            if stage.kind in (GPT2C_TOP_K, GPT2C_NO_REPEAT_NGRAM, GPT2C_DRY) and stage.count < 1:
                raise OptionError(f"{given.name}: its count is {stage.count}")
        self.job.sampling.stages = self.stages
        self.job.sampling.n_stages = <int32_t>len(stages)
        return 0

    cdef int check_words(self, const int32_t[::1] ids) except -1:
        cdef Py_ssize_t at = 0
        while at < ids.shape[0]:
            if ids[at] < 1 or ids[at] >= ids.shape[0] - at:
                raise OptionError("bad_words: a word's length is wrong")
            self.check_ids(ids[at + 1:at + 1 + ids[at]])
            at += 1 + ids[at]
        return 0

    cdef int take_scores(self, int n_top) except -1:
        if not 0 <= n_top <= GPT2C_MAX_TOP:
            raise OptionError(f"n_top is {n_top}; it must be from 0 to {GPT2C_MAX_TOP}")
        cdef unsigned char[::1] view
        self.score_array = np.empty(self.tokens.shape[0], dtype=SCORE_TYPE)
        self.top_array = np.empty((self.tokens.shape[0], n_top), dtype=TOP_TYPE)
        view = self.score_array.view(np.uint8)
        self.job.scores.scores = <gpt2c_token_score *>&view[0]
        self.job.scores.n_top = n_top
        if n_top:
            view = self.top_array.reshape(-1).view(np.uint8)
            self.job.scores.top = <gpt2c_alternative *>&view[0]
        return 0

    cdef int check_model(self, Model model) except -1:
        if self.sequence.model is not model:
            raise OptionError("this job belongs to another model")
        return 0

    def prefill(self, int n):
        """Feeds the prompt's first n ids, less than all, unless that was done."""
        if n > self.job.n_fed:
            if n >= self.job.n_prompt:
                raise OptionError(f"prefill of {n} ids, and the prompt has {self.job.n_prompt}")
            self.sequence.feed(self.prompt[self.job.n_fed:n], 0)
            self.job.n_fed = n

    def cancel(self):
        """Makes a `run` of this job in another thread return soon."""
        self.cancelled = True

    def next_logits(self):
        """Feeds what is next; float32 [n_vocab], the logits of the token to be chosen."""
        self.prefill(self.job.n_prompt - 1)
        if self.job.n_fed < self.job.n_prompt:
            logits = self.sequence.feed(self.prompt[self.job.n_fed:], 1)
            self.job.n_fed = self.job.n_prompt
            return logits[0]
        if self.job.n_tokens == 0:
            raise OptionError("next_logits: no token was chosen since the last ones")
        return self.sequence.feed(self.tokens[self.job.n_tokens - 1:self.job.n_tokens], 1)[0]

    def advance(self, const float[::1] logits not None, const float[::1] own not None):
        """Chooses the next token from logits [n_vocab]; `own` are the model's, for its score."""
        cdef gpt2c_status status
        cdef Model model = self.sequence.model
        if not logits.shape[0] == own.shape[0] == model.n_vocab:
            raise OptionError("advance takes a logit for each id")
        cdef Scratch scratch = None
        self.sequence.claim()
        try:
            scratch = model.begin()
            status = gpt2c_advance(
                model.pointer, scratch.pointer, &self.job, &logits[0], &own[0]
            )
        finally:
            self.sequence.release()
            if scratch is not None:
                model.end(scratch)
        raise_status(status, "choosing a token")

    def process(self, logits, const int32_t[::1] new_ids=None):
        """Logits [n_vocab] after the job's stages; those of removed ids are -infinity.

        With new_ids the text is the job's prompt and these, instead of the tokens generated.
        """
        cdef Model model = self.sequence.model
        cdef gpt2c_job job = self.job
        result = np.array(logits, dtype=np.float32)
        if result.shape != (model.n_vocab,):
            raise OptionError("process takes a logit for each id")
        if new_ids is not None:
            if new_ids.shape[0] > model.n_positions - job.n_prompt:
                raise OptionError("process: prompt and new ids are more than the context")
            self.check_ids(new_ids)
            job.n_tokens = <int32_t>new_ids.shape[0]
            if job.n_tokens:
                job.tokens = <int32_t *>&new_ids[0]
        cdef float[::1] view = result
        cdef gpt2c_status status
        cdef Scratch scratch = None
        self.sequence.claim()
        try:
            scratch = model.begin()
            status = gpt2c_process(model.pointer, scratch.pointer, &job, &view[0])
        finally:
            self.sequence.release()
            if scratch is not None:
                model.end(scratch)
        raise_status(status, "sampling")
        return result

    @property
    def n_tokens(self):
        """How many tokens were generated."""
        return self.job.n_tokens

    @property
    def draft_counts(self):
        """Forward calls after the prompt's, tokens that were drafted for them, and accepted."""
        return self.job.n_passes, self.job.n_drafted, self.job.n_accepted

    @property
    def finish_reason(self):
        """"length", "stop", "context", "nan", "nothing" to choose from, or None while it runs."""
        return FINISH_REASONS[<int>self.job.finish]

    @property
    def end_id(self):
        """The token that ended the text, which is not one of new_ids; None where none did."""
        return self.job.end_id if self.job.finish == GPT2C_FINISHED_STOP else None

    def new_ids(self, int begin=0):
        """The tokens generated, from the begin-th on."""
        return [self.tokens[i] for i in range(begin, self.job.n_tokens)]

    def scores(self):
        """Arrays of SCORE_TYPE [n] and TOP_TYPE [n, n_top] of the tokens generated."""
        if self.score_array is None:
            raise OptionError("this job was not asked for scores")
        end = self.job.n_tokens
        return self.score_array[:end].copy(), self.top_array[:end].copy()
