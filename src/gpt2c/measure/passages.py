"""The passages that a call of gpt2c.surprisal measures, made from its arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.measure.words import (
    Passage,
    check_spans,
    join_text,
    join_words,
    set_apart,
    words_of,
)
from gpt2c.text.added_tokens import WHITE_SPACE


class Stimuli(NamedTuple):
    """The passages of a call.

    names
        Each passage's name in messages.
    text_ids
        Each passage's id in tables.
    rows
        Where the words of each passage are in the column of words; None if the texts were not given
        as a column.
    """

    passages: list[Passage]
    names: list[str]
    text_ids: list[Hashable]
    rows: list[list[int]] | None = None


def stimuli_of(
    texts: Any,
    *,
    by: Any,
    context: Any,
    spans: Any,
    separator: str,
    apart: re.Pattern[str] | None,
    text_ids: Any,
) -> Stimuli:
    """Check the texts of a call; see gpt2c.surprisal for the arguments.

    Raises OptionError or OptionTypeError.
    """
    if not isinstance(separator, str):
        raise OptionTypeError(f"sep is {show(separator)}; it must be a str")
    given = [texts] if isinstance(texts, str) else as_list("texts", texts)
    if by is not None:
        for name, value in {"spans": spans, "apart": apart, "text_ids": text_ids}.items():
            if value is not None:
                raise OptionError(f"{name} is given with by, whose words and texts are fixed")
        return _grouped(given, as_list("by", by), context, separator)
    ids = range(1, len(given) + 1) if text_ids is None else as_list("text_ids", text_ids)
    _check_length("text_ids", len(ids), len(given), "texts")
    contexts = _contexts(context, len(given), "texts")
    all_spans = None if spans is None else as_list("spans", spans)
    if all_spans is not None:
        if isinstance(texts, str):
            all_spans = [all_spans]
        _check_length("spans", len(all_spans), len(given), "texts")
    names = [f"text {id if isinstance(id, int) else show(id)}" for id in ids]
    passages = []
    for index, (text, before) in enumerate(zip(given, contexts, strict=True)):
        if isinstance(text, str):
            joined, begin = join_text(text, separator, before)
            if all_spans is None:
                found = words_of(joined, begin)
            else:
                checked = check_spans(text, all_spans[index], names[index])
                found = [(a + begin, b + begin) for a, b in checked]
            passage = Passage(joined, found, begin)
        elif all_spans is not None:
            raise OptionError(f"{names[index]} is a list of words; spans are of a text")
        else:
            words = [
                _checked_word(word, f"{names[index]}, word {number}")
                for number, word in enumerate(
                    as_list(names[index], text, expected="a text or a list of words")
                )
            ]
            passage = join_words(words, separator, before)
        if apart is not None:
            passage = passage._replace(spans=set_apart(passage.text, passage.spans, apart))
        passages.append(passage)
    return Stimuli(passages, names, list(ids))


def _grouped(words: list[Any], groups: list[Any], context: Any, separator: str) -> Stimuli:
    """Return a passage for each group of a column of words, in the order of first appearance."""
    _check_length("by", len(groups), len(words), "words")
    contexts = _contexts(context, len(words), "words")
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        if not isinstance(group, Hashable):
            raise OptionTypeError(f"by has {show(group)} in row {row}; a group must be hashable")
        if any(isinstance(part, float) and math.isnan(part) for part in _parts_of(group)):
            raise OptionError(
                f"by has {show(group)} in row {row}; NaN equals no other row's group, so give rows "
                "without a group a name, or leave them out"
            )
        rows.setdefault(group, []).append(row)
    passages, names = [], []
    for group, members in rows.items():
        name = f"group {show(group)}"
        for row in members:
            if contexts[row] != contexts[members[0]]:
                raise OptionError(
                    f"{name}: context differs between rows {members[0]} and {row}; all rows of a "
                    "group must have the same"
                )
        checked = [_checked_word(words[row], f"{name}, row {row}") for row in members]
        passages.append(join_words(checked, separator, contexts[members[0]]))
        names.append(name)
    return Stimuli(passages, names, list(rows), list(rows.values()))


def _parts_of(group: Hashable) -> tuple[Any, ...]:
    return group if isinstance(group, tuple) else (group,)


def _checked_word(word: object, where: str) -> str:
    if not isinstance(word, str):
        raise OptionTypeError(f"{where}: the word is {show(word)}; it must be a str")
    if not word.strip(WHITE_SPACE):
        raise OptionError(f"{where}: the word is {show(word)}; it must have a character to score")
    return word


def _contexts(context: Any, n: int, what: str) -> list[str]:
    if context is None:
        return [""] * n
    if isinstance(context, str):
        return [context] * n
    contexts = as_list("context", context)
    _check_length("context", len(contexts), n, what)
    for index, item in enumerate(contexts):
        if not isinstance(item, str):
            raise OptionTypeError(f"context {index} is {show(item)}; it must be a str")
    return contexts


def _check_length(name: str, found: int, expected: int, what: str) -> None:
    if found != expected:
        raise OptionError(
            f"{name} has {found} items, and there are {expected} {what}; give as many"
        )


def as_list(name: str, values: object, expected: str = "a list") -> list[Any]:
    """Return a list, an array, or a column of pandas, polars or R as a list.

    Raises OptionTypeError, also for a whole frame or a dict, whose iteration would give column
    names, and for a set, which has no order. `expected` is for the message.
    """
    if isinstance(values, Mapping | Set) or hasattr(values, "columns"):
        raise OptionTypeError(
            f"{name} is of type {type(values).__name__}; it must be {expected}; choose a column, "
            'for example table["sentence"]'
        )
    for method in ("to_list", "tolist"):  # of pandas and polars; of NumPy
        convert = getattr(values, method, None)
        if convert is not None:
            values = convert()
            break
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise OptionTypeError(f"{name} is {show(values)}; it must be {expected}")
    return list(values)


def pattern_of(name: str, given: str | re.Pattern[str] | None) -> re.Pattern[str] | None:
    """Return a regular expression, compiled. Raises OptionError or OptionTypeError."""
    if given is None or (isinstance(given, re.Pattern) and isinstance(given.pattern, str)):
        return given
    if not isinstance(given, str):
        raise OptionTypeError(f"{name} is {show(given)}; it must be a regular expression")
    try:
        return re.compile(given)
    except re.error as error:
        raise OptionError(
            f"{name} is {show(given)}, which is no regular expression: {error}"
        ) from None
