"""Coloured texts as one self-contained HTML file."""

from __future__ import annotations

import html
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gpt2c._version import __version__
from gpt2c.checks.names import file_name
from gpt2c.coloring.spans import (
    CLASS_NAMES,
    HasTokenBytes,
    Span,
    class_of,
    shares,
    spans,
    spelling,
    summary,
)
from gpt2c.coloring.visible import one_line, visible
from gpt2c.errors import OptionError
from gpt2c.files import long_path, whole_file
from gpt2c.measure.scores import Score

_STYLE: Final = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1c1e; --faint: #66666e; --line: #d8d8de;
  --k0: #c3e8bf; --k1: #fbefa2; --k2: #f9c0b8; --k3: #d9bdf5; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17181a; --ink: #ececee; --faint: #a2a2aa; --line: #3a3b40;
    --k0: #234d2a; --k1: #655a0c; --k2: #7c2d28; --k3: #5b3290; } }
body { margin: 0; counter-reset: text; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 46rem; margin: 0 auto; padding: 2rem 1.25rem; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 2.5rem 0 0; }
h2::before { counter-increment: text; content: "Text " counter(text); }
section:only-of-type h2 { display: none; }
p { margin: .25rem 0; color: var(--faint); font-size: .875rem; }
.bar { display: flex; height: .5rem; margin: 1rem 0 .5rem; border-radius: .25rem; overflow: hidden;
  background: var(--line); }
ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0; list-style: none;
  font-size: .875rem; font-variant-numeric: tabular-nums; }
li b { font-weight: 400; padding: .1rem .4rem; border-radius: .2rem; }
.text { margin: 1rem 0; font: 1.125rem/1.75 Georgia, "Times New Roman", serif;
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.text span { border-radius: .2rem; padding: .1rem 0; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.text span:hover { outline: 2px solid var(--ink); }
.text i::before { content: "\\21b5"; font: .8em system-ui, sans-serif; opacity: .45; }
.k0 { background: var(--k0); } .k1 { background: var(--k1); }
.k2 { background: var(--k2); } .k3 { background: var(--k3); }
.bar, .bar *, .text span, li b { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
footer { margin-top: 2rem; padding-top: .5rem; border-top: 1px solid var(--line); }
"""

# Defence in depth: even if escaping failed, injected HTML could neither fetch nor run anything.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def html_page(
    scores: Iterable[Score],
    tokenizer: HasTokenBytes,
    *,
    title: str = "A text as the model sees it",
    model: str | None = None,
) -> Iterator[str]:
    """Yield, lazily, the pieces of an HTML page that shows the text of each score.

    Each token has the colour of its rank. A tooltip shows its rank, its probability, the entropy at
    its position, and the likeliest tokens there if the score has them. `model` is a model's name to
    show. The page has no script and needs no other file. ``"".join`` makes it one string.
    """
    heading = html.escape(one_line(title))
    model_line = f"<p>Model: {html.escape(one_line(model))}</p>\n" if model else ""
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="gpt2c {__version__}">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{heading}</h1>\n{model_line}<p>Each token has the colour of its rank among all "
        "tokens that the model could have chosen at its position. Point at a token for details."
        "</p>\n"
    )
    for score in scores:
        yield from _score_section(score, tokenizer)
    yield (
        f"<footer><p>Made by gpt2c {__version__}. The colours are those of GLTR (Gehrmann, "
        "Strobelt and Rush 2019).</p></footer>\n</main>\n</body>\n</html>\n"
    )


def save_html(path: str | os.PathLike[str], page: Iterable[str]) -> None:
    """Write the pieces of a page to a file, atomically.

    Raises OSError if the file cannot be written, OptionError if `path` is not a valid file name or
    is an existing folder or device, and OptionTypeError if `path` is neither a str nor a Path.
    """
    name = file_name("path", path)
    target = long_path(Path(os.path.abspath(name)))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise OptionError(
            f"{target} is a folder or a device; expected a file, or a path that does not exist"
        )
    with whole_file(name) as file:
        for piece in page:
            file.write(piece.encode(errors="replace"))


def _score_section(score: Score, tokenizer: HasTokenBytes) -> Iterator[str]:
    yield '<section>\n<h2></h2>\n<div class="bar">'
    class_shares = shares(score)
    for index, share in enumerate(class_shares):
        yield f'<span class="k{index}" style="flex:{share:.6f}"></span>'
    yield "</div>\n<ul>"
    for index, (name, share) in enumerate(zip(CLASS_NAMES, class_shares, strict=True)):
        yield f'<li><b class="k{index}">{name}</b> {100 * share:.1f} %</li>'
    yield f'</ul>\n<p>{summary(score)}</p>\n<div class="text" dir="auto" lang="">'
    for span in spans(score, tokenizer):
        class_index = class_of(span.rank)
        attribute = "" if class_index is None else f' class="k{class_index}"'
        tooltip = html.escape(_tooltip(span, score, tokenizer)).replace("\n", "&#10;")
        text = html.escape(visible(span.text)).replace("\n", "<i></i>\n")
        yield f'<span{attribute} title="{tooltip}">{text}</span>'
    yield "</div>\n</section>\n"


def _tooltip(span: Span, score: Score, tokenizer: HasTokenBytes) -> str:
    return "\n\n".join(
        _token_details(index, score, tokenizer) for index in range(span.begin, span.end)
    )


def _token_details(index: int, score: Score, tokenizer: HasTokenBytes) -> str:
    lines = [_quoted(int(score.ids[index]), tokenizer)]
    if not score.ranks[index]:
        return f"{lines[0]}\nnot scored: nothing precedes it"
    lines.append(f"rank {score.ranks[index]:,}, probability {_percent(score.logprobs[index])}")
    lines.append(f"entropy here {score.entropies[index]:.2f} nats")
    likeliest = [
        f"{rank}. {_quoted(id, tokenizer)} {_percent(logprob)}"
        for rank, (id, logprob) in enumerate(
            zip(score.top_ids[index].tolist(), score.top_logprobs[index], strict=True), start=1
        )
        if id >= 0
    ]
    return "\n".join([*lines, *(["", "likeliest here:", *likeliest] if likeliest else [])])


def _quoted(id: int, tokenizer: HasTokenBytes) -> str:
    """Return a token's text in quotation marks; bytes that are not valid UTF-8 become \\xff."""
    return f"“{one_line(spelling(tokenizer, id).decode('utf-8', 'backslashreplace'))}”"


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.3g} %"
