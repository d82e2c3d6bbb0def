"""A restricted unpickler, for all protocols, that never runs code from a file.

Python's own unpickler imports and calls whatever a file names. PickleReader looks up each called
global in a table, and calls the builder that it finds there. A call of any other global becomes a
record (:mod:`gpt2c.formats.pickle_values`). The number of bytes read bounds the memory used,
because no opcode copies a value.

A pickle is a program for a stack machine. Opcodes push values, collect the values above a mark into
a container, and store values in a memo, from which they can be pushed again. Python's
``pickletools`` documents the opcodes.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gpt2c.checks.untrusted import show
from gpt2c.formats.pickle_values import Global, OpaqueKey, PickleError, Record, describe

MAX_KEY: Final = 2**31  # a larger integer as a dict key becomes an OpaqueKey
MAX_INDEX: Final = 2**32  # indices of the memo are below this
MAX_ARGUMENTS: Final = 16  # arguments of one call
MAX_DEPTH: Final = 100  # marks that are open at the same time
# The max number of opcodes in a file; each costs about 80 bytes of memory. The state dict of a
# model of 1.5 billion parameters, with its optimiser's state, has 50,000.
MAX_OPCODES: Final = 1_000_000
MAX_GLOBALS: Final = 100_000  # globals with distinct names
MAX_DIGITS: Final = 1000  # digits or bytes of a number, because parsing takes quadratic time

MIN_KEPT: Final = 2  # bytes; NumPy pickles the one byte b"b" with every array

# Escapes in protocol 0's strings, as in Python's bytes literals.
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES: Final = {
    b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v",
    b"\\": b"\\", b"'": b"'", b'"': b'"',
}  # fmt: skip


class Raw(Protocol):
    """The bytes of a pickle: bytes, a bytearray, or a part of a file at a time."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, part: slice, /) -> bytes | bytearray:
        """Return the bytes of a slice."""

    def find(self, separator: bytes, begin: int, /) -> int:
        """Return the offset of the first `separator` from `begin`, or -1."""


# Replaces a class or function that the file calls: takes the call's arguments, returns an object.
Builder = Callable[..., Any]


