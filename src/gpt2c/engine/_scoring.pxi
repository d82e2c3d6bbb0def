# Scoring given tokens, for Model.score. Included by _engine.pyx.

cdef tuple empty_scores(Py_ssize_t n, int n_top):
    """Return arrays for the scores of n tokens, SCORE_TYPE [n] and TOP_TYPE [n, n_top]."""
    if not 0 <= n_top <= GPT2C_MAX_TOP:
        raise OptionError(f"n_top is {n_top}; it must be from 0 to {GPT2C_MAX_TOP}")
    return empty(n, SCORE_TYPE, "the scores"), empty((n, n_top), TOP_TYPE, "the scores")


cdef gpt2c_scores scores_at(scores, top):
    """Return a gpt2c_scores that points to two arrays of empty_scores; NULL for an empty array."""
    cdef unsigned char[::1] score_bytes = scores.view(np.uint8)
    cdef unsigned char[::1] top_bytes = top.reshape(-1).view(np.uint8)
    cdef gpt2c_scores out
    out.n_top = top.shape[1]
    out.scores = <gpt2c_token_score *>&score_bytes[0] if score_bytes.shape[0] else NULL
    out.top = <gpt2c_alternative *>&top_bytes[0] if top_bytes.shape[0] else NULL
    return out


cdef class Scoring:
    """One call of Model.score: feeds up to GPT2C_MAX_ROWS ids in each of its turns.

    Other calls may share the pass of a turn.

    The first n_unscored ids of a sequence have no targets and are fed without scores.
    """

    cdef Model model
    cdef list sequences
    cdef const int32_t[::1] ids, targets
    cdef int32_t[::1] n_left, n_unscored  # per sequence: ids to feed, and those without targets
    cdef object scores, top
    cdef Py_ssize_t n_fed, n_scored

    def __cinit__(self, Model model, list sequences, list ids, list targets, int n_top):
        cdef Py_ssize_t i
        self.model, self.sequences = model, sequences
        self.ids, self.targets = np.concatenate(ids), np.concatenate(targets)
        self.n_left = np.array([len(part) for part in ids], dtype=np.int32)
        n_scored = np.array([len(part) for part in targets], dtype=np.int32)
        self.n_unscored = np.asarray(self.n_left) - n_scored
        for i in range(len(sequences)):
            if self.n_unscored[i] < 0 or self.n_left[i] < 1:
                raise OptionError(
                    f"score takes at least one id and at most as many targets as ids; sequence {i} "
                    f"has {self.n_left[i]} ids and {n_scored[i]} targets"
                )
        check_ids(self.targets, model.n_vocab)
        self.scores, self.top = empty_scores(self.targets.shape[0], n_top)

    cdef int32_t next_feeds(self, gpt2c_feed *feeds, int32_t room):
        """Write feeds of up to `room` ids in total; return the number of feeds."""
        cdef int32_t n_feeds = 0, n
        cdef Py_ssize_t i
        cdef Sequence sequence
        for i in range(len(self.sequences)):
            if self.n_left[i] == 0:
                continue
            if room == 0:
                break
            sequence = self.sequences[i]
            # C scores either all ids of a feed or none.
            n = self.n_unscored[i] if self.n_unscored[i] else self.n_left[i]
            n = min(n, room)
            feeds[n_feeds].sequence = sequence.pointer
            feeds[n_feeds].tokens = &self.ids[self.n_fed]
            feeds[n_feeds].n_tokens = n
            feeds[n_feeds].wanted = GPT2C_LOGITS_NONE if self.n_unscored[i] else GPT2C_LOGITS_ALL
            n_feeds += 1
            room -= n
            self.n_fed += n
            self.n_left[i] -= n
            if self.n_unscored[i]:
                self.n_unscored[i] -= n
            if self.n_left[i]:
                break  # the next pass continues with this sequence
        return n_feeds

    def run(self):
        """Run the call; return the scores and the alternatives."""
        cdef gpt2c_feed feeds[GPT2C_MAX_ROWS]
        cdef gpt2c_scored_feeds scored
        cdef gpt2c_status status = GPT2C_OK
        cdef Py_ssize_t i
        cdef Turn turn = Turn(self.model)
        cdef Claims claims = Claims(self.model, self.sequences)
        scored.feeds = feeds
        try:
            while self.n_fed < self.ids.shape[0]:
                scored.scores = scores_at(self.scores[self.n_scored:], self.top[self.n_scored:])
                scored.targets = NULL
                if scored.scores.scores != NULL:
                    scored.targets = &self.targets[self.n_scored]
                scored.n_feeds = self.next_feeds(feeds, gpt2c_turn_rows(self.model.own_batch()))
                turn.score(&scored, &status)
                while self.model.try_to_reclaim(status):
                    turn.score(&scored, &status)
                raise_status(status, "scoring", self.model)
                for i in range(scored.n_feeds):
                    if feeds[i].wanted == GPT2C_LOGITS_ALL:
                        self.n_scored += feeds[i].n_tokens
                PyErr_CheckSignals()
        finally:
            claims.end()
        return self.scores, self.top
