# The jobs of Model.run and of waiters. Included by _engine.pyx.

@cython.no_gc
cdef class Job:
    """See EngineJob."""

    cdef gpt2c_job job
    cdef readonly Sequence sequence
    cdef readonly bint cancelled
    cdef object plan
    cdef Stages stages
    cdef object score_array, top_array
    cdef object drafts
    cdef Drafter drafter
    cdef object failure  # the exception that a waiter caught after the last step, or None
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
            raise OptionError(
                f"a job takes 1 to {model.n_positions} ids and at least 1 new token; found "
                f"{ids.shape[0]} ids and max_new_tokens {max_new_tokens}"
            )
        self.sequence = Sequence(model) if sequence is None else sequence
        if self.sequence.model is not model:
            raise OptionError("the job's sequence belongs to another model")
        if self.sequence.length >= ids.shape[0]:
            raise OptionError(
                f"a job's sequence must hold fewer than the job's {ids.shape[0]} ids; found "
                f"{self.sequence.length}"
            )
        self.prompt = ids
        check_ids(ids, model.n_vocab)
        self.stop_ids = stop_ids
        # A job ends after max_new_tokens, or earlier if the context is full: its tokens fit.
        self.tokens = np.empty(min(max_new_tokens, room), dtype=np.int32)
        self.job.sequence = self.sequence.pointer
        self.job.prompt = &self.prompt[0]
        self.job.n_prompt = <int32_t>ids.shape[0]
        self.job.sampling.seed = seed
        self.job.sampling.sample = sample
        self.job.sampling.do_sample = plan.draws
        self.plan = plan
        self.stages = Stages(plan.stages, model.n_vocab)
        self.stages.attach_to(&self.job)
        self.job.n_stop_ids = <int32_t>stop_ids.shape[0]
        if self.job.n_stop_ids:
            self.job.stop_ids = &self.stop_ids[0]
        self.job.max_new_tokens = max_new_tokens
        self.job.tokens = &self.tokens[0]
        if n_top is not None:
            self.score_array, self.top_array = empty_scores(self.tokens.shape[0], n_top)
            self.job.scores = scores_at(self.score_array, self.top_array)
        if drafts is not None:
            self.set_drafts(drafts)

    def __dealloc__(self):
        if self.sequence is not None:
            self.sequence.model.take_out(&self.job)
        gpt2c_lookup_free(self.job.lookup)

    cdef int set_drafts(self, drafts) except -1:
        cdef Model model = self.sequence.model
        raise_status(gpt2c_lookup_create(model.n_positions, &self.job.lookup), "drafts")
        self.drafts = drafts
        if drafts.model is not None:
            if drafts.model.n_vocab != model.n_vocab:
                raise OptionError(
                    f"the draft model has {drafts.model.n_vocab} tokens and the model has "
                    f"{model.n_vocab}: both need the same vocabulary"
                )
            self.draft_sequence = Sequence(drafts.model)
            self.job.draft_sequence = self.draft_sequence.pointer
        return 0

    def prefill(self, int n):
        """See EngineJob.prefill."""
        cdef int32_t n_fed = gpt2c_sequence_length(self.job.sequence)
        if n > n_fed:
            if n >= self.job.n_prompt:
                raise OptionError(
                    f"prefill takes fewer ids than the prompt's {self.job.n_prompt}; found {n}"
                )
            self.reserve_pages(n - n_fed)
            self.sequence.feed(self.prompt[n_fed:n], 0)

    cdef int reserve_pages(self, int32_t n_tokens) except -1:
        """Reserve the pages of n_tokens at once, so that feeding them never waits for pages.

        Drop finished texts if they hold the pages. Raise CacheMemoryError if others do.
        """
        cdef Model model = self.sequence.model
        cdef gpt2c_status status
        while True:
            self.sequence.claim()
            try:
                status = cache_reserve(self.sequence.pointer, n_tokens)
            finally:
                self.sequence.release()
            if not model.try_to_reclaim(status):
                break
        raise_status(status, "the first tokens of a prompt", model)
        return 0

    def cancel(self):
        """See EngineJob.cancel."""
        self.cancelled = True
        self.sequence.model.cancel(&self.job)

    def raise_failure(self):
        """See EngineJob.raise_failure."""
        cdef gpt2c_status status = self.job.status
        cdef Model model = self.sequence.model
        failure, self.failure = self.failure, None
        self.job.status = GPT2C_OK
        if failure is not None:
            raise failure
        waits_for_room = status == GPT2C_CACHE_FULL and not self.job.member.has_given_up
        if model.try_to_reclaim(status) or waits_for_room:
            return
        raise_status(status, "a cache page or the logits", self.sequence.model)

    def set_allowed_ids(self, mask):
        """See EngineJob.set_allowed_ids."""
        plan = self.plan.with_allowed_ids(mask)
        cdef Stages stages = Stages(plan.stages, self.sequence.model.n_vocab)
        cdef float mirostat_mu = self.job.mirostat_mu
        self.sequence.claim()  # raises if a step may be reading the old stages
        stages.attach_to(&self.job)
        self.job.mirostat_mu = mirostat_mu
        self.plan, self.stages = plan, stages
        self.sequence.release()

    def next_logits(self):
        """See EngineJob.next_logits."""
        cdef int32_t n_prompt = self.job.n_prompt, n_tokens = self.job.n_tokens
        cdef int32_t n_fed = gpt2c_sequence_length(self.job.sequence)
        if n_fed == n_prompt + n_tokens:
            raise OptionError("next_logits was called twice: call advance in between")
        if n_fed < n_prompt and n_tokens == 0:
            return self.sequence.feed(self.prompt[n_fed:], 1)[0]
        if n_fed < n_prompt:
            self.sequence.feed(self.prompt[n_fed:], 0)
            n_fed = n_prompt
        return self.sequence.feed(self.tokens[n_fed - n_prompt:n_tokens], 1)[0]

    def advance(self, const float[::1] logits not None, const float[::1] raw_logits not None):
        """See EngineJob.advance."""
        cdef gpt2c_status status
        cdef Model model = self.sequence.model
        if not logits.shape[0] == raw_logits.shape[0] == model.n_vocab:
            raise OptionError(
                f"logits and raw_logits must have {model.n_vocab} elements each; found "
                f"{logits.shape[0]} and {raw_logits.shape[0]}"
            )
        cdef Scratch scratch = model.begin([self.sequence])
        try:
            status = gpt2c_advance(
                model.pointer, scratch.pointer, &self.job, &logits[0], &raw_logits[0]
            )
        finally:
            model.end(scratch)
        raise_status(status, "choosing a token")

    @property
    def n_tokens(self):
        """See EngineJob.n_tokens."""
        return self.job.n_tokens

    @property
    def draft_counts(self):
        """See EngineJob.draft_counts."""
        return self.job.n_passes, self.job.n_drafted, self.job.n_accepted

    @property
    def finish_reason(self):
        """See EngineJob.finish_reason."""
        return FINISH_REASONS[<int>self.job.finish]

    @property
    def end_id(self):
        """See EngineJob.end_id."""
        return self.job.end_id if self.job.finish == GPT2C_FINISHED_STOP else None

    def new_ids(self, int begin=0):
        """See EngineJob.new_ids."""
        return [self.tokens[i] for i in range(begin, self.job.n_tokens)]

    def scores(self):
        """See EngineJob.scores."""
        if self.score_array is None:
            raise OptionError("this job has no scores: it was made without n_top")
        end = self.job.n_tokens
        return self.score_array[:end].copy(), self.top_array[:end].copy()

    def end_scores(self):
        """See EngineJob.end_scores."""
        if self.score_array is None or self.end_id is None:
            return None
        begin = self.job.n_tokens
        return (self.score_array[begin : begin + 1].copy(),
                self.top_array[begin : begin + 1].copy())
