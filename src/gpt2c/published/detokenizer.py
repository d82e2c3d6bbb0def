"""Write tokenized text as ordinary text, in a way that can be undone exactly.

A benchmark's text is tokenized: words and punctuation marks stand apart. GPT-2 was trained on
ordinary text, so its paper scores ordinary text, made "using invertible de-tokenizers" (Radford et
al. 2019, section 3.1). Because they are invertible, the probability of the ordinary text is that of
the benchmark's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Between(NamedTuple):
    """A word that joins its neighbours, written as `text`.

    `neighbour` matches the character before it and the one after it.
    """

    word: str
    text: str
    neighbour: re.Pattern[str]


@dataclass(frozen=True)
class Rules:
    """How the words of a benchmark are written in ordinary text.

    left, right
        Words that are joined to the word before them or after them, each with its text:
        {"n't": "n't", "-RRB-": ")"}.
    quotes
        Words that open and close a quotation in turn, in each line.
    between
        Words that join both of their neighbours.
    alone
        Other words that are written differently: {"<unk>": "unk"}.
    """

    left: dict[str, str] = field(default_factory=dict)
    right: dict[str, str] = field(default_factory=dict)
    quotes: tuple[str, ...] = ()
    between: tuple[Between, ...] = ()
    alone: dict[str, str] = field(default_factory=dict)


class Detokenizer:
    """Joins the words of a line to text, and splits such text into the same words again.

    Spaces divide a text into chunks, and `words_of` says which words a chunk stands for. `join`
    joins two words only if `words_of` gives both back. So `split` undoes `join`, whatever the
    rules.

    `words_of` would split some words of a benchmark that are one word there, such as "U.S." where
    full stops stand apart. These are exceptions, which it never splits: `find_exceptions` collects
    them from the benchmark's words.
    """

    def __init__(self, rules: Rules, exceptions: Iterable[str] = ()) -> None:
        """`exceptions` are words that are never split."""
        self._rules, self._exceptions = rules, set(exceptions)
        quotes = {word: word for word in rules.quotes}
        between = {rule.word: rule.text for rule in rules.between}
        self._texts = {**rules.alone, **between, **quotes, **rules.right, **rules.left}
        self._before = _words_by_text({**quotes, **rules.right})
        self._after = _words_by_text({**quotes, **rules.left})
        self._alone = {**self._after, **self._before, **_words_by_text(rules.alone)}
        self._known: dict[str, list[str]] = {}  # what words_of has returned

    def find_exceptions(self, words: Iterable[str]) -> list[str]:
        """Add the words that would be split, or read as another word; return all exceptions."""
        self._exceptions |= {word for word in set(words) if self.words_of(word) != [word]}
        self._known.clear()
        return sorted(self._exceptions)

    def join(self, words: Sequence[str]) -> str:
        """Return a line's words, whose exceptions have been collected, as ordinary text."""
        chunks: list[list[str]] = []
        is_open = dict.fromkeys(self._rules.quotes, False)
        joins_next = False
        at = 0
        while at < len(words):
            word, new = words[at], [words[at]]
            is_between = any(word == rule.word for rule in self._rules.between)
            if is_between:
                new = list(words[at : at + 2])  # it joins both neighbours, or neither
            opens = word in is_open and not is_open[word]
            if word in is_open:
                is_open[word] = opens
            closes = word in is_open and not opens
            joins = joins_next or is_between or closes or word in self._rules.left
            if joins and chunks and self._can_join(chunks[-1], new):
                chunks[-1] += new
            else:
                new = [word]
                chunks.append(new)
            joins_next = opens or word in self._rules.right
            at += len(new)
        return " ".join(map(self._text_of, chunks))

    def split(self, text: str) -> list[str]:
        """Return the words of a text that `join` returned."""
        return [word for chunk in text.split() for word in self.words_of(chunk)]

    def words_of(self, chunk: str) -> list[str]:
        """Return the words that a chunk stands for."""
        if chunk not in self._known:
            self._known[chunk] = self._find_words(chunk)
        return self._known[chunk]

    def _find_words(self, chunk: str) -> list[str]:
        head: list[str] = []
        tail: list[str] = []
        while text := self._first_of(self._before, chunk, chunk.startswith):
            head.append(self._before[text])
            chunk = chunk[len(text) :]
        while text := self._first_of(self._after, chunk, chunk.endswith):
            tail.insert(0, self._after[text])
            chunk = chunk[: -len(text)]
        if chunk in self._exceptions:
            return [*head, chunk, *tail]
        return [*head, *self._split_between(chunk), *tail]

    def _first_of(
        self, words: dict[str, str], chunk: str, is_at_end: Callable[[str], bool]
    ) -> str | None:
        """Return the text, of a word to take from the chunk, at its beginning or end."""
        if chunk in self._exceptions:
            return None
        return next((text for text in words if len(text) < len(chunk) and is_at_end(text)), None)

    def _split_between(self, chunk: str) -> list[str]:
        parts, begin, at = [], 0, 1
        while at < len(chunk):
            for word, text, neighbour in self._rules.between:
                end = at + len(text)
                if (
                    begin < at < end < len(chunk)
                    and chunk.startswith(text, at)
                    and neighbour.match(chunk[at - 1])
                    and neighbour.match(chunk[end])
                ):
                    parts += [chunk[begin:at], word]
                    begin = at = end
                    break
            at += 1
        return [self._word_alone(part) for part in [*parts, chunk[begin:]]]

    def _word_alone(self, part: str) -> str:
        return part if part in self._exceptions else self._alone.get(part, part)

    def _can_join(self, chunk: list[str], new: list[str]) -> bool:
        together = [*chunk, *new]
        return self.words_of("".join(self._texts.get(w, w) for w in together)) == together

    def _text_of(self, chunk: list[str]) -> str:
        text = "".join(self._texts.get(word, word) for word in chunk)
        # A single word may not be joined to any other, and its text may stand for another word.
        return text if self.words_of(text) == chunk else chunk[0]


def _words_by_text(texts: dict[str, str]) -> dict[str, str]:
    """Return the words by their texts, the longest text first."""
    return {text: word for word, text in sorted(texts.items(), key=lambda item: -len(item[1]))}
