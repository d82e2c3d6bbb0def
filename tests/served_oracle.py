"""What a server must answer, computed by GPT2 alone in this process.

Written from the server's documentation and not from its code: docs/server.md says what each field
does.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gpt2c
from gpt2c import GPT2, Completion, Scheduler

# The fields that are options of GPT2.complete, by their names there.
_OPTIONS = {
    "top_p": "top_p", "presence_penalty": "presence_penalty", "min_p": "min_p",
    "frequency_penalty": "frequency_penalty", "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_new_tokens", "stop_token_ids": "stop_token_ids", "bad_words": "bad_words",
    "typical_p": "typical_p", "top_n_sigma": "top_n_sigma", "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold", "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta", "dry_multiplier": "dry_multiplier", "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length", "dry_sequence_breakers": "dry_sequence_breakers",
    "epsilon_cutoff": "epsilon_cutoff", "eta_cutoff": "eta_cutoff",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
}  # fmt: skip


def prompts_of(value: Any) -> list[Any]:
    """Return the prompts of one of the four shapes."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [value]
    return list(value)


def encoded(model: GPT2, given: Any, special: bool) -> list[int]:
    return model.tokenizer.encode(given, special=special) if isinstance(given, str) else list(given)


def check_fit(model: GPT2, prompts: list[list[int]]) -> None:
    """Raise ContextError if a prompt is longer than the context."""
    if any(len(ids) > model.config.n_positions for ids in prompts):
        raise gpt2c.ContextError("a prompt is longer than the context")


