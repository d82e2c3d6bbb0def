"""Compares gpt2c.surprisal with minicons and wordsprobability, word by word.

    python tools/compare_surprisals.py MODEL TEXT [--sentences 1000] [--fixture FILE]

Needs torch, transformers, minicons and wordsprobability in the environment (measured with minicons
0.3.39 and wordsprobability 0.17). MODEL is any checkpoint that gpt2c reads; the other tools load a
float32 copy of it from a temporary folder, with GPT-2's tokenizer if MODEL has none. TEXT is a file
of English text, such as WikiText-2's raw test split; its sentences are taken evenly from the whole
file. Every tenth of them gets a double space, because the file has none.

minicons takes the folder as its model's name. wordsprobability takes only names that it knows, so
this script adds the folder to its table of models; nothing else of it changes. The script prints
the largest differences in nats, and which words were compared in another way because of a defect of
the other tool:

minicons, words
    It tokenizes each word anew, so it assigns wrong tokens to the words of a text with double
    spaces or other white space. Such texts are compared token by token.
wordsprobability, EOS
    Its factor for the first word counts the probability of EOS twice. The script takes it out.
wordsprobability, white space
    It begins a word at each token with a space, so a double space is an empty word of its own, and
    other white space does not separate words. The script compares sums up to the next border that
    both have.

--fixture writes the texts and the other tools' numbers as JSON, for the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import gpt2c

BAR = 1e-4  # nats
PEERS = ("minicons", "wordsprobability", "torch", "transformers")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--fixture", type=Path, metavar="FILE")
    return parser.parse_args()


def sentences_of(path: Path, n: int) -> list[str]:
    """Return n sentences of 3 to 60 words, taken evenly from a text; every tenth is changed."""
    lines = path.read_text(encoding="utf-8").split("\n")
    found = [s for line in lines for s in SENTENCE_END.split(line.strip())]
    found = [s for s in found if 3 <= len(s.split()) <= 60]
    chosen = [found[i * len(found) // n] for i in range(min(n, len(found)))]
    for index in range(0, len(chosen), 10):
        words = chosen[index].split(" ")
        chosen[index] = f"{' '.join(words[:2])}  {' '.join(words[2:])}"
    return chosen


@contextmanager
def float32_copy(model: gpt2c.GPT2) -> Iterator[str]:
    """Provide a folder with the model in float32 and a tokenizer, for transformers to load.

    transformers would compute in float16 with weights that are stored so.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if not Path(folder, "vocab.json").exists() and not Path(folder, "tokenizer.json").exists():
            from gpt2c.text.tokenizer import gpt2_vocab_and_merges

            vocab, merges = gpt2_vocab_and_merges()
            Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
            Path(folder, "merges.txt").write_bytes(merges.read_bytes())
        yield folder


@dataclass
class Words:
    """A text's words as a tool sees them: how many tokens each has, and its value in nats."""

    n_tokens: list[int]
    values: list[float]

    def sums(self) -> dict[int, float]:
        """Return the sum of the values up to each border, by the number of tokens before it."""
        ends = np.cumsum(self.n_tokens).tolist()
        return dict(zip(ends, np.cumsum(self.values).tolist(), strict=True))


def ours(model: gpt2c.GPT2, texts: list[str], correction: Any) -> list[Words]:
    found = gpt2c.surprisal(model, texts, correction=correction, unit="nats")
    result = []
    for p in found.passages:
        values = p.surprisals if p.corrected is None else p.corrected
        result.append(Words((p.words.end - p.words.first).tolist(), values.tolist()))
    return result


