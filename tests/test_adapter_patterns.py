"""Regular expressions from files: Python's matches, in time that no pattern can make explode."""

from __future__ import annotations

import re
import time

import pytest
from conftest import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c.weights.adapters.patterns import Pattern, PatternError

_ATOMS = (
    "a", "b", "1", "_", ".", r"\.", "[ab]", "[^a]", r"\d", r"\W", "(a|b)", "(?:a*b)", "(a?)",
    "(a|)", "[a-c_]", "[^.]", r"[\d_]", "[]a]", "[a-]", "(b(a|1)+)", "a-b",
)  # fmt: skip
_COUNTS = ("", "", "", "*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{0,3}", "{1,}")
_PARTS = st.one_of(
    st.tuples(st.sampled_from(_ATOMS), st.sampled_from(_COUNTS)).map("".join),
    st.sampled_from(["^", "$", "|"]),
)


@settings(max_examples=cases(500))
@given(st.lists(_PARTS, min_size=1, max_size=6).map("".join), st.text("ab1._-", max_size=7))
def test_matches_are_pythons(pattern: str, name: str) -> None:
    assert Pattern(pattern).fullmatch(name) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        "(?i)a", "(?=a)", "(?!a)", "(?<=a)", "(?P<n>a)", r"(a)\1", r"\bA", r"\Aa", "a**", "a{2}{3}",
        "a*+", "(?>a)", "*a", "(a", "a)", "[a", "a\\", "{x}", "a{3,2}", "[z-a]", r"[\d-z]", "^*",
        "(" * 21 + ")" * 21, "a" * 1001, "a{1001}", "(a{99}){99}", "((){9999}){9999}",
    ],
)  # fmt: skip
def test_what_is_not_a_plain_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b", "(a|a)*b", "(a|aa)+b", "((((a*)*)*)*)*b", "(.*)*" * 20 + "b", "(.*a){20}b",
        "(a?){30}a{30}b", "(.|a|[ab])*" * 30 + "b", "(((a?)*)*a)*" * 9 + "b",
    ],
)  # fmt: skip
def test_hostile_patterns_take_no_time(pattern: str) -> None:
    """Each of these takes Python's `re` from minutes to longer than anybody lives.

    The bound is not a speed: it is some thousand times what a match takes here.
    """
    compiled = Pattern(rf"(.*\.)?({pattern})$")
    begin = time.monotonic()
    assert not compiled.fullmatch("transformer.h.0." + "a" * 60)
    assert compiled.fullmatch("transformer.h.0." + "a" * 60 + "b") == ("b" in pattern)
    assert time.monotonic() - begin < 30
