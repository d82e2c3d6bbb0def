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
    out.measures = NULL
    return out


# How many rows a pass may have if another model's logits of all its rows are kept. 64 rows of
# GPT-2's vocabulary take 13 MB.
cdef int32_t MAX_CROSS_ROWS = 64


cdef class MeasuredValues:
    """The values of a Measures (protocol.py) at n positions, and what computing them reads."""

    cdef gpt2c_measures c
    cdef float[:, ::1] values  # [n, n_values]
    cdef const float[::1] orders
    cdef const float[:, ::1] sets
    cdef float[:, ::1] other_logits  # of the rows of one pass
    cdef Model other  # or None
    cdef list others  # its sequences

    def __cinit__(self, Model model, measures, list others, Py_ssize_t n):
        memset(&self.c, 0, sizeof(self.c))
        self.other, self.others = measures.other, others
        self.c.n_values = measures.n_values
        self.values = empty((n, measures.n_values), np.float32, "the measures")
        self.c.has_second_moment = measures.second_moment
        self.c.n_orders = <int32_t>len(measures.orders)
        self.orders = np.array(measures.orders, dtype=np.float32)
        if self.c.n_orders:
            self.c.orders = &self.orders[0]
        self.sets = measures.sets
        self.c.n_sets = <int32_t>self.sets.shape[0]
        if self.c.n_sets:
            if self.sets.shape[1] != model.n_vocab:
                raise OptionError(
                    f"a set has {self.sets.shape[1]} entries and the model has {model.n_vocab} "
                    "tokens"
                )
            self.c.sets = &self.sets[0, 0]
        if self.other is not None:
            if self.other.n_vocab != model.n_vocab:
                raise OptionError(
                    f"the other model has {self.other.n_vocab} tokens and the model has "
                    f"{model.n_vocab}: both need the same vocabulary"
                )
            self.other_logits = empty((MAX_CROSS_ROWS, model.n_vocab), np.float32, "logits")

    cdef const gpt2c_measures *at(self, Py_ssize_t n_scored):
        """Let the next pass write the values of the positions from n_scored."""
        if n_scored == self.values.shape[0] or self.c.n_values == 0:
            return NULL
        self.c.values = &self.values[n_scored, 0]
        return &self.c

    cdef int feed_other(self, const gpt2c_feed *feeds, int32_t n_feeds, list indices) except -1:
        """Feed the same ids to the other model; indices are those of the feeds' sequences."""
        cdef gpt2c_feed copies[GPT2C_MAX_ROWS]
        cdef gpt2c_status status = GPT2C_OK
        cdef Sequence sequence
        cdef gpt2c_batch *batch
        cdef int32_t i
        cdef Turn turn = Turn(self.other)
        for i in range(n_feeds):
            sequence = self.others[<Py_ssize_t>indices[i]]
            copies[i] = feeds[i]
            copies[i].sequence = sequence.pointer
        while True:
            batch = turn.begin()
            try:
                with nogil:
                    status = gpt2c_forward(
                        self.other.pointer, gpt2c_turn_scratch(batch), copies, n_feeds,
                        &self.other_logits[0, 0],
                    )
                    gpt2c_turn_end(batch, &turn.turn)
            finally:
                turn.end()
            if not self.other.try_to_reclaim(status):
                break
        raise_status(status, "scoring with the other model", self.other)
        self.c.other_logits = &self.other_logits[0, 0]
        return 0


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
    cdef MeasuredValues measured
    cdef Py_ssize_t n_fed, n_scored
    cdef list fed_indices  # of the sequences of the last feeds

    def __cinit__(
        self, Model model, list sequences, list ids, list targets, int n_top, measures,
        list others,
    ):
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
        self.measured = MeasuredValues(model, measures, others, self.targets.shape[0])
        if self.measured.other is not None and len(others) != len(sequences):
            raise OptionError(
                f"score takes a sequence of the other model for each sequence; found {len(others)} "
                f"and {len(sequences)}"
            )

    cdef int32_t next_feeds(self, gpt2c_feed *feeds, int32_t room):
        """Write feeds of up to `room` ids in total; return the number of feeds."""
        cdef int32_t n_feeds = 0, n
        cdef Py_ssize_t i
        cdef Sequence sequence
        self.fed_indices = []
        for i in range(len(self.sequences)):
            if self.n_left[i] == 0:
                continue
            if room == 0:
                break
            sequence = self.sequences[i]
            # C scores either all ids of a feed or none.
            n = self.n_unscored[i] if self.n_unscored[i] else self.n_left[i]
            n = min(n, room)
            self.fed_indices.append(i)
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

    cdef int32_t max_rows(self) except -1:
        """Return how many rows the next pass may have."""
        cdef int32_t n = gpt2c_turn_rows(self.model.own_batch())
        if self.measured.other is None:
            return n
        return min(n, gpt2c_turn_rows(self.measured.other.own_batch()), MAX_CROSS_ROWS)

    def run(self):
        """Run the call; return the scores, the alternatives and the measures."""
        cdef gpt2c_feed feeds[GPT2C_MAX_ROWS]
        cdef gpt2c_scored_feeds scored
        cdef gpt2c_status status = GPT2C_OK
        cdef Py_ssize_t i
        cdef Turn turn = Turn(self.model)
        cdef MeasuredValues measured = self.measured
        cdef Claims claims = Claims(self.model, self.sequences)
        cdef Claims other_claims = None
        scored.feeds = feeds
        try:
            if measured.other is not None:
                other_claims = Claims(measured.other, measured.others)
            while self.n_fed < self.ids.shape[0]:
                scored.scores = scores_at(self.scores[self.n_scored:], self.top[self.n_scored:])
                scored.targets = NULL
                if scored.scores.scores != NULL:
                    scored.targets = &self.targets[self.n_scored]
                scored.scores.measures = measured.at(self.n_scored)
                scored.n_feeds = self.next_feeds(feeds, self.max_rows())
                if measured.other is not None:
                    measured.feed_other(feeds, scored.n_feeds, self.fed_indices)
                turn.score(&scored, &status)
                while self.model.try_to_reclaim(status):
                    turn.score(&scored, &status)
                raise_status(status, "scoring", self.model)
                for i in range(scored.n_feeds):
                    if feeds[i].wanted == GPT2C_LOGITS_ALL:
                        self.n_scored += feeds[i].n_tokens
                PyErr_CheckSignals()
        finally:
            if other_claims is not None:
                other_claims.end()
            claims.end()
        return self.scores, self.top, np.asarray(measured.values)
