"""A reader of the few pickle opcodes that saved state dicts are written with.

Python's own unpickler calls what a file names. This one calls nothing: a global is looked up in a
table that the caller gives, an object is built by the caller's functions in that table, and
whatever else a file holds is refused. Its memory is bounded by the bytes that it reads: nothing is
ever copied because the file says so.

The opcodes are documented in Python's ``pickletools``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpt2c.untrusted import show

MAX_KEY: Final = 2**31
MAX_ARGUMENTS: Final = 16
MAX_DEPTH: Final = 100  # of marks that are open at once
# Of some 80 bytes each; a state dict of 1.5 B parameters, its optimiser's with it, has 50,000.
MAX_STEPS: Final = 1_000_000


class PickleError(ValueError):
    """The rest of a sentence that begins with the file's name."""


def describe(value: object) -> str:
    """A value for a message. Never a container's contents: it may hold itself, a billion times."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return show(value)
    return f"a {type(value).__name__}"


class Record:
    """An object of a class that is known by name alone."""

    def __init__(self) -> None:
        """Without attributes."""
        self.attributes: dict[Any, Any] = {}


Build = Callable[..., Any]


@dataclass
class _State:
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    has_ended: bool = False

    def pop(self) -> Any:
        if not self.stack:
            raise PickleError("takes from an empty stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"puts items into what is no {kind.__name__}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("ends a group that was not begun")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        if not self.stack:
            raise PickleError("remembers what is not there")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"recalls number {index}, which was not remembered")
        self.stack.append(self.memo[index])


class Global:
    """A name in the file; it stands for nothing until it is used."""

    def __init__(self, module: str, name: str) -> None:
        """Nothing is imported."""
        self.path = f"{module}.{name}"


class PickleReader:
    """Reads one pickle after the other from bytes."""

    def __init__(
        self, raw: bytes | bytearray, builders: Mapping[str, Build], load_persistent: Build
    ) -> None:
        """builders maps the globals that may be called, such as "collections.OrderedDict", to what

        is called instead; load_persistent is given the persistent ids.
        """
        self._raw, self._builders, self._load_persistent = raw, builders, load_persistent
        self.position = 0
        self._n_steps = 0

    def read(self) -> Any:
        """The next pickle's value; position is then behind it.

        Raises PickleError for anything that is not allowed, and where the bytes end.
        """
        state = _State()
        while not state.has_ended:
            at = self.position
            self._n_steps += 1
            if self._n_steps > MAX_STEPS:
                raise PickleError(f"has more than {MAX_STEPS} steps")
            opcode = self._take(1)[0]
            step = _STEPS.get(opcode)
            if step is None:
                raise PickleError(f"has opcode {opcode:#04x} at byte {at}, which is not allowed")
            step(self, state)
        if len(state.stack) != 1 or state.marks:
            raise PickleError("ends with other than one value")
        return state.stack[0]

    def _take(self, n: int) -> bytes | bytearray:
        end = self.position + n
        if end > len(self._raw):
            raise PickleError(f"ends at byte {len(self._raw)}, in the middle of a value")
        part = self._raw[self.position : end]
        self.position = end
        return part

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _text(self, n: int) -> str:
        try:
            return self._take(n).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise PickleError("has a text that is not UTF-8") from None

    def _line(self) -> str:
        end = self._raw.find(b"\n", self.position)
        if end < 0:
            raise PickleError("has a line without an end")
        line = self._text(end - self.position)
        self.position += 1
        return line

    def _builder(self, value: object) -> Build:
        if not isinstance(value, Global):
            raise PickleError("calls what is no global")
        if value.path not in self._builders:
            raise PickleError(f"uses the global {show(value.path)}, which is not allowed")
        return self._builders[value.path]

    # ---- opcodes ----

    def _global(self, state: _State) -> None:
        module = self._line()
        state.stack.append(Global(module, self._line()))

    def _stack_global(self, state: _State) -> None:
        name, module = state.pop(), state.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("names a global by what is no text")
        state.stack.append(Global(module, name))

    def _reduce(self, state: _State) -> None:
        arguments, function = state.pop(), state.pop()
        # The same tuple may be given again and again, so it has to be a small one.
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise PickleError(f"calls with what is no tuple of at most {MAX_ARGUMENTS}")
        try:
            state.stack.append(self._builder(function)(*arguments))
        except TypeError as reason:
            raise PickleError(f"calls {show(function.path)} wrongly: {reason}") from None

    def _build(self, state: _State) -> None:
        """A state dict's _metadata is of no use; a record's attributes are."""
        attributes = state.pop()
        target = state.stack[-1] if state.stack else None
        if isinstance(target, Record) and isinstance(attributes, dict):
            target.attributes = attributes
        elif not isinstance(target, dict):
            raise PickleError("gives attributes to what has none")

    def _persistent(self, state: _State) -> None:
        state.stack.append(self._load_persistent(state.pop()))

    def _mark(self, state: _State) -> None:
        if len(state.marks) >= MAX_DEPTH:
            raise PickleError(f"is nested deeper than {MAX_DEPTH} levels")
        state.marks.append(state.stack)
        state.stack = []

    def _set_items(self, state: _State, items: list[Any]) -> None:
        target = state.top(dict)
        if len(items) % 2:
            raise PickleError("has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Larger integers could be chosen so that all of them hash alike.
            if not isinstance(key, str) and not (type(key) is int and abs(key) < MAX_KEY):
                raise PickleError(f"has the key {describe(key)}, expected a text or a small number")
            if key in target:
                raise PickleError(f"has the key {describe(key)} twice")
            target[key] = value

    def _long(self) -> int:
        return int.from_bytes(self._take(self._take(1)[0]), "little", signed=True)


def _push(read: Callable[[PickleReader], Any]) -> Callable[[PickleReader, _State], None]:
    return lambda reader, state: state.stack.append(read(reader))


def _tuple_of(n: int) -> Callable[[PickleReader, _State], None]:
    def step(_: PickleReader, state: _State) -> None:
        items = [state.pop() for _ in range(n)]
        state.stack.append(tuple(reversed(items)))

    return step


def _end(_: PickleReader, state: _State) -> None:
    state.has_ended = True


def _append(_: PickleReader, state: _State) -> None:
    item = state.pop()
    state.top(list).append(item)


def _appends(_: PickleReader, state: _State) -> None:
    items = state.pop_mark()
    state.top(list).extend(items)


def _set_item(reader: PickleReader, state: _State) -> None:
    value, key = state.pop(), state.pop()
    reader._set_items(state, [key, value])


def _float_of(reader: PickleReader) -> float:
    return float(struct.unpack(">d", reader._take(8))[0])


_STEPS: Final[dict[int, Callable[[PickleReader, _State], None]]] = {
    0x80: lambda reader, _: _skip(reader, 1),  # PROTO
    0x95: lambda reader, _: _skip(reader, 8),  # FRAME
    ord("."): _end,
    ord("("): PickleReader._mark,
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord("K"): _push(lambda reader: reader._number("<B")),
    ord("M"): _push(lambda reader: reader._number("<H")),
    ord("J"): _push(lambda reader: reader._number("<i")),
    0x8A: _push(PickleReader._long),
    ord("G"): _push(_float_of),
    ord("X"): _push(lambda reader: reader._text(reader._number("<I"))),
    0x8C: _push(lambda reader: reader._text(reader._number("<B"))),
    ord("}"): _push(lambda _: {}),
    ord("]"): _push(lambda _: []),
    ord(")"): _push(lambda _: ()),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("t"): lambda _, state: _collect(state),
    ord("a"): _append,
    ord("e"): _appends,
    ord("s"): _set_item,
    ord("u"): lambda reader, state: reader._set_items(state, state.pop_mark()),
    ord("q"): lambda reader, state: state.remember(reader._number("<B")),
    ord("r"): lambda reader, state: state.remember(reader._number("<I")),
    0x94: lambda _, state: state.remember(len(state.memo)),
    ord("h"): lambda reader, state: state.recall(reader._number("<B")),
    ord("j"): lambda reader, state: state.recall(reader._number("<I")),
    ord("c"): PickleReader._global,
    0x93: PickleReader._stack_global,
    ord("R"): PickleReader._reduce,
    0x81: PickleReader._reduce,  # NEWOBJ: a class and its arguments
    ord("b"): PickleReader._build,
    ord("Q"): PickleReader._persistent,
}


def _skip(reader: PickleReader, n: int) -> None:
    reader._take(n)


def _collect(state: _State) -> None:
    items = tuple(state.pop_mark())
    state.stack.append(items)
