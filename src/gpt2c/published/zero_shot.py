"""The zero-shot table of the GPT-2 paper (Radford et al. 2019, table 3), measured again."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from gpt2c.errors import OptionError
from gpt2c.measure.scores import perplexity_of
from gpt2c.model import GPT2
from gpt2c.published.benchmark_files import (
    Question,
    read_bytes,
    read_lines,
    read_passages,
    read_questions,
)
from gpt2c.published.detokenizer import Detokenizer
from gpt2c.published.sizes import size_of
from gpt2c.published.streams import CountFunction, score_lines, score_stream
from gpt2c.published.tasks import Task
from gpt2c.text.tokenizer import encode_part

_TABLE: Final = Path(__file__).parents[1] / "data" / "published" / "paper_table3.toml"
_BATCH: Final = 64  # passages or questions of a call of score
_N_GUESSES: Final = 128  # of the last word, of which stop words are passed over
_BYTES_PER_LIMIT: Final = 1000
# What counts as a right guess of LAMBADA's last word.
_GUESSES: Final = (
    "word", "word, stop words passed over", "token", "token, stop words passed over",
)  # fmt: skip

_T = TypeVar("_T")


@dataclass(frozen=True)
class Measured:
    """A number that was measured for a column of the table.

    column, measure
        The paper's column, and what exactly was measured: "PPL per word".
    value
        A perplexity, bits, or an accuracy in percent.
    paper
        The published figure of this size of GPT-2, as printed; None for other models.
    n, unit
        How many words, bytes, characters, passages or questions were measured.
    tokens
        How many tokens were scored.
    file, note
        The file that was read; what is unusual about it, or "".
    """

    column: str
    measure: str
    value: float
    paper: str | None
    n: int
    unit: str
    tokens: int
    file: str
    note: str = ""


def measure(
    model: GPT2,
    task: Task,
    path: Path,
    *,
    stride: int | None = None,
    limit: int | None = None,
    count: CountFunction = lambda n: None,
) -> list[Measured]:
    """Measure a task on its file; return a number for each way of measuring that the paper allows.

    stride
        Texts longer than the context are scored in windows that begin `stride` tokens apart, as in
        GPT2.score.
    limit
        Measure only the first `limit` lines, passages or questions, or 1,000 * `limit` bytes.
    count
        Is called with the number of tokens, passages or questions scored since the last call.

    Raises OptionError naming the file if it has not the publisher's form, and the errors of
    GPT2.score.
    """
    run = {"words": _words, "bytes": _bytes, "last_word": _last_word, "cloze": _cloze}[task.kind]
    return run(_Run(model, task, path, stride, limit, count))


def published_figure(size: str | None, column: str) -> str | None:
    """Return the paper's figure for a size such as "124M", or None."""
    figures = _figures().get(size or "")
    return None if figures is None else figures.get(column)


@cache
def _figures() -> dict[str, dict[str, str]]:
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return {
        size: dict(zip(table["columns"], row, strict=True))
        for size, row in table["figures"].items()
    }


@dataclass(frozen=True)
class _Run:
    """A task to measure, and how."""

    model: GPT2
    task: Task
    path: Path
    stride: int | None
    limit: int | None
    count: CountFunction

    def result(
        self, measure: str, value: float, n: int, unit: str, tokens: int, column: int = 0
    ) -> Measured:
        name = self.task.columns[column]
        figure = published_figure(size_of(self.model.config), name)
        note = ""
        if self.limit is None and n != self.task.units:
            note = f"expected {self.task.units:,} {unit}s"
        return Measured(name, measure, value, figure, n, unit, tokens, str(self.path), note)

    def limited(self, items: list[_T]) -> list[_T]:
        """Return the items up to the limit. Raises OptionError if there is none."""
        if not items:
            raise OptionError(f"{self.path}: is empty")
        return items[: self.limit]


def _words(run: _Run) -> list[Measured]:
    """Measure the perplexity per word of the tokenized text; a line end counts as a word."""
    lines = run.limited([line.split() for line in read_lines(run.path)])
    detokenizer = Detokenizer(run.task.rules)
    detokenizer.find_exceptions(word for line in lines for word in line)
    texts = [detokenizer.join(line) + "\n" for line in lines]
    if run.task.context == "line":
        total, tokens = score_lines(run.model, texts, run.count)
    else:
        total, tokens = score_stream(run.model, "".join(texts), run.stride, run.count)
    n = sum(len(line) + 1 for line in lines)
    return [run.result("PPL per word", perplexity_of(total, n), n, "word", tokens)]