def minicons_words(folder: str, texts: list[str], corrected: bool) -> list[Words | None]:
    """Return minicons' words; None where the words that it tokenizes anew are not the text's."""
    from minicons import scorer

    lm = scorer.IncrementalLMScorer(folder, "cpu")
    found: list[Words | None] = []
    for begin in range(0, len(texts), 16):
        batch = texts[begin : begin + 16]
        scores = lm.word_score_tokenized(
            batch, str.split, bow_correction=corrected, bos_token=True, surprisal=True
        )
        for text, words in zip(batch, scores, strict=True):
            anew = [
                lm.tokenizer(f" {word}" if i else word, add_special_tokens=False)["input_ids"]
                for i, word in enumerate(text.split())
            ]
            whole = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            is_text = list(chain.from_iterable(anew)) == whole
            values = [value for _, value in words]
            found.append(Words(list(map(len, anew)), values) if is_text else None)
    return found


def minicons_tokens(folder: str, texts: list[str]) -> list[list[float]]:
    """Return minicons' surprisals of tokens."""
    from minicons import scorer

    lm = scorer.IncrementalLMScorer(folder, "cpu")
    scores = [lm.token_score(text, bos_token=True, surprisal=True)[0] for text in texts]
    return [[value for _, value in tokens][1:] for tokens in scores]  # the BOS token is first


@dataclass
class WordsProbability:
    """wordsprobability's words, uncorrected and corrected."""

    uncorrected: list[Words] = field(default_factory=list)
    corrected: list[Words] = field(default_factory=list)
    eos_excess: float = 0.0  # the largest effect of counting EOS twice


def wordsprobability_words(folder: str, texts: list[str]) -> WordsProbability:
    """Run wordsprobability on a folder, and take EOS out of the first words' factors once."""
    import torch
    from wordsprobability import main as package
    from wordsprobability import models
    from wordsprobability.models.bow_lm import EnglishGpt2Small

    class Local(EnglishGpt2Small):
        model_name = folder

    models.MODELS["local"] = Local
    tokens = package.get_surprisals_per_subword(texts, "local")
    lm = Local()
    with torch.no_grad():  # p(EOS | BOS), the same for all texts
        logits = lm.model(torch.tensor([[lm.bos_token_id]])).logits[0, -1].double()
    p_eos = float(torch.softmax(logits, -1)[lm.eos_token_id])
    rows = package.agg_surprisal_per_word(tokens, "local", return_buggy_surprisals=True)
    counts = tokens.groupby(["text_id", "word_id"]).size()
    found = WordsProbability()
    for index in range(len(texts)):
        n_tokens = counts.loc[index].tolist()
        raw = rows.loc[index]["surprisal_buggy"].tolist()
        values = rows.loc[index]["surprisal"].tolist()
        # Its first factor is -log(P + p_eos), and ours is -log(P).
        theirs = float(tokens[tokens.text_id == index].bos_fix.iloc[0])
        once = -math.log(math.exp(-theirs) - p_eos)
        found.eos_excess = max(found.eos_excess, once - theirs)
        values[0] += theirs - once
        found.uncorrected.append(Words(n_tokens, raw))
        found.corrected.append(Words(n_tokens, values))
    return found


@dataclass
class Comparison:
    """The largest difference of two tools, and how much was compared."""

    name: str
    largest: float = 0.0
    where: str = ""
    n_words: int = 0
    n_merged: int = 0  # words of ours that share a border with theirs only later
    n_other: int = 0  # texts compared in another way

    def add(self, text: str, a: Words, b: Words) -> None:
        """Compare the sums between the borders that both have."""
        x, y = a.sums(), b.sums()
        common = sorted(x.keys() & y.keys())
        self.n_words += len(common)
        self.n_merged += len(x) - len(common)
        before = 0.0, 0.0
        for border in common:
            self.note(text, abs((x[border] - before[0]) - (y[border] - before[1])))
            before = x[border], y[border]

    def note(self, text: str, difference: float) -> None:
        if not difference <= self.largest:  # a NaN too
            self.largest, self.where = difference, text

    def __str__(self) -> str:
        verdict = "ok" if self.largest <= BAR else "TOO LARGE"
        return (
            f"{self.name:44} {self.largest:.2e} nats at most, {self.n_words} words, "
            f"{self.n_merged} merged, {self.n_other} texts by token: {verdict}"
        )


