"""What must not reach a terminal or a browser as it is, written so that it can be seen."""

from __future__ import annotations

from typing import Final

# Control characters move the cursor and worse; a line feed and a tab are left to the caller. The
# others turn the direction of writing for all that follows, or end a line where none ends.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_NAMED: Final = (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_TABLE: Final = {**_PICTURES, 0x7F: "\u2421", **{code: f"<U+{code:04X}>" for code in _NAMED}}

LINE_END: Final = "\u21b5"
TAB: Final = "\u21e5"


def visible(text: str) -> str:
    """The text with a picture, or a name, for each control character but line feed and tab."""
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """The same with arrows for line feed and tab."""
    return visible(text).replace("\n", LINE_END).replace("\t", TAB)