def _bytes(run: _Run) -> list[Measured]:
    n_bytes = run.task.units if run.limit is None else run.limit * _BYTES_PER_LIMIT
    text = read_bytes(run.path, run.task.first, min(n_bytes, run.task.units))
    total, tokens = score_stream(run.model, text, run.stride, run.count)
    n = len(text) if run.task.unit == "character" else len(text.encode("utf-8"))
    bits = -total / math.log(2) / n
    return [run.result(f"bits per {run.task.unit}", bits, n, run.task.unit, tokens)]


def _last_word(run: _Run) -> list[Measured]:
    """Measure perplexity and accuracy of the last word, and of the last token, of each passage."""
    contexts, words = [], []
    for text in run.limited(read_passages(run.path)):
        for old, new in run.task.replace:
            text = text.replace(old, new)
        context, _, word = text.strip().rpartition(" ")
        contexts.append(run.task.prefix + context)
        words.append(" " + word)
    word_total = token_total = 0.0
    n_tokens = 0
    right = dict.fromkeys(_GUESSES, 0)
    for begin in range(0, len(words), _BATCH):
        batch = slice(begin, begin + _BATCH)
        scores = run.model.score(contexts[batch], words[batch], top_logprobs=_N_GUESSES)
        for score in scores:
            n = score.n_scored
            n_tokens += n
            word_total += score.total
            token_total += float(score.logprobs[-1])
            arg_max = score.is_arg_max
            guess = _guess(run, score.top_ids[-n].tolist())
            is_right = [guess == score.ids[-n], *arg_max[len(arg_max) - n + 1 :]]
            right["word"] += bool(arg_max[-n:].all())
            right["token"] += bool(arg_max[-1])
            right["word, stop words passed over"] += all(is_right)
            right["token, stop words passed over"] += bool(is_right[-1])
        run.count(len(scores))
    n = len(words)
    return [
        run.result("PPL of the last word", perplexity_of(word_total, n), n, "passage", n_tokens),
        run.result("PPL of the last token", perplexity_of(token_total, n), n, "passage", n_tokens),
        *(
            run.result(f"ACC of the last {what}", 100 * right[what] / n, n, "passage", n_tokens, 1)
            for what in _GUESSES
        ),
    ]


def _guess(run: _Run, ids: list[int]) -> int:
    """Return the most likely first token of the last word that is no stop word, or -1."""
    for id in ids:
        if id >= 0 and run.model.tokenizer.decode([id]).strip().lower() not in run.task.stop_words:
            return id
    return -1


def _cloze(run: _Run) -> list[Measured]:
    """Measure how often the right choice makes the rest of its sentence the most likely."""
    questions = run.limited(read_questions(run.path))
    detokenizer = Detokenizer(run.task.rules)
    detokenizer.find_exceptions(word for question in questions for word in question.words())
    right = n_tokens = 0
    for question in questions:
        context, ends = _choices(question, detokenizer)
        encoded = [encode_part(run.model.tokenizer, end) for end in ends]
        room = run.model.config.n_positions - max(map(len, encoded))
        given = encode_part(run.model.tokenizer, context)[-max(room, 1) :]
        scores = run.model.score(given, encoded)
        totals = [score.total for score in scores]
        right += totals.index(max(totals)) == question.answer
        n_tokens += sum(score.n_scored for score in scores)
        run.count(1)
    n = len(questions)
    return [run.result("ACC of the choice", 100 * right / n, n, "question", n_tokens)]


def _choices(question: Question, detokenizer: Detokenizer) -> tuple[str, list[str]]:
    """Return the text before the gap, and for each choice the text from the gap on.

    The text before the gap is the same for all choices. A choice that is joined to an opening
    quotation mark begins without a space.
    """
    story = [detokenizer.join(line) for line in question.story]
    texts = [
        detokenizer.join([*question.before, *choice, *question.after])
        for choice in question.choices
    ]
    start = detokenizer.join(question.before)
    if not all(text.startswith(start) for text in texts):  # a rule joins a choice to a word before
        start = ""
    context = " ".join([*story, start] if start else story)
    space = "" if start else " "
    return context, [space + text[len(start) :] for text in texts]
