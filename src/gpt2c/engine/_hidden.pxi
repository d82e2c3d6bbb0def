# Hidden states of several sequences in one pass, for Model.hidden_states. Included by _engine.pyx.

cdef class FeedingHidden:
    """One call of Model.hidden_states: feeds up to GPT2C_MAX_ROWS ids in each of its turns."""

    cdef Model model
    cdef list sequences
    cdef const int32_t[::1] ids
    cdef int32_t[::1] n_left  # per sequence: ids to feed
    cdef int32_t n_layers
    cdef object hidden  # float32 [n_ids, n_embd]
    cdef Py_ssize_t n_fed

    def __cinit__(self, Model model, list sequences, list ids, int32_t n_layers):
        if not len(sequences) == len(ids) > 0 or not all(map(len, ids)):
            raise OptionError(
                "hidden_states takes an array of ids for each sequence, none empty, and at least "
                f"one sequence; found {len(ids)} arrays and {len(sequences)} sequences"
            )
        if not 0 <= n_layers <= model.n_layer:
            raise OptionError(
                f"hidden_states runs 0 to {model.n_layer} blocks of this model; found {n_layers}"
            )
        self.model, self.sequences, self.n_layers = model, sequences, n_layers
        self.ids = np.concatenate(ids)
        check_ids(self.ids, model.n_vocab)
        self.n_left = np.array([len(part) for part in ids], dtype=np.int32)
        n = self.ids.shape[0]
        self.hidden = empty((n, model.n_embd), np.float32, f"the hidden states of {n} tokens")

    cdef int32_t next_feeds(self, gpt2c_feed *feeds, int32_t room):
        """Write feeds of up to `room` ids in total; return the number of feeds."""
        cdef int32_t n_feeds = 0, n
        cdef Py_ssize_t i
        cdef Sequence sequence
        for i in range(len(self.sequences)):
            n = min(self.n_left[i], room)
            if n == 0:
                continue
            sequence = self.sequences[i]
            feeds[n_feeds] = gpt2c_feed(
                sequence.pointer, &self.ids[self.n_fed], n, GPT2C_LOGITS_NONE
            )
            n_feeds += 1
            room -= n
            self.n_fed += n
            self.n_left[i] -= n
        return n_feeds

    def run(self):
        """Run the call; return the hidden states."""
        cdef gpt2c_feed feeds[GPT2C_MAX_ROWS]
        cdef gpt2c_status status = GPT2C_OK
        cdef gpt2c_batch *batch
        cdef int32_t n_feeds
        cdef Py_ssize_t begin
        cdef float[:, ::1] view = self.hidden
        cdef Turn turn = Turn(self.model)
        cdef Claims claims = Claims(self.model, self.sequences)
        try:
            while self.n_fed < self.ids.shape[0]:
                begin = self.n_fed
                n_feeds = self.next_feeds(feeds, gpt2c_turn_rows(self.model.own_batch()))
                while True:
                    batch = turn.begin()
                    try:
                        with nogil:
                            status = gpt2c_hidden_states(
                                self.model.pointer, gpt2c_turn_scratch(batch), feeds, n_feeds,
                                self.n_layers, &view[begin, 0],
                            )
                            gpt2c_turn_end(batch, &turn.turn)
                    finally:
                        turn.end()
                    if not self.model.try_to_reclaim(status):
                        break
                raise_status(status, "hidden states", self.model)
                PyErr_CheckSignals()
        finally:
            claims.end()
        return self.hidden