def telescoping_error(model: gpt2c.GPT2, texts: list[str]) -> float:
    """Return the largest |sum of corrected - (total - factor before + factor after)|, in nats."""
    tokenizer, worst = model.tokenizer, 0.0
    first = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i)[:1] != b" "]
    bos = [model.config.bos_token_id]
    log_p_start = float(model.score(bos, [0], id_sets=[first]).set_logprobs[0, 0])
    for correction in ("pimentel", "oh_schuler"):
        found = gpt2c.surprisal(model, texts, correction=correction, unit="nats")
        for p in found.passages:
            sets = p.score.set_logprobs.astype(np.float64)
            total = p.surprisals.sum() - sets[p.words.end[-1] - p.n_given, 0]
            if correction == "pimentel":
                total += log_p_start
            worst = max(worst, abs(float(p.corrected.sum()) - total))
    return worst


def main() -> None:
    options = parse()
    texts = sentences_of(options.text, options.sentences)
    n_not_ascii = sum(not text.isascii() for text in texts)
    n_double = sum("  " in text for text in texts)
    print(f"{len(texts)} sentences, {n_not_ascii} not ASCII, {n_double} with a double space; "
          + ", ".join(f"{name} {version(name)}" for name in PEERS))  # fmt: skip
    model = gpt2c.GPT2.from_pretrained(options.model)
    found = {name: ours(model, texts, name) for name in ("none", "pimentel", "oh_schuler")}
    print(f"telescoping: {telescoping_error(model, texts):.2e} nats at most")
    with float32_copy(model) as folder:
        theirs = {
            "none": minicons_words(folder, texts, corrected=False),
            "oh_schuler": minicons_words(folder, texts, corrected=True),
        }
        by_words = wordsprobability_words(folder, texts)
        by_token = [i for i, words in enumerate(theirs["none"]) if words is None]
        token_values = minicons_tokens(folder, [texts[i] for i in by_token])
    comparisons = []
    for correction, peer in theirs.items():
        comparison = Comparison(f"{correction}: minicons bow_correction={correction != 'none'}")
        comparisons.append(comparison)
        for text, a, b in zip(texts, found[correction], peer, strict=True):
            if b is not None:
                comparison.add(text, a, b)
    for index, values in zip(by_token, token_values, strict=True):
        (p,) = gpt2c.surprisal(model, texts[index], unit="nats").passages
        for x, y in zip(-p.score.logprobs.astype(float), values, strict=True):
            comparisons[0].note(texts[index], abs(x - y))
        comparisons[0].n_other += 1
    for correction, peer_words in (
        ("none", by_words.uncorrected),
        ("pimentel", by_words.corrected),
    ):
        comparison = Comparison(f"{correction}: wordsprobability")
        comparisons.append(comparison)
        for text, a, b in zip(texts, found[correction], peer_words, strict=True):
            comparison.add(text, a, b)
    for comparison in comparisons:
        print(comparison)
        if comparison.largest > BAR:
            print(f"    {comparison.where!r}")
    print(f"wordsprobability counts EOS twice: {by_words.eos_excess:.2e} nats at most, taken out")
    if options.fixture is not None:
        write_fixture(options.fixture, texts, theirs, by_words)


def write_fixture(path: Path, texts: list[str], minicons: Any, other: WordsProbability) -> None:
    """Write the texts with the other tools' words: pairs of a number of tokens and nats."""

    def pairs(words: Words | None) -> Any:
        if words is None:
            return None
        values = [round(value, 6) for value in words.values]
        return [list(pair) for pair in zip(words.n_tokens, values, strict=True)]

    items = [
        {
            "text": text,
            "minicons": pairs(minicons["none"][i]),
            "minicons_bow_correction": pairs(minicons["oh_schuler"][i]),
            "wordsprobability_uncorrected": pairs(other.uncorrected[i]),
            "wordsprobability": pairs(other.corrected[i]),
        }
        for i, text in enumerate(texts)
    ]
    made_with = json.dumps({name: version(name) for name in PEERS})
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    path.write_text(f'{{"made_with": {made_with}, "texts": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
