"""Measures speculative decoding on real text: gpt2c with and without drafts, and other engines.

    python benchmarks/drafts.py CHECKPOINT TEXT [--engines llama.cpp,openvino-f32,...]

Prompts are the first 40 tokens of the text's paragraphs; 150 tokens are generated for each. A
greedy text counts up to its first repeated 20-gram: there it starts to loop, and every drafted
token is accepted. Peers decode the same prompts greedily to the same length. gpt2c and its peers
alternate; each turn takes a part of the prompts. The checkpoint needs a tokenizer of its own.

A second part measures answers that repeat the prompt, as in editing. Its prompts are greedy texts
that the model generated and that loop.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import EngineError, Worker, add_options, launcher_for, rate_summary

import gpt2c

N_PROMPT = 40
LOOP_GRAM = 20  # tokens; a text that repeats a run of this length loops
LOOP_TOKENS = 300  # new tokens, enough for a greedy text to loop
TURNS = 5


@dataclass
class Variant:
    """A set of options, and the measurements of its turns."""

    name: str
    options: dict[str, Any]
    rates: list[float] = field(default_factory=list)  # tokens per second
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    tokens: int = 0


def length_before_loop(ids: list[int]) -> int:
    """Return the number of ids before the id that completes a 20-gram for the second time."""
    seen = set()
    for i in range(len(ids) - LOOP_GRAM + 1):
        gram = tuple(ids[i : i + LOOP_GRAM])
        if gram in seen:
            return i + LOOP_GRAM - 1
        seen.add(gram)
    return len(ids)


def mostly_repeats(prompt: list[int], answer: list[int]) -> bool:
    """Return whether at least 90 % of the answer's 8-grams occur in the prompt."""
    grams = {tuple(prompt[i : i + 8]) for i in range(len(prompt))}
    found = [tuple(answer[i : i + 8]) in grams for i in range(len(answer) - 7)]
    return sum(found) >= 0.9 * len(found)


def take_turn(
    model: gpt2c.GPT2, variant: Variant, prompts: list[list[int]], lengths: list[int]
) -> None:
    """Measure one turn: the time of all tokens except the first of each text, which is prefill."""
    begin = time.perf_counter()
    for prompt in prompts:
        model.complete(prompt, max_new_tokens=1, **variant.options)
    middle = time.perf_counter()
    done = [
        model.complete(prompt, max_new_tokens=n, **variant.options)
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    seconds = time.perf_counter() - middle - (middle - begin)
    n_tokens = sum(len(d.ids) for d in done)
    variant.rates.append((n_tokens - len(prompts)) / seconds)
    variant.tokens += n_tokens
    variant.passes += sum(d.passes for d in done)
    variant.drafted += sum(d.drafted for d in done)
    variant.accepted += sum(d.accepted for d in done)


def peer_rate(worker: Worker, prompts: list[list[int]], n_new: int) -> float:
    """Return a peer's tokens per second, measured in the same way."""
    with worker.turn():
        worker.ask("generate", prompts=prompts[:1], n_new=8)  # warm-up after the stop
        first, whole = (
            sum(worker.ask("generate", prompts=[p], n_new=n)["seconds"] for p in prompts)
            for n in (1, n_new)
        )
    return len(prompts) * (n_new - 1) / (whole - first)


def measure(
    model: gpt2c.GPT2,
    workers: dict[str, Worker],
    prompts: list[list[int]],
    n_new: int,
    counts_all: bool = False,
) -> tuple[list[Variant], dict[str, list[float]]]:
    """Measure gpt2c without and with drafts, and the peers; return variants and peers' rates.

    With counts_all, loops of greedy texts count too.
    """
    variants = [
        Variant(f"{name}, {draft or 'plain'}", {**options, "draft": draft})
        for name, options in (("greedy", {}), ("temperature 0.8", {"temperature": 0.8, "seed": 1}))
        for draft in (None, "auto")
    ]
    peers: dict[str, list[float]] = {name: [] for name in workers}
    whole = [n_new] * len(prompts)
    lengths = [length_before_loop(model.generate(p, max_new_tokens=n_new)) for p in prompts]
    for turn in range(TURNS):
        part = slice(turn, None, TURNS)
        for variant in variants:
            counted = lengths if "greedy" in variant.name and not counts_all else whole
            take_turn(model, variant, prompts[part], counted[part])
        for name, worker in workers.items():
            peers[name].append(peer_rate(worker, prompts[part], n_new))
    return variants, peers


def show(variants: list[Variant], peers: dict[str, list[float]]) -> None:
    for plain, drafted in zip(variants[::2], variants[1::2], strict=True):
        speedups = [b / a for a, b in zip(plain.rates, drafted.rates, strict=True)]
        print(f"{plain.name:28}{rate_summary(plain.rates)}")
        speedup = statistics.median(speedups)
        print(f"{drafted.name:28}{rate_summary(drafted.rates)}   {speedup:.2f} x plain")
        if drafted.passes:
            print(f"{'':28}{drafted.tokens / drafted.passes:.1f} tokens per pass, "
                  f"{drafted.drafted / drafted.passes:.1f} drafted, "
                  f"acceptance rate {drafted.accepted / max(drafted.drafted, 1):.2f}")  # fmt: skip
    for name, rates in peers.items():
        speedups = [b / a for a, b in zip(rates, variants[1].rates, strict=True)]
        speedup = statistics.median(speedups)
        print(f"{name:28}{rate_summary(rates)}   gpt2c with drafts: {speedup:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--engines", default="", help="float32 peers, with compare.py's names")
    options = parser.parse_args()
    launcher = launcher_for(options)
    model = gpt2c.GPT2.from_pretrained(options.checkpoint, threads=options.threads)
    paragraphs = [line for line in options.text.read_text().split("\n") if len(line) > 200]
    step = max(len(paragraphs) // options.prompts, 1)
    texts = [model.tokenizer.encode(line) for line in paragraphs[::step][: options.prompts]]
    prompts = [ids[:N_PROMPT] for ids in texts]
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for name in filter(None, options.engines.split(",")):
            try:
                workers[name] = launcher.worker(name)
                stack.callback(workers[name].close)
            except EngineError as error:
                print(f"without {name}: {error}", flush=True)
        show(*measure(model, workers, prompts, options.tokens))
    print("\nanswers that repeat the prompt:")
    loops = [[*p, *model.generate(p, max_new_tokens=LOOP_TOKENS)] for p in prompts]
    loops = [p for p in loops if mostly_repeats(p, model.generate(p, max_new_tokens=100))]
    print(f"{len(loops)} prompts:")
    show(*measure(model, {}, loops, 100, counts_all=True))


if __name__ == "__main__":
    main()
