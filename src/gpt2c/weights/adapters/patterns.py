"""Match names with regular expressions from a file, in linear time.

peft's configurations have regular expressions, and Python's `re` backtracks: a pattern of 30
characters from a hostile file could run for years. This module compiles a pattern into a
nondeterministic automaton and follows all its states at once (Thompson 1968), so that the time is
at most the number of states times the length of the name.

It accepts literal characters, ``.``, sets such as ``[a-z_]`` and ``[^0]``, ``\\d \\D \\w \\W \\s
\\S``, groups, ``|``, ``* + ? {n} {n,} {n,m}`` (also lazy: only whether a name matches counts), and
``^`` and ``$``. It refuses everything else, such as look-around and references to groups.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_MAX_LENGTH: Final = 1000  # characters of a pattern
_MAX_STATES: Final = 1000  # of a pattern's automaton; {n} copies a part n times
_MAX_DEPTH: Final = 20  # nested groups

# Names of modules consist of these characters.
_ALL: Final = frozenset(string.printable)
_CLASSES: Final = {
    "d": frozenset(string.digits),
    "w": frozenset(string.ascii_letters + string.digits + "_"),
    "s": frozenset(string.whitespace),
}
_CLASSES.update({letter.upper(): _ALL - chars for letter, chars in list(_CLASSES.items())})
_COUNT: Final = re.compile(r"\{([0-9]{1,4})(,([0-9]{1,4})?)?\}", re.ASCII)


class PatternError(ValueError):
    """A pattern that is not accepted; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class _State:
    """A state: it may read one of `chars`, or (chars None) go on without reading, at some places.

    `to` has the indices of the next states. `at` is "^" or "$" for a state that only the beginning
    or the end of the name can pass.
    """

    chars: frozenset[str] | None
    to: tuple[int, ...]
    at: str = ""


# A part of a pattern, as the parser returns it: an operator and its operands.
_Part: TypeAlias = "tuple[str, list[_Part]] | _Chars | _Place | _Repeat"


@dataclass(frozen=True)
class _Chars:
    chars: frozenset[str]


@dataclass(frozen=True)
class _Place:
    at: str


@dataclass(frozen=True)
class _Repeat:
    part: _Part
    least: int
    most: int | None  # None: no limit


class Pattern:
    """A compiled pattern."""

    def __init__(self, text: str) -> None:
        """Compile a pattern. Raises PatternError."""
        if len(text) > _MAX_LENGTH:
            raise PatternError(f"has {len(text)} characters, expected at most {_MAX_LENGTH}")
        self.text = text
        automaton = _Automaton()
        self._start = automaton.add(_Parser(text).parse(), automaton.end)
        self._states, self._end = automaton.states, automaton.end

    @property
    def n_states(self) -> int:
        """The number of states, at most 2000; a match takes at most this many steps a character."""
        return len(self._states)

    def fullmatch(self, name: str) -> bool:
        """Return whether the pattern matches the whole name."""
        current = self._closure({self._start}, name, 0)
        for index, char in enumerate(name, start=1):
            following: set[int] = set()
            for number in current:
                state = self._states[number]
                if state.chars is not None and char in state.chars:
                    following.update(state.to)
            current = self._closure(following, name, index)
            if not current:
                return False
        return self._end in current

    def _closure(self, found: set[int], name: str, index: int) -> set[int]:
        """Return the states that can be reached at this index of the name without reading."""
        to_visit = list(found)
        while to_visit:
            state = self._states[to_visit.pop()]
            is_there = not state.at or index == (0 if state.at == "^" else len(name))
            if state.chars is None and is_there:
                new = [number for number in state.to if number not in found]
                found.update(new)
                to_visit += new
        return found


