"""Replace control characters by visible text, so that none reach a terminal or a browser."""

from __future__ import annotations

from typing import Final

# Control characters can move the cursor and change a terminal's state. Callers handle line feed and
# tab. The characters shown by their code points are the C1 controls, Unicode's line separators, and
# the controls of the writing direction.
_CONTROL_PICTURES: Final = {
    code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"
}
_SHOWN_BY_CODE: Final = (
    *range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)
)  # fmt: skip
_TABLE: Final = {
    **_CONTROL_PICTURES,
    0x7F: "\u2421",
    **{code: f"<U+{code:04X}>" for code in _SHOWN_BY_CODE},
}

LINE_END: Final = "\u21b5"
TAB: Final = "\u21e5"


def visible(text: str) -> str:
    """Replace each control character except line feed and tab by a symbol or its code point."""
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """Replace control characters as `visible` does, and line feed and tab by arrows."""
    return visible(text).replace("\n", LINE_END).replace("\t", TAB)
