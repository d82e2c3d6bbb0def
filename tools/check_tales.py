"""Checks on the samples of the "tales" model: real words, nothing copied, little repetition.

    python tools/check_tales.py --corpus childrens-prose.txt --model src/gpt2c/models/tales

draws fifty samples with gpt2c and prints the measures; `measure` takes any texts, however
they were drawn.
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
LEAST_KNOWN_WORDS = 0.97
LONGEST_COPY = 25  # words
LEAST_DISTINCT = 0.90
ANCHOR = 8  # words; a shorter run is no copy


@dataclass(frozen=True)
class Measures:
    """What the samples are judged by."""

    known_words: float  # share of the samples' words that occur in the training text
    longest_copy: int  # longest run of words, within one sample, that the training text has too
    distinct_4grams: float  # share of the samples' runs of four words that are distinct

    @property
    def passed(self) -> bool:
        """Whether every measure keeps its limit."""
        return (
            self.known_words >= LEAST_KNOWN_WORDS
            and self.longest_copy <= LONGEST_COPY
            and self.distinct_4grams >= LEAST_DISTINCT
        )


def measure(samples: Iterable[str], training_texts: Iterable[str]) -> Measures:
    """A sample's last word is left out: the token limit may have cut it."""
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
    """Length of the longest run of words that a sample shares with a training text.

    Runs are found by the places of their first words, `ANCHOR` of them, in the training texts;
    where no sample shares so many, the answer is 0.
    """
    wanted = {tuple(s[i : i + ANCHOR]) for s in samples for i in range(len(s) - ANCHOR + 1)}
    places: dict[tuple[str, ...], list[tuple[list[str], int]]] = {}
    for words in trained:
        for i in range(len(words) - ANCHOR + 1):
            if (run := tuple(words[i : i + ANCHOR])) in wanted:
                places.setdefault(run, []).append((words, i))
    longest = 0
    for sample in samples:
        for i in range(len(sample) - ANCHOR + 1):
            for words, start in places.get(tuple(sample[i : i + ANCHOR]), []):
                longest = max(longest, shared_run(sample, i, words, start))
    return longest


def shared_run(left: list[str], i: int, right: list[str], j: int) -> int:
    """Length of the run of words that starts at `i` on the left and at `j` on the right."""
    length = 0
    while i + length < len(left) and j + length < len(right):
        if left[i + length] != right[j + length]:
            break
        length += 1
    return length


def draw_samples(model_dir: Path) -> list[str]:
    """One sample a seed, each from the end-of-text token alone, up to the end of its tale."""
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
    """Draw the samples, print the measures, fail if one misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("src/gpt2c/models/tales"))
    arguments = parser.parse_args()
    training_texts = [tale.text for tale in load(arguments.corpus).train]
    measures = measure(draw_samples(arguments.model), training_texts)
    print(json.dumps(asdict(measures), indent=2))
    if not measures.passed:
        raise SystemExit("the samples miss a limit")


if __name__ == "__main__":
    main()
