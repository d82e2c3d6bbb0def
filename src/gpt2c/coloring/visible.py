"""Replace control characters, which must not reach a terminal or browser, by visible text."""

from __future__ import annotations

from typing import Final

# Control characters can move the cursor and change a terminal's state. Line feed and tab are left
# to the caller. _NAMED has the C1 controls, Unicode's line separators, and the controls of the
# writing direction.
_PICTURES: Final = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_NAMED: Final = (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_TABLE: Final = {**_PICTURES, 0x7F: "\u2421", **{code: f"<U+{code:04X}>" for code in _NAMED}}

LINE_END: Final = "\u21b5"
TAB: Final = "\u21e5"


def visible(text: str) -> str:
    """Replace each control character except line feed and tab by a symbol or its code point."""
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """Replace line feed and tab by arrows too."""
    return visible(text).replace("\n", LINE_END).replace("\t", TAB)
