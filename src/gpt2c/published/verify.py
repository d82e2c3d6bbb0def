"""Compare a model with published results: is it the right one, and does it run correctly here?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from gpt2c.errors import ContextError, NumericalError, OptionError, TokenizerError
from gpt2c.measure.scores import perplexity_of
from gpt2c.model import GPT2
from gpt2c.published.benchmark_files import read_lines
from gpt2c.published.facts import Fact, Facts
from gpt2c.published.general import general_checks
from gpt2c.published.report import Check, checked, skipped
from gpt2c.text.tokenizer import encode_part


def verify(model: GPT2, facts: Facts, wikitext: Path | None = None) -> Iterator[Check]:
    """Yield the results of all checks of a model.

    First the general checks, then the published results of the model in `facts` whose tensors have
    the same shapes. `wikitext` is WikiText-2's raw test set, for published perplexities, which are
    skipped without it.

    Raises OptionError, OptionTypeError or CheckpointNotFoundError for `wikitext`; CacheMemoryError;
    and ClosedError.
    """
    text = None if wikitext is None else wikitext_text(wikitext)
    name = facts.model_like(model.config)
    yield from general_checks(model, None if name is None else (name, facts.models[name]))
    for fact in facts.facts:
        if fact.model == name:
            yield _check(model, fact, text)
    if text is not None and not any(
        f.model == name and f.kind == "perplexity" for f in facts.facts
    ):
        yield skipped("perplexity of --wikitext", "no result is published for this model", "")


def wikitext_text(path: Path) -> str:
    """Return WikiText-2's raw test set as transformers' documentation joins it.

    It joins the lines by two line ends; a line that is not blank keeps its own. `path` is the
    publisher's wiki.test.raw.
    """
    lines = [line + "\n" if line.strip() else "" for line in read_lines(path)]
    return "\n\n".join(lines)


def _check(model: GPT2, fact: Fact, text: str | None) -> Check:
    name = _name(fact)
    if model.dtype not in ("float32", "float64"):
        return skipped(name, f"the result is of float32, the model is {model.dtype}", fact.source)
    if fact.kind == "perplexity" and text is None:
        return skipped(name, "needs --wikitext", fact.source)
    run = {
        "greedy": _greedy, "loss": _loss, "logit": _logit, "logprobs": _logprobs, "next": _next,
    }  # fmt: skip
    try:
        if fact.kind == "perplexity":
            return _perplexity(model, fact, text or "")
        return run[fact.kind](model, fact)
    except (NumericalError, ContextError, OptionError, TokenizerError) as error:
        return checked(False, name, str(error), "a result", source=fact.source)


def _name(fact: Fact) -> str:
    what = {
        "greedy": "greedy text", "loss": "loss", "logit": "logit", "logprobs": "log-probabilities",
        "next": "most likely words", "perplexity": "perplexity of WikiText-2",
    }[fact.kind]  # fmt: skip
    if fact.kind == "perplexity":
        return what
    of = fact.prompt or fact.text
    return f"{what}: {_shown(of)}" if of else f"{what}: {_n_ids(fact)} ids"


def _n_ids(fact: Fact) -> int:
    return len(fact.prompt_ids or ()) or sum(map(len, fact.rows))


def _result(fact: Fact, is_right: bool, found: str, expected: str) -> Check:
    tolerance = f"{fact.tolerance:g}: {fact.why}"
    return checked(is_right, _name(fact), found, expected, tolerance, fact.source)


def _prompt_ids(model: GPT2, fact: Fact) -> list[int]:
    """Return the ids of the prompt. Raises TokenizerError if the tokenizer gives other ids."""
    if fact.prompt is None:
        return list(fact.prompt_ids or ())
    ids = encode_part(model.tokenizer, fact.prompt)
    if fact.prompt_ids is not None and tuple(ids) != fact.prompt_ids:
        raise TokenizerError(
            f"the tokenizer encodes {_shown(fact.prompt)} to {ids}; expected "
            f"{list(fact.prompt_ids)}"
        )
    return ids


def _greedy(model: GPT2, fact: Fact) -> Check:
    """Compare a greedy text. A difference counts only if it is no near tie."""
    prompt = _prompt_ids(model, fact)
    n_positions = model.config.n_positions
    if len(prompt) + fact.n_new > n_positions:
        raise ContextError(f"{len(prompt)} + {fact.n_new} tokens are more than {n_positions}")
    new = model.generate(prompt, max_new_tokens=fact.n_new, temperature=0)
    if fact.new is None:
        found, expected = str(new), str(list(fact.new_ids))
        published = list(fact.new_ids)
    else:
        found, expected = model.tokenizer.decode(new), fact.new
        published = encode_part(model.tokenizer, fact.new)
        if fact.compares_words:
            found, expected = " ".join(found.split()), " ".join(expected.split())
    if found != expected:
        gap = math.inf if fact.compares_words else _gap(model, prompt, new, published)
        where = "" if math.isinf(gap) else f"; {gap:.3g} nats more likely where they differ"
        return _result(
            fact, gap <= fact.tolerance, _difference(found, expected) + where, _shown(expected)
        )
    if fact.total is not None:
        logprobs = model.score(prompt, new).logprobs[-len(new) :][fact.total_from :]
        total = float(np.sum(logprobs, dtype=np.float64))
        is_right = abs(total - fact.total) <= fact.tolerance
        return _result(
            fact, is_right, f"the same text, log-probability {total:.5g}", f"{fact.total:.5g}"
        )
    return _result(fact, True, "the same", _shown(expected))


def _gap(model: GPT2, prompt: list[int], new: list[int], published: list[int]) -> float:
    """Return how much more likely the model's token is where two continuations first differ."""
    pairs = zip(new, published, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if same is None:
        return math.inf
    ends = [[new[same]], [published[same]]]
    mine, theirs = (score.total for score in model.score(prompt + new[:same], ends))
    return mine - theirs


def _loss(model: GPT2, fact: Fact) -> Check:
    if fact.rows:
        scores = model.score([list(row) for row in fact.rows], bos=fact.bos)
    else:
        scores = [model.score(fact.text or "", bos=fact.bos)]
    loss = -sum(score.total for score in scores) / sum(score.n_scored for score in scores)
    return _numbers(fact, [loss])


def _logit(model: GPT2, fact: Fact) -> Check:
    logits = model.logits(_prompt_ids(model, fact))[-1]  # [n_vocab]
    if fact.id >= len(logits):
        raise OptionError(f"the vocabulary has {len(logits)} ids, not the id {fact.id}")
    if (most_likely := int(logits.argmax())) != fact.id:
        return _result(fact, False, f"the most likely id is {most_likely}", str(fact.id))
    return _numbers(fact, [float(logits[fact.id])])


def _logprobs(model: GPT2, fact: Fact) -> Check:
    score = model.score(_prompt_ids(model, fact), list(fact.new_ids))
    return _numbers(fact, score.logprobs[-len(fact.new_ids) :].tolist())


def _next(model: GPT2, fact: Fact) -> Check:
    """Compare the most likely next words, and their probabilities in percent."""
    n = len(fact.words)
    score = model.score(_prompt_ids(model, fact), [0], top_logprobs=n)
    words = [model.tokenizer.decode([id]).strip() for id in score.top_ids[-1].tolist()]
    percents = (100 * np.exp(score.top_logprobs[-1].astype(np.float64))).tolist()
    if tuple(words) != fact.words:
        return _result(fact, False, ", ".join(words), ", ".join(fact.words))
    return _numbers(fact, percents)


def _perplexity(model: GPT2, fact: Fact, text: str) -> Check:
    """Compare the perplexity of windows that are scored apart, without their first tokens."""
    ids = encode_part(model.tokenizer, text)
    if len(ids) != fact.n_tokens:
        return _result(fact, False, f"{len(ids):,} tokens", f"{fact.n_tokens:,} tokens")
    size = model.config.n_positions
    windows = (ids[begin : begin + size] for begin in range(0, len(ids), size))
    total, n = 0.0, 0
    for score in model.score(iter(windows)):
        total += score.total
        n += score.n_scored
    return _numbers(fact, [perplexity_of(total, n)])


def _numbers(fact: Fact, found: list[float]) -> Check:
    pairs = zip(found, fact.expected, strict=False)
    largest = max((abs(a - b) for a, b in pairs), default=math.inf)
    is_right = len(found) == len(fact.expected) and largest <= fact.tolerance
    return _result(
        fact, is_right, ", ".join(f"{x:.8g}" for x in found),
        ", ".join(f"{x:.8g}" for x in fact.expected),
    )  # fmt: skip


def _difference(found: str, expected: str) -> str:
    """Return where two texts first differ, with a few characters before."""
    same = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
        min(len(found), len(expected)),
    )
    start = max(same - 20, 0)
    return f"after {same} characters: {_shown(found[start:], 50)}"


def _shown(text: str, limit: int = 60) -> str:
    short = "".join(islice(text, limit))
    return repr(short) + ("..." if len(text) > limit else "")
