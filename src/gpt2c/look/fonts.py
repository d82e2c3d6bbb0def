"""Find installed fonts that have the characters of a text, for pictures."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

_DEFAULT: Final = "DejaVu Sans"  # matplotlib brings it along
_BOX: Final = "\u25a1"
_POINTS_PER_INCH: Final = 72
_SPACES: Final = {"\n": "\u21b5", "\r": "\u21b5", "\t": "\u21e5"}
# It only has pictures of the blocks that characters belong to.
_PLACEHOLDERS: Final = "Last Resort"


def shown(text: str, max_length: int = 28) -> str:
    """Return a text on one line without outer spaces and control characters, cut if it is long."""
    if text and not text.strip(" "):
        text = "\u2423" * len(text)
    text = "".join(map(_shown_character, text.strip(" ")))
    return text if len(text) <= max_length else f"{text[: max_length - 1]}\u2026"


def _shown_character(char: str) -> str:
    if char in _SPACES:
        return _SPACES[char]
    if char.isprintable():
        return char
    # What only joins letters or sets their direction is left out.
    return "" if unicodedata.category(char) == "Cf" else f"<U+{ord(char):04X}>"


class Fonts:
    """The fonts to draw with.

    families
        The fonts' names; of each character, matplotlib uses the first font that has it.
    missing
        The characters that no installed font has.
    """

    def __init__(self, families: Sequence[str], missing: Sequence[str]) -> None:
        """See the class."""
        self.families, self.missing = list(families), list(missing)
        self._boxes = {ord(char): _BOX for char in missing}
        self._properties: dict[int, FontProperties] = {}

    def drawable(self, text: str) -> str:
        """Return a text with boxes in place of the missing characters."""
        return text.translate(self._boxes)

    def width_of(self, text: str, size: int) -> float:
        """Return the width in inches of a text as it is shown, in points `size`."""
        from matplotlib.font_manager import FontProperties

        if size not in self._properties:
            self._properties[size] = FontProperties(family=self.families, size=size)
        width, _, _ = self._renderer.get_text_width_height_descent(
            self.drawable(shown(text)), self._properties[size], False
        )
        return float(width) / _POINTS_PER_INCH

    @cached_property
    def _renderer(self) -> Any:
        from matplotlib.backends import backend_agg

        make: Any = backend_agg.RendererAgg  # without type hints
        return make(1, 1, _POINTS_PER_INCH)


def find_fonts(texts: Iterable[str]) -> Fonts:
    """Return the fonts for texts: matplotlib's own, and installed ones for what that lacks."""
    from matplotlib import font_manager

    # A character is shown as at most 10.
    wanted = {char for text in texts for char in shown(text, len(text) * 10)}
    families = [_DEFAULT]
    wanted -= _characters_of(font_manager.findfont(_DEFAULT))
    fonts = font_manager.fontManager.ttflist if wanted else []
    # Upright fonts of normal weight, because matplotlib finds these by their names.
    plain = (f for f in fonts if f.style == "normal" and f.weight in (400, "normal", "regular"))
    for font in sorted(plain, key=lambda font: font.name):
        if not wanted:
            break
        if font.name in families or font.name.startswith(_PLACEHOLDERS):
            continue
        found = wanted & _characters_of(font.fname)
        if found:
            families.append(font.name)
            wanted -= found
    return Fonts(families, sorted(wanted))


def _characters_of(path: str) -> set[str]:
    """Return the characters that a font file has; none if matplotlib cannot draw with it."""
    from matplotlib.font_manager import get_font

    try:
        return set(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # FreeType cannot scale it, as some fonts of emoji
        return set()
