"""Sessions: feed, rollback, copy, and shared pages."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, model_on, random_weights
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

import gpt2c


@pytest.fixture
def model(backend):
    config = config_of()
    return model_on(backend, config, random_weights(config))


def test_feed_returns_the_next_tokens_logits(model):
    ids = [5, 3, 9, 9]
    whole = model.logits(ids)
    assert whole.shape == (4, 50)
    assert whole.dtype == np.float32
    session = model.session()
    every = session.feed(ids, all=True)
    np.testing.assert_array_equal(every, whole)
    assert session.ids == ids
    assert len(session) == 4
    last = model.session().feed(np.array(ids))
    assert last.shape == (50,)
    # NumPy's sums may differ with the shape; the engine's never differ.
    np.testing.assert_allclose(last, whole[-1], rtol=1e-5, atol=1e-5)


def test_a_session_matches_generate(model):
    new = model.generate([1, 2, 3], max_new_tokens=10)
    session = model.session()
    logits = session.feed([1, 2, 3])
    for token in new:
        assert logits.argmax() == token
        logits = session.feed(token)


def test_rollback(model):
    session = model.session()
    before = session.feed([1, 2, 3])
    session.feed([4, 5, 6, 7])
    session.rollback(5)
    assert session.ids == [1, 2]
    np.testing.assert_allclose(session.feed(3), before, rtol=1e-5, atol=1e-5)
    session.rollback(3)
    assert session.ids == []
    session.rollback(0)
    with pytest.raises(gpt2c.OptionError, match="n is 1"):
        session.rollback(1)
    with pytest.raises(gpt2c.OptionError):
        session.rollback(-1)


def test_copies_are_independent(model):
    a = model.session()
    a.feed([1, 2, 3])
    b = a.copy()
    a.feed([4])
    b.feed([5])
    c = b.copy()
    c.rollback(2)
    c.feed([7, 8, 9])
    # Each has its own ids, whatever the others fed after the copy.
    for session, ids in ((a, [1, 2, 3, 4]), (b, [1, 2, 3, 5]), (c, [1, 2, 7, 8, 9])):
        assert session.ids == ids
        fresh = model.session()
        fresh.feed(ids)
        np.testing.assert_allclose(session.feed(6), fresh.feed(6), rtol=1e-5, atol=1e-5)


def test_errors_leave_a_session_unchanged(model):
    session = model.session()
    session.feed([1, 2, 3])
    for bad, error in [
        ([50], ValueError),
        ([-1], ValueError),
        ([], ValueError),
        ([1.0], TypeError),
        ("text", TypeError),
        (True, TypeError),
        (None, TypeError),
        ([1] * 38, gpt2c.ContextError),
    ]:
        with pytest.raises(error):
            session.feed(bad)
        assert session.ids == [1, 2, 3]
    full = session.feed([1] * 37, all=True)
    assert full.shape == (37, 50)
    with pytest.raises(gpt2c.ContextError, match="1 tokens after 40"):
        session.feed(1)


def test_no_ids_with_all_give_an_empty_matrix(model):
    assert model.session().feed([], all=True).shape == (0, 50)
    assert model.logits([]).shape == (0, 50)


def test_logits_longer_than_the_context(model):
    with pytest.raises(gpt2c.ContextError, match="41 tokens"):
        model.logits([1] * 41)


class Sessions(RuleBasedStateMachine):
    """Feed, rollback and copy in any order give the same bits as a new session."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        # 150 positions need three pages of 64.
        config = config_of(n_positions=150, n_layer=1)
        self.model = model_on(ISAS[-1], config, random_weights(config))

    @rule(target=sessions)
    def start(self):
        return self.model.session()

    @rule(session=sessions, n=st.sampled_from([1, 2, 5, 60, 64, 70]), seed=st.integers(0, 9))
    def feed(self, session, n, seed):
        n = min(n, 150 - len(session))
        if n:
            ids = np.random.default_rng(seed).integers(0, 50, n)
            logits = session.feed(ids)
            np.testing.assert_array_equal(logits, self.model.logits(session.ids)[-1])

    @rule(session=sessions, n=st.sampled_from([0, 1, 3, 64, 150]))
    def rollback(self, session, n):
        session.rollback(min(n, len(session)))

    @rule(session=sessions)
    def check(self, session):
        """A copy continues like a new session, whatever other copies did."""
        if 0 < len(session) < 150:
            again = self.model.logits([*session.ids, 7])[-1]
            np.testing.assert_array_equal(session.copy().feed(7), again)

    @rule(target=sessions, session=sessions)
    def copy(self, session):
        return session.copy()

    @rule(session=consumes(sessions))
    def drop(self, session):
        del session


if ISAS:
    TestSessions = Sessions.TestCase
    TestSessions.settings = settings(max_examples=cases(60), stateful_step_count=30)
