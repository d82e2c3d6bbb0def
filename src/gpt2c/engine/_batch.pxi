# Clients of the running batch (csrc/batch/): blocking calls, which wait for their own jobs, and
# turns. Included by _engine.pyx.
#
# The jobs of a blocking call rest together. _shared_waiter.pxi has the client that waits for jobs
# of many tasks, each of which rests by itself.
#
# Python code, such as a signal handler, runs only between waits, never while C leads. C's list of
# ready jobs is reallocated only while the thread has the GIL, which os.fork needs too. So a forked
# child never finds the list half reallocated, and can empty it.

# How many seconds a wait lasts at most. The main thread returns often, so that Python can handle
# Ctrl-C; other threads return now and then, in case the process exits.
cdef double SIGNAL_INTERVAL = 0.02
cdef double OTHER_INTERVAL = 0.5


cdef double wait_interval():
    return SIGNAL_INTERVAL if get_ident() == main_thread().ident else OTHER_INTERVAL


cdef class Claims:
    """What a call holds: the model's weights (shared) and its sequences (exclusively)."""

    cdef Model model
    cdef list sequences
    cdef object thread

    def __cinit__(self, Model model, list sequences):
        cdef Sequence sequence
        self.model, self.sequences, self.thread = model, [], get_ident()
        model.hold_open(self.thread)
        try:
            for sequence in sequences:
                if sequence is None:
                    raise OptionError("expected a sequence; found None")
                sequence.claim_for(model)
                self.sequences.append(sequence)
        except BaseException:
            self.end()
            raise

    cdef int end(self) except -1:
        cdef Sequence sequence
        for sequence in self.sequences:
            sequence.release()
        return self.model.let_go(self.thread)


cdef class BlockingCall:
    """A call that waits for its own jobs. As soon as one of them rests, all of them do."""

    cdef Model model
    cdef gpt2c_caller caller
    cdef gpt2c_job **pointers
    cdef int32_t n_jobs

    def __cinit__(self, Model model, int32_t n_jobs, *more):
        self.model, self.n_jobs = model, n_jobs
        self.pointers = <gpt2c_job **>calloc(n_jobs or 1, sizeof(gpt2c_job *))
        if self.pointers == NULL:
            raise CacheMemoryError("not enough memory to run the jobs")

    def __dealloc__(self):
        free(self.pointers)

    cdef int run_until_rest(self) except -1:
        """Let the jobs run until they come to rest."""
        cdef int n = 0
        cdef double seconds = wait_interval()
        cdef Py_ssize_t n_forks = -1
        try:
            while n == 0:
                if n_forks != len(forking_threads):
                    if n_forks >= 0 and self.rested_in_parent():
                        return 0
                    n_forks = len(forking_threads)
                    self.resume()
                with nogil:
                    n = gpt2c_batch_wait(self.model.batch, &self.caller, seconds)
                PyErr_CheckSignals()
        except BaseException:
            self.leave()
            raise
        return 0

    cdef int resume(self) except -1:
        """Resume the jobs. A forked child does it again, because its batch has no jobs."""
        cdef gpt2c_batch *batch = self.model.own_batch()
        cdef int32_t i
        cdef gpt2c_status status
        memset(&self.caller, 0, sizeof(self.caller))
        self.caller.rests_together = True
        for i in range(self.n_jobs):
            if self.pointers[i].member.is_ready and self.pointers[i].member.is_in_step:
                raise ForkError(
                    "this process was forked while this text was being generated; call again "
                    "to generate it in this process"
                )
            self.pointers[i].member.is_ready = False
        status = gpt2c_batch_resume(batch, &self.caller, self.pointers, self.n_jobs)
        raise_status(status, "the running batch")
        return 0

    cdef bint rested_in_parent(self) noexcept:
        """Whether a job had come to rest before the fork."""
        cdef int32_t i
        for i in range(self.n_jobs):
            if (
                self.pointers[i].finish != GPT2C_RUNNING or self.pointers[i].status != GPT2C_OK
                or self.pointers[i].n_tokens >= self.pointers[i].rest_at
            ) and not self.pointers[i].member.is_in_step:
                return True
        return False

    cdef int leave(self) except -1:
        """Take the jobs out of the batch."""
        cdef gpt2c_batch *batch = self.model.own_batch()
        with nogil:
            gpt2c_batch_leave(batch, self.pointers, self.n_jobs)
        return 0

    cdef bint needs_retry(self, str what) except -1:
        """Return whether to run the jobs again, because a step lacked memory.

        This is so if memory was freed since, or if the jobs still wait for room in the KV cache.
        Otherwise raise the error of the first job whose step failed; that job can be run again.
        """
        cdef int32_t i
        cdef gpt2c_status status = GPT2C_OK, found
        cdef bint waits_for_room = True
        for i in range(self.n_jobs):
            found, self.pointers[i].status = self.pointers[i].status, GPT2C_OK
            if found != GPT2C_OK and status == GPT2C_OK:
                status = found
                waits_for_room = not self.pointers[i].member.has_given_up
        if self.model.try_to_reclaim(status) or (status == GPT2C_CACHE_FULL and waits_for_room):
            return True
        raise_status(status, what, self.model)
        return False


