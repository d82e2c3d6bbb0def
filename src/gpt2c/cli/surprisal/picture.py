"""The picture of ``gpt2c surprisal --plot``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from gpt2c.checks.untrusted import show
from gpt2c.cli.options import load_model
from gpt2c.errors import OptionError

if TYPE_CHECKING:
    from gpt2c.look.plots import PlottedText
    from gpt2c.measure.word_table import Surprisals
    from gpt2c.model import GPT2


class Picture:
    """Collects the words of all texts, to draw them."""

    def __init__(self, other: GPT2 | None) -> None:
        """`other` is a second model to compare with, or None."""
        self.other = other
        self._texts: list[PlottedText] = []
        self._n_before = self._n_words = 0  # texts of earlier calls, without words too; words

    def add(self, founds: list[Surprisals], n_texts: int) -> None:
        """Add the words of one call: each model's surprisals. Raises OptionError for too many."""
        import numpy as np

        from gpt2c.look.plots import MAX_WORDS, PlottedText

        self._n_words += len(founds[0])
        if self._n_words > MAX_WORDS:
            raise OptionError(
                f"--plot draws at most {MAX_WORDS} words, and there are more; leave it out, or "
                "give a part of the texts"
            )
        columns = founds[0].columns
        indices: dict[Any, list[int]] = {}
        for index, text_id in enumerate(columns["text_id"]):
            indices.setdefault(text_id, []).append(index)
        for text_id, rows in indices.items():
            is_group = isinstance(text_id, tuple)
            name = ", ".join(map(str, text_id)) if is_group else str(self._n_before + text_id)
            values = [np.asarray(_drawn_column(found), dtype=np.float64)[rows] for found in founds]
            self._texts.append(PlottedText(name, [columns["word"][i] for i in rows], values))
        self._n_before += n_texts

    def save(self, unit: str, options: argparse.Namespace) -> None:
        """Draw all texts to the file of --plot. Raises OptionError if there is no word."""
        from gpt2c.look.plots import save_figure, word_figure

        file = "standard input" if options.file == "-" else os.path.basename(options.file)
        labels = [options.model or "tales", *([options.other] if self.other else [])]
        short = [os.path.basename(label.rstrip("/")) or label for label in labels]
        # The number of a single text says nothing.
        texts = [t._replace(name="") for t in self._texts] if self._n_before == 1 else self._texts
        quantity = "surprisal" if options.correction == "none" else "corrected surprisal"
        figure = word_figure(
            texts, short if len(set(short)) == len(labels) else labels, quantity=quantity,
            unit=unit, title=f"{quantity.capitalize()} of the words of {file}",
        )  # fmt: skip
        save_figure(figure, options.plot)


def _drawn_column(found: Surprisals) -> Any:
    """Return the corrected surprisals of all words, or the plain ones without a correction."""
    return found.columns.get("corrected", found.columns["surprisal"])


@contextmanager
def open_picture(options: argparse.Namespace) -> Iterator[Picture | None]:
    """Check the options of the picture, and save it at the end; None without --plot."""
    if options.plot is None:
        if options.other is not None:
            raise OptionError("--other is given without --plot, which would show both models")
        yield None
        return
    if options.whole or options.next_tokens:
        raise OptionError("--plot draws words; leave it out, or --whole and --next-tokens")
    from gpt2c.look.plots import check_plot_path, new_figure

    check_plot_path(options.plot)  # fail before the long work
    folder = os.path.dirname(os.path.abspath(options.plot))
    if not os.path.isdir(folder):
        raise OptionError(f"--plot is {show(options.plot)}: there is no folder {folder}")
    new_figure()
    other: AbstractContextManager[GPT2 | None] = nullcontext()
    if options.other is not None:
        other = load_model(options, options.other)
    with other as model:
        picture = Picture(model)
        yield picture
        picture.save("nats" if options.nats else "bits", options)