@dataclass
class _State:
    """The stack machine's state while one pickle is read.

    `stack` holds only the values above the last mark. A mark moves the stack to `marks` and begins
    an empty one.
    """

    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    has_ended: bool = False

    def pop(self) -> Any:
        if not self.stack:
            raise PickleError("pops a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise PickleError("reads a value from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("pops a mark that it never pushed")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def memoize(self, index: int) -> None:
        if not 0 <= index < MAX_INDEX:
            raise PickleError(
                f"stores a value at the memo's index {show(index)}, expected one below {MAX_INDEX}"
            )
        self.memo[index] = self.top()

    def push_memoized(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"reads the memo's index {show(index)}, where nothing is stored")
        self.stack.append(self.memo[index])

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            if target.items is None:
                target.items = []
            target = target.items
        if not isinstance(target, list):
            raise PickleError(f"adds items to {describe(target)}, expected a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Record):
            if target.entries is None:
                target.entries = {}
            target = target.entries
        if not isinstance(target, dict):
            raise PickleError(f"adds items to {describe(target)}, expected a dict")
        put_items(target, items)


def put_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Put alternating keys and values into a dict.

    Raises PickleError for a key without a value, or a key that appears twice.
    """
    if len(items) % 2:
        raise PickleError("has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # A file could choose larger integers with equal hashes, which make a dict slow.
        if not isinstance(key, str) and not (type(key) is int and abs(key) < MAX_KEY):
            key = OpaqueKey(key)
        if key in target:
            raise PickleError(f"has the key {describe(key)} twice")
        target[key] = value


def _unescaped(match: re.Match[bytes]) -> bytes:
    """Return the byte that an escape encodes, or an invalid escape itself."""
    escape = match[1]
    if escape[:1] == b"x" and len(escape) == 3:
        return bytes([int(escape[1:], 16)])
    if escape.isdigit() and escape < b"8":
        return bytes([int(escape, 8) & 255])
    return _ESCAPES.get(escape, match[0])


class PickleReader:
    """Reads one pickle after another from bytes; `position` is the offset of the next byte."""

    def __init__(
        self,
        raw: Raw,
        builders: Mapping[str, Builder],
        load_persistent: Callable[[object], object],
        keep_bytes: Callable[[int, int], object] | None = None,
    ) -> None:
        """Read from `raw`.

        `builders` maps the globals that may be called, such as "collections.OrderedDict", to their
        replacements. `load_persistent` returns the object of a persistent id, or raises
        PickleError. `keep_bytes`, if given, makes the value of a bytes object of MIN_KEPT bytes or
        more from its offset and length in `raw`; the bytes are not read.
        """
        self._raw, self._builders, self._load_persistent = raw, builders, load_persistent
        self._keep_bytes = keep_bytes
        self._globals: dict[str, Global] = {}
        self.position = 0
        self._n_opcodes = 0

    def read(self) -> Any:
        """Return the next pickle's value and move `position` to the pickle's end.

        Raises PickleError if the pickle is malformed, cut short, or exceeds a limit.
        """
        state = _State()
        while not state.has_ended:
            begin = self.position
            self._n_opcodes += 1
            if self._n_opcodes > MAX_OPCODES:
                raise PickleError(f"has more than {MAX_OPCODES} opcodes")
            opcode = self._read_bytes(1)[0]
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise PickleError(f"has opcode {opcode:#04x} at byte {begin}, which is not allowed")
            handler(self, state)
        if len(state.stack) != 1 or state.marks:
            raise PickleError("does not end with exactly one value")
        return state.stack[0]

    # ---- bytes ----

    def _read_bytes(self, n: int) -> bytes | bytearray:
        end = self.position + n
        if end > len(self._raw):
            raise PickleError(f"ends at byte {len(self._raw)}, in the middle of a value")
        part = self._raw[self.position : end]
        self.position = end
        return part

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._read_bytes(struct.calcsize(layout)))[0])

    def _string(self, n: int) -> str:
        return _decode_utf8(self._read_bytes(n))

    def _bytes(self, n: int) -> bytes:
        return bytes(self._read_bytes(n))

    def _bytes_object(self, n: int) -> object:
        if self._keep_bytes is None or n < MIN_KEPT:
            return self._bytes(n)
        begin = self.position
        if begin + n > len(self._raw):
            raise PickleError(f"ends at byte {len(self._raw)}, in the middle of a value")
        self.position += n
        return self._keep_bytes(begin, n)

    def _line(self) -> bytes:
        end = self._raw.find(b"\n", self.position)
        if end < 0:
            raise PickleError("has a line without an end")
        line = self._bytes(end - self.position)
        self.position += 1
        return line

    def _string_line(self) -> str:
        return _decode_utf8(self._line())

    def _integer_line(self) -> int:
        line = self._line().removesuffix(b"L")
        try:
            if len(line) <= MAX_DIGITS:
                return int(line)
        except ValueError:
            pass
        raise PickleError(f"has the line {show(line)}, expected an integer")

    def _integer_or_bool(self) -> int:
        # Protocol 0 writes False as the integer 00, and True as 01.
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
        """Read a quoted Python 2 string and decode it as Latin-1."""
        line = self._line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise PickleError(f"has the line {show(line)}, expected a quoted string")
        return _ESCAPE.sub(_unescaped, line[1:-1]).decode("latin-1")

    def _unicode_line(self) -> str:
        try:
            return self._line().decode("raw-unicode-escape")
        except UnicodeDecodeError:
            raise PickleError("has a string with an invalid escape") from None

    def _binary_integer(self, length: int) -> int:
        if not 0 <= length <= MAX_DIGITS:
            raise PickleError(f"has an integer of {length} bytes, expected at most {MAX_DIGITS}")
        return int.from_bytes(self._read_bytes(length), "little", signed=True)

    # ---- objects ----

    def _find_global(self, path: str) -> Global:
        found = self._globals.get(path)
        if found is None:
            if len(self._globals) >= MAX_GLOBALS:
                raise PickleError(f"has more than {MAX_GLOBALS} globals")
            found = self._globals[path] = Global(path)
        return found

    def _global(self) -> Global:
        module = self._string_line()
        return self._find_global(f"{module}.{self._string_line()}")

    def _stack_global(self, state: _State) -> None:
        name, module = state.pop(), state.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("names a global with a value that is not a string")
        state.stack.append(self._find_global(f"{module}.{name}"))

    def _call_builder(self, function: object, arguments: object) -> object:
        """Return the result of a global's builder; without a builder, a record of the call."""
        if not isinstance(arguments, tuple):
            raise PickleError(f"calls with the arguments {describe(arguments)}, expected a tuple")
        if isinstance(function, Record):
            return Record(function.path, arguments)
        if not isinstance(function, Global):
            raise PickleError(f"calls {describe(function)}, expected a global")
        builder = self._builders.get(function.path)
        if builder is None:
            return Record(function.path, arguments)
        # A file may pass one tuple to many calls. Each call unpacks the tuple, so its length is
        # limited.
        if len(arguments) > MAX_ARGUMENTS:
            raise PickleError(
                f"calls {show(function.path)} with {len(arguments)} arguments, expected at most "
                f"{MAX_ARGUMENTS}"
            )
        try:
            return builder(*arguments)
        except TypeError as reason:
            raise PickleError(f"calls {show(function.path)} wrongly: {reason}") from None

    def _reduce(self, state: _State) -> None:
        arguments, function = state.pop(), state.pop()
        state.stack.append(self._call_builder(function, arguments))

    def _new_with_keywords(self, state: _State) -> None:
        keywords, arguments, function = state.pop(), state.pop(), state.pop()
        if not isinstance(keywords, dict):
            raise PickleError(
                f"calls with the keyword arguments {describe(keywords)}, expected a dict"
            )
        result = self._call_builder(function, arguments)
        # Keep the keywords as attributes; usually a BUILD opcode follows and sets all attributes.
        if isinstance(result, Record):
            result.state = keywords
        state.stack.append(result)

    def _call_class(self, state: _State) -> None:
        """Call the first value above the mark with the other values as arguments (OBJ)."""
        function, *arguments = state.pop_mark() or [None]
        state.stack.append(self._call_builder(function, tuple(arguments)))

    def _call_named_class(self, state: _State) -> None:
        """Call the global named in the opcode's argument with the values above the mark (INST)."""
        function, arguments = self._global(), state.pop_mark()
        state.stack.append(self._call_builder(function, tuple(arguments)))

    def _build(self, state: _State) -> None:
        """Set a record's attributes; ignore a dict's, such as the _metadata of a state dict."""
        attributes = state.pop()
        target = state.stack[-1] if state.stack else None
        if isinstance(target, Record):
            target.state = attributes
        elif target is None or isinstance(target, str | bytes | bool | int | float | list | tuple):
            raise PickleError(f"gives attributes to {describe(target)}")

    def _push_persistent(self, state: _State) -> None:
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
        record = Record("builtins.frozenset")
        record.items = state.pop_mark()
        state.stack.append(record)

    def _dict(self, state: _State) -> None:
        result: dict[Any, Any] = {}
        put_items(result, state.pop_mark())
        state.stack.append(result)


_Handler = Callable[[PickleReader, _State], None]


def _decode_utf8(raw: bytes | bytearray) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise PickleError("has a string that is not UTF-8") from None


# ---- opcode handlers, and functions that make handlers ----


def _push(read: Callable[[PickleReader], Any]) -> _Handler:
    return lambda reader, state: state.stack.append(read(reader))


def _memoize(index: Callable[[PickleReader], int]) -> _Handler:
    return lambda reader, state: state.memoize(index(reader))


def _push_memoized(index: Callable[[PickleReader], int]) -> _Handler:
    return lambda reader, state: state.push_memoized(index(reader))


def _skip(n: int) -> _Handler:
    def handler(reader: PickleReader, _: _State) -> None:
        reader._read_bytes(n)

    return handler


def _push_tuple(n: int) -> _Handler:
    def handler(_: PickleReader, state: _State) -> None:
        items = [state.pop() for _ in range(n)]
        state.stack.append(tuple(reversed(items)))

    return handler


def _push_collected(make: Callable[[list[Any]], Any]) -> _Handler:
    def handler(_: PickleReader, state: _State) -> None:
        container = make(state.pop_mark())
        state.stack.append(container)

    return handler


def _stop(_: PickleReader, state: _State) -> None:
    state.has_ended = True


def _pop_mark(_: PickleReader, state: _State) -> None:
    state.pop_mark()


def _append(_: PickleReader, state: _State) -> None:
    item = state.pop()
    state.add_items([item])


def _set_item(_: PickleReader, state: _State) -> None:
    value, key = state.pop(), state.pop()
    state.set_items([key, value])


def _read_float(reader: PickleReader) -> float:
    return float(struct.unpack(">d", reader._read_bytes(8))[0])


def _push_extension(layout: str) -> _Handler:
    """Push a global for a number in copyreg's extension registry, which is empty here."""
    return _push(lambda reader: reader._find_global(f"copyreg.extension {reader._number(layout)}"))


def _push_sized(layout: str, read: Callable[[PickleReader, int], Any]) -> _Handler:
    """Read a length in bytes, then read and push a value of that length."""
    return _push(lambda reader: read(reader, reader._number(layout)))


def _latin1_string(reader: PickleReader, n: int) -> str:
    """Read a Python 2 string of n bytes and decode it as Latin-1."""
    return reader._read_bytes(max(n, 0)).decode("latin-1")


# The comments have pickletools' names of the opcodes.
_HANDLERS: Final[dict[int, _Handler]] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    ord("."): _stop,  # STOP
    ord("("): PickleReader._mark,  # MARK
    ord("0"): PickleReader._pop,  # POP
    ord("1"): _pop_mark,  # POP_MARK
    ord("2"): lambda _, state: state.stack.append(state.top()),  # DUP
    # Values.
    ord("N"): _push(lambda _: None),  # NONE
    0x88: _push(lambda _: True),  # NEWTRUE
    0x89: _push(lambda _: False),  # NEWFALSE
    ord("I"): _push(PickleReader._integer_or_bool),  # INT
    ord("L"): _push(PickleReader._integer_line),  # LONG
    ord("K"): _push(lambda reader: reader._number("<B")),  # BININT1
    ord("M"): _push(lambda reader: reader._number("<H")),  # BININT2
    ord("J"): _push(lambda reader: reader._number("<i")),  # BININT
    0x8A: _push_sized("<B", PickleReader._binary_integer),  # LONG1
    0x8B: _push_sized("<i", PickleReader._binary_integer),  # LONG4
    ord("F"): _push(PickleReader._float_line),  # FLOAT
    ord("G"): _push(_read_float),  # BINFLOAT
    ord("S"): _push(PickleReader._quoted_line),  # STRING
    ord("U"): _push_sized("<B", _latin1_string),  # SHORT_BINSTRING
    ord("T"): _push_sized("<i", _latin1_string),  # BINSTRING
    ord("V"): _push(PickleReader._unicode_line),  # UNICODE
    ord("X"): _push_sized("<I", PickleReader._string),  # BINUNICODE
    0x8C: _push_sized("<B", PickleReader._string),  # SHORT_BINUNICODE
    0x8D: _push_sized("<Q", PickleReader._string),  # BINUNICODE8
    ord("C"): _push_sized("<B", PickleReader._bytes_object),  # SHORT_BINBYTES
    ord("B"): _push_sized("<I", PickleReader._bytes_object),  # BINBYTES
    0x8E: _push_sized("<Q", PickleReader._bytes_object),  # BINBYTES8
    0x96: _push_sized("<Q", PickleReader._bytes_object),  # BYTEARRAY8
    # Containers.
    ord("}"): _push(lambda _: {}),  # EMPTY_DICT
    ord("]"): _push(lambda _: []),  # EMPTY_LIST
    ord(")"): _push(lambda _: ()),  # EMPTY_TUPLE
    0x8F: _push(lambda _: Record("builtins.set")),  # EMPTY_SET
    0x91: PickleReader._frozen_set,  # FROZENSET
    0x85: _push_tuple(1),  # TUPLE1
    0x86: _push_tuple(2),  # TUPLE2
    0x87: _push_tuple(3),  # TUPLE3
    ord("t"): _push_collected(tuple),  # TUPLE
    ord("l"): _push_collected(lambda items: items),  # LIST
    ord("d"): PickleReader._dict,  # DICT
    ord("a"): _append,  # APPEND
    ord("e"): lambda _, state: state.add_items(state.pop_mark()),  # APPENDS
    0x90: lambda _, state: state.add_items(state.pop_mark()),  # ADDITEMS
    ord("s"): _set_item,  # SETITEM
    ord("u"): lambda _, state: state.set_items(state.pop_mark()),  # SETITEMS
    # The memo.
    ord("p"): _memoize(PickleReader._integer_line),  # PUT
    ord("q"): _memoize(lambda reader: reader._number("<B")),  # BINPUT
    ord("r"): _memoize(lambda reader: reader._number("<I")),  # LONG_BINPUT
    0x94: lambda _, state: state.memoize(len(state.memo)),  # MEMOIZE
    ord("g"): _push_memoized(PickleReader._integer_line),  # GET
    ord("h"): _push_memoized(lambda reader: reader._number("<B")),  # BINGET
    ord("j"): _push_memoized(lambda reader: reader._number("<I")),  # LONG_BINGET
    # Objects.
    ord("c"): _push(PickleReader._global),  # GLOBAL
    0x93: PickleReader._stack_global,  # STACK_GLOBAL
    0x82: _push_extension("<B"),  # EXT1
    0x83: _push_extension("<H"),  # EXT2
    0x84: _push_extension("<i"),  # EXT4
    ord("R"): PickleReader._reduce,  # REDUCE
    0x81: PickleReader._reduce,  # NEWOBJ
    0x92: PickleReader._new_with_keywords,  # NEWOBJ_EX
    ord("o"): PickleReader._call_class,  # OBJ
    ord("i"): PickleReader._call_named_class,  # INST
    ord("b"): PickleReader._build,  # BUILD
    ord("P"): _push(lambda reader: reader._load_persistent(reader._string_line())),  # PERSID
    ord("Q"): PickleReader._push_persistent,  # BINPERSID
}