cdef class Turn:
    """A turn for a pass outside the running batch.

    Between `begin` and `end`, nothing may run a signal handler, which could call the model.
    """

    cdef Model model
    cdef gpt2c_turn turn
    cdef Py_ssize_t n_forks

    def __cinit__(self, Model model):
        self.model = model
        self.n_forks = -1

    cdef gpt2c_batch *begin(self, const gpt2c_scored_feeds *scored=NULL) except NULL:
        """Wait for the turn, or until another turn has scored `scored`."""
        cdef int is_over = False
        cdef double seconds = wait_interval()
        self.turn.scored = scored
        try:
            while not is_over:
                if self.n_forks != len(forking_threads):
                    self.n_forks = -1
                    if self.turn.is_joined:
                        raise ForkError(
                            "this process was forked while this text was being scored; call again "
                            "to score it in this process"
                        )
                    memset(&self.turn, 0, sizeof(self.turn))
                    self.turn.scored = scored
                    self.model.own_batch()
                    self.n_forks = len(forking_threads)
                with nogil:
                    is_over = gpt2c_turn_wait(self.model.batch, &self.turn, seconds)
                if not is_over:
                    PyErr_CheckSignals()
        except BaseException:
            self.end()
            raise
        return self.model.batch

    cdef int score(self, const gpt2c_scored_feeds *scored, gpt2c_status *status) except -1:
        """Score the feeds in a pass that other calls may share."""
        cdef gpt2c_batch *batch = self.begin(scored)
        with nogil:
            status[0] = gpt2c_turn_score(batch, &self.turn)
        return 0

    cdef int end(self) noexcept:
        if self.n_forks == len(forking_threads):
            with nogil:
                gpt2c_turn_end(self.model.batch, &self.turn)
        return 0


cdef class Running(BlockingCall):
    """One call of Model.run."""

    cdef list jobs
    cdef list draft_models  # those of the jobs, which the call holds

    def __cinit__(self, Model model, int32_t n_jobs, list jobs):
        cdef Job job
        cdef int i
        self.jobs, self.draft_models = jobs, []
        for i, job in enumerate(jobs):
            self.pointers[i] = &job.job

    def run(self, int max_steps):
        """Run the jobs for max_steps steps, or until one finishes or is cancelled."""
        cdef Job job
        cdef list sequences = []
        for job in self.jobs:
            sequences.append(job.sequence)
            if job.job.finish != GPT2C_RUNNING:
                raise OptionError("run takes jobs that have not finished")
        cdef Claims claims = Claims(self.model, sequences)
        try:
            self.hold_draft_models(claims.thread)
            while max_steps > 0:
                for job in self.jobs:
                    if job.job.finish != GPT2C_RUNNING or job.cancelled:
                        return
                counts_as_step = self.set_limits(max_steps)
                self.run_until_rest()
                if self.needs_retry("a cache page or the logits"):
                    continue
                if max_steps != INT32_MAX and counts_as_step:
                    max_steps -= 1
        finally:
            self.let_draft_models_go(claims.thread)
            claims.end()

    cdef int hold_draft_models(self, thread) except -1:
        cdef Job job
        for job in self.jobs:
            if job.drafts is not None and job.drafts.model is not None:
                if job.drafts.model not in self.draft_models:
                    self.draft_models.append(held_draft_model(job.drafts.model, thread))
        return 0

    cdef int let_draft_models_go(self, thread) except -1:
        cdef Model draft_model
        for draft_model in self.draft_models:
            draft_model.let_go(thread)
        return 0

    cdef bint set_limits(self, int max_steps) except -1:
        """Set each job's drafter, and the number of new tokens at which it rests.

        Return False if a job may rest earlier than after a step, to have the weights packed.
        """
        cdef Job job
        cdef int32_t pack_at
        cdef bint counts_as_step = True
        for job in self.jobs:
            pack_at = 0
            if job.drafts is not None:
                pack_at = self.model.set_drafter(job)
            job.job.rest_at = INT32_MAX if max_steps == INT32_MAX else job.job.n_tokens + 1
            if pack_at > job.job.n_tokens and pack_at < job.job.rest_at:
                job.job.rest_at = pack_at
                counts_as_step = False
        return counts_as_step


cdef class Feeding(BlockingCall):
    """One call of Sequence.feed. Its job only feeds."""

    cdef Sequence sequence
    cdef gpt2c_job job
    cdef const int32_t[::1] ids
    cdef float[:, ::1] logits

    def __cinit__(self, Model model, int32_t n_jobs, Sequence sequence, ids, logits):
        self.sequence, self.ids, self.logits = sequence, ids, logits
        cdef Py_ssize_t n = self.ids.shape[0], n_rows = self.logits.shape[0]
        memset(&self.job, 0, sizeof(self.job))
        self.job.is_feed = True
        self.job.sequence = sequence.pointer
        self.job.prompt = &self.ids[0]
        self.job.n_prompt = <int32_t>n
        self.job.rest_at = INT32_MAX
        if n_rows:
            self.job.wanted = GPT2C_LOGITS_LAST if n_rows == 1 else GPT2C_LOGITS_ALL
            self.job.logits_out = &self.logits[0, 0]
        self.pointers[0] = &self.job

    def run(self):
        """Feed the ids. An error leaves the sequence as it was."""
        cdef Claims claims = Claims(self.model, [self.sequence])
        cdef int32_t had = gpt2c_sequence_length(self.sequence.pointer)
        self.job.n_before = had
        try:
            while self.job.finish != GPT2C_FINISHED_FED:
                self.run_until_rest()
                self.needs_retry(f"feeding {self.job.n_prompt} tokens after {had}")
        except BaseException:
            gpt2c_sequence_truncate(self.sequence.pointer, had)
            raise
        finally:
            claims.end()
