# A client of the running batch that waits for the jobs of many tasks. Included by _engine.pyx.

@cython.no_gc
cdef class SharedWaiter:
    """See EngineSharedWaiter."""

    cdef Model model
    cdef gpt2c_caller caller
    cdef list jobs  # that were added, and not removed or returned by `wait` yet
    cdef Py_ssize_t n_forks

    # `jobs` has a job if and only if the batch may point to it. So both change together, in a
    # critical section.

    def __cinit__(self, Model model not None):
        self.model, self.jobs = model, []
        memset(&self.caller, 0, sizeof(self.caller))
        self.n_forks = len(forking_threads)

    def __dealloc__(self):
        cdef Job job
        cdef gpt2c_job *pointer
        if self.jobs is not None and self.n_forks == len(forking_threads):
            for job in list(self.jobs):  # the batch has pointers to the jobs and to `caller`
                pointer = &job.job
                gpt2c_batch_leave(self.model.batch, &pointer, 1)
                self.end(job)

    cdef int check_fork(self) except -1:
        if self.n_forks != len(forking_threads):
            raise ForkError("this waiter belongs to the parent process; make another one")
        return 0

    def add(self, Job job not None):
        """See EngineSharedWaiter.add."""
        cdef gpt2c_job *pointer = &job.job
        cdef gpt2c_batch *batch
        cdef gpt2c_status status
        self.check_fork()
        if job in self.jobs:
            raise OptionError("the job was already added, and has not come back from wait")
        self.model.hold_open(job)
        try:
            job.sequence.claim_for(self.model)
            try:
                if job.drafts is not None:
                    if job.drafts.model is not None:
                        held_draft_model(job.drafts.model, job)
                    self.model.set_drafter(job, may_pack=False)
                batch = self.model.own_batch()
                job.job.rest_at = job.job.n_tokens + 1
                with cython.critical_section(self):
                    status = gpt2c_batch_resume(batch, &self.caller, &pointer, 1)
                    if status == GPT2C_OK:
                        self.jobs.append(job)
                raise_status(status, "the running batch")
            except BaseException:
                job.sequence.release()
                raise
        except BaseException:
            self.let_models_go(job)
            raise

    cdef bint take(self, Job job, gpt2c_batch *rested_in=NULL) except -1:
        """Remove a job, which no other thread has removed; with rested_in, only if it rests.

        Return whether the job was removed.
        """
        with cython.critical_section(self):
            if job not in self.jobs:
                return False
            if rested_in != NULL and not gpt2c_batch_has_rested(rested_in, &job.job):
                return False
            self.jobs.remove(job)
            return True

    cdef int end(self, Job job) except -1:
        """End what `add` began, for a job that was removed."""
        job.sequence.release()
        return self.let_models_go(job)

    cdef int let_models_go(self, Job job) except -1:
        cdef Model draft_model
        if job.drafts is not None and job.drafts.model is not None:
            draft_model = job.drafts.model
            draft_model.let_go(job)
        return self.model.let_go(job)

    def remove(self, Job job not None):
        """See EngineSharedWaiter.remove."""
        cdef gpt2c_job *pointer = &job.job
        self.check_fork()
        if job not in self.jobs:
            return
        thread = get_ident()
        self.model.hold_open(thread)  # `wait` in another thread may return the job at any time
        try:
            with nogil:
                gpt2c_batch_leave(self.model.batch, &pointer, 1)
            if self.take(job):
                self.end(job)
        finally:
            self.model.let_go(thread)

    def wake(self):
        """See EngineSharedWaiter.wake."""
        self.check_fork()
        self.model.wake(&self.caller)

    def wait(self, double seconds):
        """See EngineSharedWaiter.wait."""
        cdef Job job
        cdef list rested = []
        self.check_fork()
        cdef gpt2c_batch *batch = self.model.own_batch()
        self.model.hold_open(self)
        try:
            with nogil:
                gpt2c_batch_wait(batch, &self.caller, seconds)
            for job in list(self.jobs):
                if self.take(job, batch):
                    self.end(job)
                    if job.drafts is not None:
                        try:
                            self.model.set_drafter(job)  # may pack the weights: this takes time
                        except Exception as error:
                            job.failure = error
                    rested.append(job)
        finally:
            self.model.let_go(self)
        return rested
