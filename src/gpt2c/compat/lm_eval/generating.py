"""lm-eval's requests to generate text: their options by gpt2c's names, and one batch for all.

This module needs no lm-eval.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from gpt2c.checks.options import integer
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generate.beam_options import BeamOptions
from gpt2c.generate.completing import Completer
from gpt2c.generate.options import StreamOptions
from gpt2c.model import GPT2
from gpt2c.schedule.batching import ContinuationBatch, run_requests
from gpt2c.schedule.requests import Request, Result
from gpt2c.schedule.searching import SearchBatch
from gpt2c.text.tokenizer import Tokenizer

# The number of texts that decode together. It changes no text.
_BATCH_SIZE: Final = 64
# lm-eval's names for the max number of new tokens, the first that is given counting.
_LENGTHS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Options without effect when nothing is sampled.
_SAMPLING: Final = frozenset({
    "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "epsilon_cutoff",
    "eta_cutoff", "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta", "seed",
})  # fmt: skip


class GenerationOptions(StreamOptions, BeamOptions, total=False):
    """The options of a request to generate text; GPT2.complete describes them."""


class Limits(NamedTuple):
    """Defaults of requests, and the number of tokens that a context and its text may have."""

    max_length: int
    max_gen_toks: int
    seed: int


@dataclass(frozen=True)
class _Prepared:
    """A request, its place in the list, and what makes its completion."""

    index: int
    request: Request
    completer: Completer


def generate_texts(
    model: GPT2,
    contexts: Sequence[tuple[Sequence[int], Mapping[str, Any]]],
    limits: Limits,
    defaults: Mapping[str, Any],
) -> Iterator[tuple[int, str]]:
    """Yield each request's place in the list and its text, in the order of the contexts' ids.

    A request is the ids of a context and its generation_kwargs. `defaults` are options of
    GPT2.complete for all requests. All requests without beam search run in one batch.

    Raises OptionError or OptionTypeError, naming the request and what is wrong with its options;
    NumericalError; CacheMemoryError.
    """
    prepared = _prepare(model, contexts, limits, defaults)
    # In this order, contexts that begin alike run one after another and share the beginning.
    prepared.sort(key=lambda each: each.request.ids.tobytes())
    with model._engine.held():
        plain = [each for each in prepared if each.completer.beams is None]
        batch = ContinuationBatch(model._engine, model._prefixes, _BATCH_SIZE)
        results = run_requests(batch, (each.request for each in plain))
        for each, result in zip(plain, results, strict=True):
            yield each.index, _text_of(model, each, result)
        for each in prepared:
            if (beams := each.completer.beams) is not None:
                search = SearchBatch(model._engine, model._prefixes, _BATCH_SIZE, beams)
                (found,) = run_requests(search, [each.request])
                yield each.index, _text_of(model, each, found[0])


def _prepare(
    model: GPT2,
    contexts: Sequence[tuple[Sequence[int], Mapping[str, Any]]],
    limits: Limits,
    defaults: Mapping[str, Any],
) -> list[_Prepared]:
    completers: dict[str, tuple[Completer, int]] = {}
    n_seen: Counter[tuple[bytes, str]] = Counter()
    prepared = []
    for index, (given_ids, kwargs) in enumerate(contexts):
        key = repr(sorted(kwargs.items(), key=lambda item: str(item[0])))
        if key not in completers:
            completers[key] = _completer_for(model, kwargs, limits, defaults, index)
        completer, max_new = completers[key]
        ids = np.array(given_ids[-(limits.max_length - max_new) :], dtype=np.int32)
        (request,) = completer.requests(ids, index)
        if request.seed is not None:
            # Repeats of a request draw different texts. The seed depends on the context, so that
            # the draws of different documents are independent.
            place = (ids.tobytes(), key)
            request = replace(request, seed=_seed(request), sample=n_seen[place])
            n_seen[place] += 1
        prepared.append(_Prepared(index, replace(request, is_text=True), completer))
    return prepared


def _completer_for(
    model: GPT2,
    kwargs: Mapping[str, Any],
    limits: Limits,
    defaults: Mapping[str, Any],
    index: int,
) -> tuple[Completer, int]:
    """Return what completes requests with these generation_kwargs, and the max of new tokens."""
    try:
        options = complete_options(kwargs, limits)
        checked = model._options({**defaults, **options}, GenerationOptions, "generate_until")
    except (OptionError, OptionTypeError) as error:
        where = f"request {index}, generation_kwargs {show(dict(kwargs))}"
        raise type(error)(f"{where}: {error}") from None
    return model._completer(checked), options["max_new_tokens"]


def complete_options(kwargs: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return the options of GPT2.complete that mean what a request's generation_kwargs mean.

    As in lm-eval, a request is greedy unless do_sample is true, or do_sample is not given and
    temperature is above 0; then options for sampling have no effect.

    Raises OptionError or OptionTypeError for max_gen_toks that is not below max_length, and for
    stop strings that are not strings.
    """
    options = dict(kwargs)
    lengths = [options.pop(name, None) for name in _LENGTHS]
    given = next((length for length in lengths if length is not None), limits.max_gen_toks)
    max_new = integer("max_gen_toks", given, 0, limits.max_length - 1)
    until = options.pop("until", None)
    strings = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(strings, list | tuple):
        raise OptionTypeError(f"until is {show(until)}; it must be a string or a list of strings")
    samples, temperature = options.pop("do_sample", None), options.get("temperature")
    if samples is None:
        samples = isinstance(temperature, int | float) and temperature > 0
    if samples:
        options = {"do_sample": True, "seed": limits.seed, **options}
    else:
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
        options["do_sample"] = False
    stops = [string for string in strings if string != ""]
    return {**options, "max_new_tokens": max_new, "stop_strings": stops or None}


def _seed(request: Request) -> int:
    """Return the seed of a request, made from the call's seed and the context's ids."""
    key = (request.seed or 0).to_bytes(8, "little")
    digest = hashlib.blake2b(request.ids.tobytes(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _text_of(model: GPT2, each: _Prepared, result: Result) -> str:
    """Return the text up to the first stop string, without special tokens."""
    text = each.completer.completion(each.request, result).text or ""
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    if not tokenizer.special_ids.isdisjoint(result.ids):
        text = tokenizer.decode(result.ids, skip_special_tokens=True)
        for stop in each.request.stops.strings:
            text = text.split(stop.string.decode(), 1)[0]
    # As in lm-eval, the EOS token's name ends a text even if it is spelled by other tokens.
    if tokenizer.eot_id is not None:
        text = text.split(tokenizer.decode([tokenizer.eot_id]), 1)[0]
    return text
