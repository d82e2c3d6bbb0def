"""Score long texts in parts, so that a caller can show the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from gpt2c.measure.windows import default_stride
from gpt2c.model import GPT2
from gpt2c.text.tokenizer import encode_part

# Adds a number of scored tokens, passages or questions to a count.
CountFunction: TypeAlias = Callable[[int], None]

_N_WINDOWS: Final = 16  # of a part


def score_stream(
    model: GPT2, text: str, stride: int | None, count: CountFunction
) -> tuple[float, int]:
    """Return the log-probability of a text, in nats, and the number of its tokens.

    The first token follows the BOS token. The result is that of ``model.score(text, bos=True,
    stride=stride)``. `count` is called with the number of tokens of each part.
    """
    ids = encode_part(model.tokenizer, text)
    total, n_scored = 0.0, 0
    for given, new in _parts(ids, model.config.n_positions, stride):
        if given:
            score = model.score(given, new, stride=stride)
        else:
            score = model.score(new, bos=True, stride=stride)
        total += score.total
        n_scored += score.n_scored
        count(score.n_scored)
    return total, n_scored


def score_lines(model: GPT2, lines: Sequence[str], count: CountFunction) -> tuple[float, int]:
    """Return the log-probability of texts that do not depend on each other, and their tokens."""
    total, n_scored = 0.0, 0
    for score in model.score(iter(lines), bos=True):
        total += score.total
        n_scored += score.n_scored
        count(score.n_scored)
    return total, n_scored


def _parts(
    ids: Sequence[int], n_positions: int, stride: int | None
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield the given and the new ids of parts whose windows are those of the whole text.

    The BOS token comes before the text, is not in `ids`, and counts as a token of the first window.
    Each later part begins where a window begins. The ids of that window that earlier windows have
    scored are the given ones.
    """
    step = default_stride(n_positions) if stride is None else stride
    if step >= n_positions:  # windows do not overlap, so a part would need the id before it
        yield [], ids
        return
    n_part = (_N_WINDOWS - 1) * step + n_positions
    yield [], ids[: n_part - 1]
    n_given = n_positions - step
    for begin in range(_N_WINDOWS * step - 1, len(ids) - n_given, _N_WINDOWS * step):
        yield ids[begin : begin + n_given], ids[begin + n_given : begin + n_part]
