# What drafts tokens for the jobs of a model. Included by _engine.pyx.

# Drafters of a parent process. They are never freed, because a step may have been using them at the
# moment of the fork.
cdef list lost_drafters = []


cdef class Drafter:
    """Makes drafts of one kind for one model, and keeps their measured rates and times."""

    cdef gpt2c_drafter *pointer
    cdef tuple kind  # (lookup, packing, n_tokens)
    # A weak reference to the draft model, so that dropping the model frees its memory; or None.
    cdef object draft_model

    def __dealloc__(self):
        gpt2c_drafter_free(self.pointer)

    cdef bint makes(self, tuple kind, Model draft_model) except -1:
        """Whether this drafter makes drafts of this kind with this draft model."""
        own = None if self.draft_model is None else self.draft_model()
        return self.kind == kind and own is draft_model and (
            draft_model is not None or self.draft_model is None
        )


cdef Drafter new_drafter(Model model, tuple kind, Model draft_model):
    cdef Drafter drafter = Drafter.__new__(Drafter)
    lookup, packing, n_tokens = kind
    drafter.kind = kind
    cdef const gpt2c_model *draft = model.draft if packing else NULL
    if draft_model is not None:
        drafter.draft_model = weakref.ref(draft_model)
        draft = draft_model.pointer
    raise_status(gpt2c_drafter_create(&drafter.pointer), "drafts")
    raise_status(
        gpt2c_drafter_set(
            drafter.pointer, draft, GPT2C_DRAFT_LOOKUP if lookup else 0, n_tokens
        ),
        "the draft's buffers",
    )
    return drafter
