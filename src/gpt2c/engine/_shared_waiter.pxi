# A client of the running batch that waits for the jobs of many tasks. Included by _engine.pyx.

@cython.no_gc
cdef class SharedWaiter:
    """See EngineSharedWaiter."""

    cdef Model model
    cdef gpt2c_caller caller
    cdef list jobs  # that were added, and not removed or returned by `wait` yet
    cdef Py_ssize_t n_forks

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
                job.sequence.release()
                self.forget(job)

    cdef int check_fork(self) except -1:
        if self.n_forks != len(forking_threads):
            raise ForkError("this waiter belongs to the parent process; make another one")
        return 0

    def add(self, Job job not None):
        """See EngineSharedWaiter.add."""
        cdef gpt2c_job *pointer = &job.job
        cdef gpt2c_batch *batch
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
                self.jobs.append(job)
                raise_status(
                    gpt2c_batch_resume(batch, &self.caller, &pointer, 1), "the running batch"
                )
            except BaseException:
                job.sequence.release()
                raise
        except BaseException:
            self.forget(job)
            raise

    cdef int forget(self, Job job) except -1:
        cdef Model draft_model
        if job in self.jobs:
            self.jobs.remove(job)
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
        with nogil:
            gpt2c_batch_leave(self.model.batch, &pointer, 1)
        if job in self.jobs:  # otherwise `wait` in another thread has returned it meanwhile
            job.sequence.release()
            self.forget(job)

    def wake(self):
        """See EngineSharedWaiter.wake."""
        self.check_fork()
        gpt2c_batch_wake(self.model.own_batch(), &self.caller)

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
                if job in self.jobs and gpt2c_batch_has_rested(batch, &job.job):
                    job.sequence.release()
                    self.forget(job)
                    if job.drafts is not None:
                        try:
                            self.model.set_drafter(job)  # may pack the weights: this takes time
                        except Exception as error:
                            job.failure = error
                    rested.append(job)
        finally:
            self.model.let_go(self)
        return rested