@dataclass
class _Automaton:
    """States, made from the end of the pattern to its beginning."""

    states: list[_State] = field(default_factory=lambda: [_State(None, ())])
    end: int = 0
    n_added: int = 0

    def add(self, part: _Part, after: int) -> int:
        """Add a part that goes on to the state `after`; return its first state."""
        self.n_added += 1  # an empty group adds no state, but a hostile pattern may repeat it
        if self.n_added > _MAX_STATES:
            raise PatternError(f"needs over {_MAX_STATES} states: its counts are too large")
        if isinstance(part, _Chars):
            return self._state(part.chars, (after,))
        if isinstance(part, _Place):
            return self._state(None, (after,), part.at)
        if isinstance(part, _Repeat):
            return self._add_repeat(part, after)
        operator, operands = part
        if operator == "or":
            return self._state(None, tuple(self.add(operand, after) for operand in operands))
        for operand in reversed(operands):
            after = self.add(operand, after)
        return after

    def _add_repeat(self, repeat: _Repeat, after: int) -> int:
        if repeat.most is None:
            loop = self._state(None, ())
            again = self.add(repeat.part, loop)
            self.states[loop] = _State(None, (again, after))
            after = loop
        else:
            skip = after
            for _ in range(repeat.most - repeat.least):
                after = self._state(None, (self.add(repeat.part, after), skip))
        for _ in range(repeat.least):
            after = self.add(repeat.part, after)
        return after

    def _state(self, chars: frozenset[str] | None, to: tuple[int, ...], at: str = "") -> int:
        self.states.append(_State(chars, to, at))
        return len(self.states) - 1


class _Parser:
    """A recursive-descent parser of patterns."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def parse(self) -> _Part:
        part = self._alternatives()
        if self._at < len(self._text):
            raise PatternError("has an unbalanced )")
        return part

    def _next(self) -> str:
        """Return the next character; "" at the end."""
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._next()
        self._at += 1
        if not char:
            raise PatternError("ends too early")
        return char

    def _alternatives(self) -> _Part:
        found = [self._sequence()]
        while self._next() == "|":
            self._take()
            found.append(self._sequence())
        return found[0] if len(found) == 1 else ("or", found)

    def _sequence(self) -> _Part:
        found: list[_Part] = []
        while self._next() not in ("", "|", ")"):
            found.append(self._repeated(self._atom()))
        return ("then", found)

    def _repeated(self, part: _Part) -> _Part:
        char = self._next()
        if char == "{":
            match = _COUNT.match(self._text, self._at)
            if match is None:
                raise PatternError("has a { that is not a count such as {2} or {1,3}")
            self._at = match.end()
            least = int(match[1])
            most = least if match[2] is None else None if match[3] is None else int(match[3])
            if most is not None and most < least:
                raise PatternError(f"has the count {match[0]}, whose max is below its min")
        elif char and char in "*+?":
            self._take()
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        else:
            return part
        if isinstance(part, _Place):
            raise PatternError("repeats ^ or $")
        if self._next() == "?":  # lazy
            self._take()
        if self._next() in ("*", "+", "?", "{"):
            raise PatternError("has two counts in a row")
        return _Repeat(part, least, most)

    def _atom(self) -> _Part:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return _Chars(self._set())
        if char == ".":
            return _Chars(_ALL - {"\n"})
        if char in "^$":
            return _Place(char)
        if char == "\\":
            return _Chars(self._escape())
        if char in "*+?{":
            raise PatternError(f"has a {char} with nothing to repeat")
        return _Chars(frozenset(char))

    def _group(self) -> _Part:
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._next() == "?":
            raise PatternError(f"has {self._text[self._at - 1 : self._at + 2]!r}, which is not "
                               "supported")  # fmt: skip
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError(f"has over {_MAX_DEPTH} nested groups")
        part = self._alternatives()
        if self._next() != ")":
            raise PatternError("has an unbalanced (")
        self._take()
        self._depth -= 1
        return part

    def _escape(self) -> frozenset[str]:
        char = self._take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.isalnum() or not char.isascii():
            raise PatternError(f"has \\{char}, which is not supported")
        return frozenset(char)

    def _set(self) -> frozenset[str]:
        """Parse a set after its [."""
        is_negated = self._next() == "^"
        if is_negated:
            self._take()
        chars: set[str] = set()
        is_first = True
        while is_first or self._next() != "]":
            is_first = False
            chars |= self._set_item()
        self._take()
        return _ALL - chars if is_negated else frozenset(chars)

    def _set_item(self) -> frozenset[str]:
        """Parse a character, a class or a range such as a-z in a set."""
        char = self._take()
        first = self._escape() if char == "\\" else frozenset(char)
        following = self._text[self._at : self._at + 2]
        if not following.startswith("-") or following == "-]":
            return first
        self._take()
        char = self._take()
        last = self._escape() if char == "\\" else frozenset(char)
        if len(first) != 1 or len(last) != 1:
            raise PatternError("has a range between classes of characters")
        low, high = ord(min(first)), ord(min(last))
        if low > high:
            raise PatternError(f"has the range {min(first)}-{min(last)}, which is reversed")
        return frozenset(char for char in _ALL if low <= ord(char) <= high)
