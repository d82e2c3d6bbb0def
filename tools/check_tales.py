"""Checks that samples of the model "tales" have real words, few copies and little repetition.

    python tools/check_tales.py --corpus childrens-prose.txt --model src/gpt2c/models/tales

This draws fifty samples with gpt2c and prints the measures. train_tales.py calls `measure` too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tales_corpus import load, words_of

import gpt2c

SEEDS = range(1, 51)
TOKENS = 150
TEMPERATURE = 0.8
TOP_K = 40
MIN_KNOWN_WORDS = 0.97
MAX_COPY = 25  # words
MIN_DISTINCT = 0.90
MIN_COPY = 8  # words; a shorter run that both texts have is no copy


@dataclass(frozen=True)
class Measures:
    """The measures of a set of samples."""

    known_words: float  # share of the samples' words that occur in the training text
    longest_copy: int  # words in the longest run of a sample that the training text has too
    distinct_4grams: float  # share of the samples' runs of four words that are distinct

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return (
            self.known_words >= MIN_KNOWN_WORDS
            and self.longest_copy <= MAX_COPY
            and self.distinct_4grams >= MIN_DISTINCT
        )


def measure(samples: Iterable[str], training_texts: Iterable[str]) -> Measures:
    """Measure samples, without their last words, which the token limit may have cut."""
    sampled = [words_of(sample)[:-1] for sample in samples]
    trained = [words_of(text) for text in training_texts]
    vocabulary = {word for words in trained for word in words}
    words = [word for sample in sampled for word in sample]
    grams = [tuple(s[i : i + 4]) for s in sampled for i in range(len(s) - 3)]
    return Measures(
        known_words=sum(word in vocabulary for word in words) / len(words),
        longest_copy=longest_copy(sampled, trained),
        distinct_4grams=len(set(grams)) / len(grams),
    )


def longest_copy(samples: list[list[str]], trained: list[list[str]]) -> int:
    """Return the length of the longest run of words that a sample shares with a training text.

    An index holds the places of the samples' runs of `MIN_COPY` words in the training texts. Each
    match is then extended to its full length. The result is 0 if no run has `MIN_COPY` words.
    """
    wanted = {tuple(s[i : i + MIN_COPY]) for s in samples for i in range(len(s) - MIN_COPY + 1)}
    places: dict[tuple[str, ...], list[tuple[list[str], int]]] = {}
    for words in trained:
        for i in range(len(words) - MIN_COPY + 1):
            if (run := tuple(words[i : i + MIN_COPY])) in wanted:
                places.setdefault(run, []).append((words, i))
    longest = 0
    for sample in samples:
        for i in range(len(sample) - MIN_COPY + 1):
            for words, start in places.get(tuple(sample[i : i + MIN_COPY]), []):
                longest = max(longest, shared_run(sample, i, words, start))
    return longest


def shared_run(left: list[str], i: int, right: list[str], j: int) -> int:
    """Return how many words are equal from `left[i]` and `right[j]` onwards."""
    length = 0
    while i + length < len(left) and j + length < len(right):
        if left[i + length] != right[j + length]:
            break
        length += 1
    return length


def draw_samples(model_dir: Path) -> list[str]:
    """Draw a sample for each seed, from the end-of-text token to the end of the tale."""
    with gpt2c.GPT2.from_pretrained(model_dir) as model:
        samples = model.generate(
            [""] * len(SEEDS),
            seed=list(SEEDS),
            temperature=TEMPERATURE,
            top_k=TOP_K,
            max_new_tokens=TOKENS,
        )
    return [sample.strip() for sample in samples]


def main() -> None:
    """Draw the samples, print the measures, and fail if one is outside its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("src/gpt2c/models/tales"))
    arguments = parser.parse_args()
    training_texts = [tale.text for tale in load(arguments.corpus).train]
    measures = measure(draw_samples(arguments.model), training_texts)
    print(json.dumps(asdict(measures), indent=2))
    if not measures.passed:
        raise SystemExit(f"a measure is outside its limit: {measures}")


if __name__ == "__main__":
    main()