def options_of(model: GPT2, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of GPT2.complete that a request's fields mean."""
    options = {_OPTIONS[name]: value for name, value in body.items() if name in _OPTIONS}
    options["temperature"] = body.get("temperature", 1)
    options["max_new_tokens"] = body.get("max_tokens", 16)
    if "top_k" in body:
        options["top_k"] = max(body["top_k"], 0)
    if "dry_penalty_last_n" in body:
        options["dry_range"] = max(body["dry_penalty_last_n"], 0)
    if "logit_bias" in body:
        options["logit_bias"] = {int(id): bias for id, bias in body["logit_bias"].items()}
    if "stop" in body:
        options["stop_strings"] = body["stop"]
    suppressed = {*body.get("suppress_tokens", [])}
    if body.get("ignore_eos"):
        suppressed |= {*model.config.eos_token_ids}
    if "allowed_token_ids" in body:
        suppressed |= {*range(model.config.vocab_size)} - {*body["allowed_token_ids"]}
    if suppressed:
        options["suppress_tokens"] = sorted(suppressed)
    return options


def texts_of(
    model: GPT2, body: Mapping[str, Any], ids: list[int], seed: int | None, n: int, logprobs: Any
) -> list[Completion]:
    """Return n texts of one prompt, each generated alone."""
    options = options_of(model, body)
    if options["max_new_tokens"] == 0:
        return [Completion("", [], "length", seed, logprobs=[], top_logprobs=[])] * n
    options["logprobs"] = logprobs
    if seed is None:
        n = 1
    options["seed"] = seed
    found: list[Completion] = []
    if "stop_strings" not in options:
        (made,) = model.complete([ids], num_return_sequences=n, **options)
        return list(made) if isinstance(made, list) else [made]
    # The text before a stop string needs text, and complete returns none for ids.
    with Scheduler(model) as scheduler:
        for sample in range(n):
            handle = scheduler.add(
                np.array(ids, dtype=np.int32), sample=sample, has_text=True, **options
            )
            found.append(handle.result())
    return found


class Expected:
    """The answer to a completion whose choices report these seeds, by prompt."""

    def __init__(self, model: GPT2, body: Mapping[str, Any], seeds: Sequence[int | None]) -> None:
        self.model, self.body = model, body
        special = body.get("parse_special", True)
        self.prompts = [encoded(model, given, special) for given in prompts_of(body["prompt"])]
        if (cut := body.get("truncate_prompt_tokens")) is not None:
            n = model.config.n_positions if cut == -1 else min(cut, model.config.n_positions)
            is_left = body.get("truncation_side", "left") == "left"
            self.prompts = [ids[-n:] if is_left else ids[:n] for ids in self.prompts]
        check_fit(model, self.prompts)
        n = body.get("n", 1)
        best_of = body.get("best_of", n)
        logprobs = body.get("logprobs")
        n_top = 0 if logprobs is None and best_of > n else logprobs
        self.choices: list[dict[str, Any]] = []
        self.n_new = 0
        for ids, seed in zip(self.prompts, seeds, strict=True):
            texts = texts_of(model, body, ids, seed, best_of, n_top)
            texts = texts if len(texts) == best_of else texts * best_of
            self.n_new += sum(len(c.ids) + (c.end_id is not None) for c in texts)
            if best_of > n:
                texts = sorted(texts, key=lambda c: -_mean(c.logprobs))[:n]
            self.choices += [self._choice(ids, text, seed) for text in texts]
        for index, choice in enumerate(self.choices):
            choice["index"] = index

    @property
    def usage(self) -> dict[str, int]:
        n = sum(map(len, self.prompts))
        return {"prompt_tokens": n, "completion_tokens": self.n_new, "total_tokens": n + self.n_new}

    def _bytes(self, ids: Sequence[int]) -> bytes:
        n = getattr(self.model.tokenizer, "n_vocab", 0)
        return b"".join(self.model.tokenizer.token_bytes(id) for id in ids if id < n)

    def _text(self, ids: Sequence[int]) -> str:
        return self._bytes(ids).decode("utf-8", "replace")

    def _choice(self, ids: list[int], found: Completion, seed: int | None) -> dict[str, Any]:
        body = self.body
        before = self._text(ids) if body.get("echo") else ""
        after = self._text(found.ids) if found.text is None else found.text
        reason = {"context": "length"}.get(found.finish_reason, found.finish_reason)
        choice = {
            "text": before + after, "logprobs": None, "finish_reason": reason, "seed": seed,
        }  # fmt: skip
        if (n_top := body.get("logprobs")) is not None:
            tokens = list(
                zip(found.ids, found.logprobs or [], found.top_logprobs or [], strict=True)
            )
            if found.end_id is not None:
                tokens.append(
                    (found.end_id, found.end_logprob or 0.0, found.end_top_logprobs or {})
                )
            new = self._logprobs(tokens, len(before), len(choice["text"]))
            if body.get("echo") and ids:
                (scored,) = self.model.complete([ids], max_new_tokens=0, echo=True, logprobs=n_top)
                old = list(zip(ids, scored.prompt_logprobs or [], scored.prompt_top_logprobs or [],
                               strict=True))  # fmt: skip
                echoed = self._logprobs(old, 0, len(before))
                new = {name: echoed[name] + new[name] for name in new}
            choice["logprobs"] = new
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": ids, "token_ids": found.ids}
        return choice

    def _name(self, id: int) -> str:
        raw = b"" if self.body.get("return_tokens_as_token_ids") else self._bytes([id])
        if not raw:
            return f"token_id:{id}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _logprobs(
        self, tokens: list[tuple[int, float, Mapping[int, float]]], start: int, end: int
    ) -> dict[str, list[Any]]:
        """Return OpenAI's lists for tokens whose text is from `start` to `end`."""
        found: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip
        for place, (id, logprob, top) in enumerate(tokens):
            found["tokens"].append(self._name(id))
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            earlier = decoder.decode(self._bytes([t[0] for t in tokens[:place]]))
            found["text_offset"].append(min(start + len(earlier), end))
            if math.isnan(logprob):
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            row: dict[str, float] = {}
            for other, value in {**top, id: logprob}.items():
                name = self._name(other)
                row[f"token_id:{other}" if name in row else name] = max(value, -9999.0)
            found["token_logprobs"].append(max(logprob, -9999.0))
            found["top_logprobs"].append(row)
        return found


def _mean(logprobs: Sequence[float] | None) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else -math.inf
