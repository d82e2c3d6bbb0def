"""A reader of pickles, of all protocols, that calls nothing.

Python's own unpickler calls whatever a file names. This one looks each global up in the caller's
table and builds the object with the function found there; every other global becomes a record
(:mod:`gpt2c.formats.pickle_values`). Its memory is bounded by the bytes that it reads: no opcode
makes it copy a value.

The opcodes are documented in Python's ``pickletools``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpt2c.checks.untrusted import show
from gpt2c.formats.pickle_values import Global, OddKey, PickleError, Record, describe

MAX_KEY: Final = 2**31
MAX_INDEX: Final = 2**32  # in the memo
MAX_ARGUMENTS: Final = 16
MAX_DEPTH: Final = 100  # of marks that are open at once
# Of some 80 bytes each; a state dict of 1.5 B parameters, its optimiser's with it, has 50,000.
MAX_STEPS: Final = 1_000_000
MAX_GLOBALS: Final = 100_000  # distinct names
MAX_DIGITS: Final = 1000  # of a decimal integer: parsing takes quadratic time

# Escapes in protocol 0's strings, as in Python's bytes literals.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES: Final = {
    b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v",
    b"\\": b"\\", b"'": b"'", b'"': b'"',
}  # fmt: skip

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

    def top(self) -> Any:
        if not self.stack:
            raise PickleError("takes from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("ends a group that was not begun")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        if not 0 <= index < MAX_INDEX:
            raise PickleError(f"remembers a value as number {show(index)}")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"recalls number {show(index)}, which was not remembered")
        self.stack.append(self.memo[index])

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.items = target.items or []
            target = target.items
        if not isinstance(target, list):
            raise PickleError(f"puts items into {describe(target)}, expected a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.entries = target.entries if target.entries is not None else {}
            target = target.entries
        if not isinstance(target, dict):
            raise PickleError(f"puts items into {describe(target)}, expected a dict")
        put_items(target, items)


def put_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Put alternating keys and values into a dict."""
    if len(items) % 2:
        raise PickleError("has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # A file could choose larger integers that all have the same hash.
        if not isinstance(key, str) and not (type(key) is int and abs(key) < MAX_KEY):
            key = OddKey(key)
        if key in target:
            raise PickleError(f"has the key {describe(key)} twice")
        target[key] = value


def _unescaped(match: re.Match[bytes]) -> bytes:
    """The byte of an escape; an invalid escape is left unchanged."""
    escape = match[1]
    if escape[:1] == b"x" and len(escape) == 3:
        return bytes([int(escape[1:], 16)])
    if escape.isdigit() and escape < b"8":
        return bytes([int(escape, 8) & 255])
    return _ESCAPES.get(escape, match[0])


class PickleReader:
    """Reads one pickle after the other from bytes."""

    def __init__(
        self, raw: bytes | bytearray, builders: Mapping[str, Build], load_persistent: Build
    ) -> None:
        """builders maps known globals, such as "collections.OrderedDict", to our replacements.

        load_persistent is called with each persistent id.
        """
        self._raw, self._builders, self._load_persistent = raw, builders, load_persistent
        self._globals: dict[str, Global] = {}
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

    # ---- bytes ----

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
            raise PickleError("has a string that is not UTF-8") from None

    def _bytes(self, n: int) -> bytes:
        return bytes(self._take(n))

    def _line(self) -> bytes:
        end = self._raw.find(b"\n", self.position)
        if end < 0:
            raise PickleError("has a line without an end")
        line = self._bytes(end - self.position)
        self.position += 1
        return line

    def _name(self) -> str:
        try:
            return self._line().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise PickleError("has a string that is not UTF-8") from None

    def _integer_line(self) -> int:
        line = self._line().removesuffix(b"L")
        try:
            if len(line) <= MAX_DIGITS:
                return int(line)
        except ValueError:
            pass
        raise PickleError(f"has the line {show(line)}, expected an integer")

    def _integer_or_bool(self) -> int:
        # Protocol 0 writes False and True as integers of two digits.
        start = self.position
        number = self._integer_line()
        return {b"00\n": False, b"01\n": True}.get(bytes(self._raw[start : start + 3]), number)

    def _float_line(self) -> float:
        line = self._line()
        try:
            return float(line) if len(line) <= MAX_DIGITS else math.nan
        except ValueError:
            raise PickleError(f"has the line {show(line)}, expected a number") from None

    def _quoted_line(self) -> str:
        """A quoted Python 2 string, decoded as Latin-1."""
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise PickleError(f"has the line {show(line)}, expected a quoted string")
        return _ESCAPE.sub(_unescaped, line[1:-1]).decode("latin-1")

    def _unicode_line(self) -> str:
        try:
            return self._line().decode("raw-unicode-escape")
        except UnicodeDecodeError:
            raise PickleError("has a string with an invalid escape") from None

    def _long(self, length: int) -> int:
        if not 0 <= length <= MAX_DIGITS:
            raise PickleError(f"has an integer of {length} bytes, expected at most {MAX_DIGITS}")
        return int.from_bytes(self._take(length), "little", signed=True)

    # ---- objects ----

    def _find_global(self, path: str) -> Global:
        known = self._globals.get(path)
        if known is None:
            if len(self._globals) >= MAX_GLOBALS:
                raise PickleError(f"has more than {MAX_GLOBALS} names")
            known = self._globals[path] = Global(path)
        return known

    def _global(self) -> Global:
        module = self._name()
        return self._find_global(f"{module}.{self._name()}")

    def _stack_global(self, state: _State) -> None:
        name, module = state.pop(), state.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("names a global by what is no text")
        state.stack.append(self._find_global(f"{module}.{name}"))

    def _call(self, function: object, arguments: object) -> object:
        """The value of a call, or of a class with constructor arguments."""
        if not isinstance(arguments, tuple):
            raise PickleError(f"calls with {describe(arguments)}, expected a tuple")
        if isinstance(function, Record):
            return Record(function.path, arguments)
        if not isinstance(function, Global):
            raise PickleError(f"calls {describe(function)}")
        builder = self._builders.get(function.path)
        if builder is None:
            return Record(function.path, arguments)
        # The same tuple may be given again and again, so it has to be a small one.
        if len(arguments) > MAX_ARGUMENTS:
            raise PickleError(f"calls with what is no tuple of at most {MAX_ARGUMENTS}")
        try:
            return builder(*arguments)
        except TypeError as reason:
            raise PickleError(f"calls {show(function.path)} wrongly: {reason}") from None

    def _reduce(self, state: _State) -> None:
        arguments, function = state.pop(), state.pop()
        state.stack.append(self._call(function, arguments))

    def _new_with_names(self, state: _State) -> None:
        names, arguments, function = state.pop(), state.pop(), state.pop()
        if not isinstance(names, dict):
            raise PickleError(f"calls with {describe(names)}, expected a dict")
        made = self._call(function, arguments)
        # Keyword arguments are kept as attributes, which usually replace them later.
        if isinstance(made, Record):
            made.state = names
        state.stack.append(made)

    def _object(self, state: _State) -> None:
        function, *arguments = state.pop_mark() or [None]
        state.stack.append(self._call(function, tuple(arguments)))

    def _instance(self, state: _State) -> None:
        function, arguments = self._global(), state.pop_mark()
        state.stack.append(self._call(function, tuple(arguments)))

    def _build(self, state: _State) -> None:
        """Keep a record's attributes; drop those of a dict, such as a state dict's _metadata."""
        attributes = state.pop()
        target = state.stack[-1] if state.stack else None
        if isinstance(target, Record):
            target.state = attributes
        elif target is None or isinstance(target, str | bytes | bool | int | float | list | tuple):
            raise PickleError(f"gives attributes to {describe(target)}")

    def _persistent(self, state: _State) -> None:
        state.stack.append(self._load_persistent(state.pop()))

    def _mark(self, state: _State) -> None:
        if len(state.marks) >= MAX_DEPTH:
            raise PickleError(f"is nested deeper than {MAX_DEPTH} levels")
        state.marks.append(state.stack)
        state.stack = []

    def _pop(self, state: _State) -> None:
        if state.stack:
            state.stack.pop()
        else:
            state.pop_mark()

    def _frozen_set(self, state: _State) -> None:
        made = Record("builtins.frozenset")
        made.items = state.pop_mark()
        state.stack.append(made)

    def _dict_of_group(self, state: _State) -> None:
        made: dict[Any, Any] = {}
        put_items(made, state.pop_mark())
        state.stack.append(made)


_Step = Callable[[PickleReader, _State], None]


def _push(read: Callable[[PickleReader], Any]) -> _Step:
    return lambda reader, state: state.stack.append(read(reader))


def _remember(index: Callable[[PickleReader], int]) -> _Step:
    return lambda reader, state: state.remember(index(reader))


def _recall(index: Callable[[PickleReader], int]) -> _Step:
    return lambda reader, state: state.recall(index(reader))


def _skip(n: int) -> _Step:
    def step(reader: PickleReader, _: _State) -> None:
        reader._take(n)

    return step


def _tuple_of(n: int) -> _Step:
    def step(_: PickleReader, state: _State) -> None:
        items = [state.pop() for _ in range(n)]
        state.stack.append(tuple(reversed(items)))

    return step


def _group(make: Callable[[list[Any]], Any]) -> _Step:
    def step(_: PickleReader, state: _State) -> None:
        items = make(state.pop_mark())
        state.stack.append(items)

    return step


def _end(_: PickleReader, state: _State) -> None:
    state.has_ended = True


def _pop_mark(_: PickleReader, state: _State) -> None:
    state.pop_mark()


def _append(_: PickleReader, state: _State) -> None:
    item = state.pop()
    state.add_items([item])


def _set_item(_: PickleReader, state: _State) -> None:
    value, key = state.pop(), state.pop()
    state.set_items([key, value])


def _float_of(reader: PickleReader) -> float:
    return float(struct.unpack(">d", reader._take(8))[0])


def _extension(layout: str) -> _Step:
    """A global given by its number in copyreg's extension registry; it is always unknown."""
    return _push(lambda reader: reader._find_global(f"copyreg.extension {reader._number(layout)}"))


def _sized(layout: str, read: Callable[[PickleReader, int], Any]) -> _Step:
    return _push(lambda reader: read(reader, reader._number(layout)))


def _latin(reader: PickleReader, n: int) -> str:
    """A Python 2 string, decoded as Latin-1."""
    return reader._take(max(n, 0)).decode("latin-1")


_STEPS: Final[dict[int, _Step]] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    ord("."): _end,
    ord("("): PickleReader._mark,
    ord("0"): PickleReader._pop,
    ord("1"): _pop_mark,
    ord("2"): lambda _, state: state.stack.append(state.top()),  # DUP
    # Values.
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord("I"): _push(PickleReader._integer_or_bool),
    ord("L"): _push(PickleReader._integer_line),
    ord("K"): _push(lambda reader: reader._number("<B")),
    ord("M"): _push(lambda reader: reader._number("<H")),
    ord("J"): _push(lambda reader: reader._number("<i")),
    0x8A: _sized("<B", PickleReader._long),
    0x8B: _sized("<i", PickleReader._long),
    ord("F"): _push(PickleReader._float_line),
    ord("G"): _push(_float_of),
    ord("S"): _push(PickleReader._quoted_line),
    ord("U"): _sized("<B", _latin),
    ord("T"): _sized("<i", _latin),
    ord("V"): _push(PickleReader._unicode_line),
    ord("X"): _sized("<I", PickleReader._text),
    0x8C: _sized("<B", PickleReader._text),
    0x8D: _sized("<Q", PickleReader._text),
    ord("C"): _sized("<B", PickleReader._bytes),
    ord("B"): _sized("<I", PickleReader._bytes),
    0x8E: _sized("<Q", PickleReader._bytes),
    0x96: _sized("<Q", PickleReader._bytes),  # BYTEARRAY8
    # Containers.
    ord("}"): _push(lambda _: {}),
    ord("]"): _push(lambda _: []),
    ord(")"): _push(lambda _: ()),
    0x8F: _push(lambda _: Record("builtins.set")),
    0x91: PickleReader._frozen_set,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("t"): _group(tuple),
    ord("l"): _group(lambda items: items),
    ord("d"): PickleReader._dict_of_group,
    ord("a"): _append,
    ord("e"): lambda _, state: state.add_items(state.pop_mark()),
    0x90: lambda _, state: state.add_items(state.pop_mark()),  # ADDITEMS, of a set
    ord("s"): _set_item,
    ord("u"): lambda _, state: state.set_items(state.pop_mark()),
    # The memo.
    ord("p"): _remember(PickleReader._integer_line),
    ord("q"): _remember(lambda reader: reader._number("<B")),
    ord("r"): _remember(lambda reader: reader._number("<I")),
    0x94: lambda _, state: state.remember(len(state.memo)),
    ord("g"): _recall(PickleReader._integer_line),
    ord("h"): _recall(lambda reader: reader._number("<B")),
    ord("j"): _recall(lambda reader: reader._number("<I")),
    # Objects.
    ord("c"): _push(PickleReader._global),
    0x93: PickleReader._stack_global,
    0x82: _extension("<B"),
    0x83: _extension("<H"),
    0x84: _extension("<i"),
    ord("R"): PickleReader._reduce,
    0x81: PickleReader._reduce,  # NEWOBJ: a class and its arguments
    0x92: PickleReader._new_with_names,
    ord("o"): PickleReader._object,
    ord("i"): PickleReader._instance,
    ord("b"): PickleReader._build,
    ord("P"): lambda reader, state: state.stack.append(reader._load_persistent(reader._name())),
    ord("Q"): PickleReader._persistent,
}
