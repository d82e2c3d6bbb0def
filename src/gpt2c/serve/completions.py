"""POST /v1/completions: adds a request's texts to the scheduler, and writes the answer."""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.generate.options import Completion
from gpt2c.measure.scores import Score
from gpt2c.scheduler import Finished, Handle, Token
from gpt2c.serve.admission import Admission
from gpt2c.serve.completion_fields import CompletionRequest
from gpt2c.serve.errors import RequestError
from gpt2c.serve.http import encoded_with_list
from gpt2c.serve.metrics import Metrics
from gpt2c.serve.models import Encoding, ServedModel
from gpt2c.serve.tokens import LogprobsWriter, ScoredToken

_LONG_TEXT: Final = 4096  # characters; longer texts are encoded in a thread
_LONG_ANSWER: Final = 4096  # log-probabilities and tokens; longer answers are written in a thread
# gpt2c's finish reasons -> OpenAI's. The others keep their names.
_REASONS: Final[Mapping[str, str]] = {"context": "length"}


@dataclass
class Text:
    """One text of a request: its prompt, and what generates it. `index` is the choice's."""

    index: int
    prompt: int  # the prompt's index
    sample: int
    handle: Handle | None  # None if there is nothing to generate

    async def completion(self, seed: int | None) -> Completion:
        """Wait for the end; return the completion. Raises what the handle raises."""
        if self.handle is None:
            return Completion("", [], "length", seed, logprobs=[], top_logprobs=[])
        return await self.handle

    def events(self, seed: int | None) -> AsyncIterator[Token | Finished]:
        """Return an iterator of the events."""
        return aiter(self._no_events(seed) if self.handle is None else self.handle)

    async def _no_events(self, seed: int | None) -> AsyncIterator[Token | Finished]:
        yield Finished(await self.completion(seed), "")


@dataclass
class Run:
    """A request that runs: its prompts' ids, their scores if they are echoed, and its texts."""

    request: CompletionRequest
    served: ServedModel
    admission: Admission
    metrics: Metrics
    id: str
    cache_space: int = 0  # of the prefix cache: each API key has its own
    prompts: list[list[int]] = field(default_factory=list)
    prompt_scores: list[list[ScoredToken]] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    began: float = field(default_factory=time.monotonic)

    # ---- preparing ----

    async def prepare(self) -> None:
        """Encode the prompts. Raises RequestError or the errors of GPT2.complete."""
        request = self.request
        special = request.parses_special
        encoding = Encoding(
            True if special is None else special, request.adds_special_tokens,
            request.truncate_to, request.keeps_end,
        )  # fmt: skip
        given = request.prompts

        def encode() -> list[list[int]]:
            encode_one = self.served.encode
            return [encode_one(text, _where(i, given), encoding) for i, text in enumerate(given)]

        is_long = sum(map(len, given)) > _LONG_TEXT
        self.prompts = await self.admission.in_thread(encode) if is_long else encode()
        temperature = request.options.get(
            "temperature", self.served.model.generation_defaults.get("temperature", 1.0)
        )
        for index in range(len(self.prompts)):
            given_seed = None if request.seeds is None else request.seeds[index]
            random_seed = int.from_bytes(os.urandom(4))
            seed = random_seed if given_seed is None else given_seed
            self.seeds.append(seed if temperature else None)
        self._options = self._complete_options(temperature)

    def _complete_options(self, temperature: float) -> dict[str, Any]:
        """Return the options of Scheduler.add that all texts share."""
        request, config = self.request, self.served.model.config
        options = {**request.options, "temperature": temperature}
        options["max_new_tokens"] = request.max_tokens
        options["logprobs"] = request.logprobs
        options["draft"] = self.served.draft
        if request.best_of > request.n and request.logprobs is None:
            options["logprobs"] = 0  # to find the best
        if request.stops:
            options["stop_strings"] = list(request.stops)
        if request.ignore_eos and config.eos_token_ids:
            given = options.get("suppress_tokens") or []
            options["suppress_tokens"] = [*given, *config.eos_token_ids]
        return options

    @property
    def has_own_time_limit(self) -> bool:
        """Whether the request's time limit ends before the server's."""
        seconds = self.request.options.get("max_time", math.inf)
        return bool(seconds < self.served.limits.request_seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the texts to the scheduler; cancel at the end those that still run."""
        request, n_prompts = self.request, len(self.prompts)
        n_each = request.best_of if self.seeds[0] is not None else 1  # greedy texts are all equal
        generates = request.max_tokens > 0
        with self.admission.sequences(n_prompts * n_each if generates else 0):
            try:
                self._add_texts(n_each, generates)
                yield
            finally:
                self._end_texts()

    def _end_texts(self) -> None:
        """Cancel the texts that still run, and count the times of all."""
        handles = {t.handle: t.prompt for t in self.texts if t.handle is not None}
        for handle, prompt in handles.items():
            handle.cancel()
            n_prompt = len(self.prompts[prompt])
            self.metrics.count_times(self.served.name, self.began, n_prompt, handle)

    def _add_texts(self, n_each: int, generates: bool) -> None:
        request, served = self.request, self.served
        allowed = None if request.allowed_ids is None else self._mask(request.allowed_ids)
        for index, ids in enumerate(self.prompts):
            handles: list[Handle | None] = [None] * n_each
            for sample in range(n_each if generates else 0):
                handles[sample] = served.scheduler.add(
                    np.array(ids, dtype=np.int32), priority=-request.priority,
                    deadline=served.limits.request_seconds,
                    allowed_ids=allowed, sample=sample, has_text=served.has_text,
                    cache_space=self.cache_space,
                    seed=self.seeds[index], **self._options,
                )  # fmt: skip
            for sample in range(request.best_of):
                place = index * request.best_of + sample
                self.texts.append(Text(place, index, sample, handles[min(sample, n_each - 1)]))

    def _mask(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        n_vocab = self.served.model.config.vocab_size
        if (highest := max(ids)) >= n_vocab:
            message = f"allowed_token_ids has {highest}; ids are from 0 to {n_vocab - 1}"
            raise RequestError(400, message, param="allowed_token_ids")
        mask = np.zeros(n_vocab, dtype=np.bool_)
        mask[list(ids)] = True
        return mask

    async def score_prompts(self) -> None:
        """Score the prompts if they are to be echoed with log-probabilities."""
        n_top = self.request.logprobs
        if not self.request.echo or n_top is None:
            return
        filled = [ids for ids in self.prompts if ids]
        async with self.admission.scoring(sum(map(len, filled))):
            scores = iter(await self.admission.score(self.served, filled, None, n_top))
        self.prompt_scores = [scored_tokens(next(scores)) if ids else [] for ids in self.prompts]

    # ---- parts of the answer ----

    def head(self) -> dict[str, Any]:
        """Return the fields that an answer and its pieces begin with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
        }

    def usage(self, n_new: int) -> dict[str, int]:
        """Return the counts of tokens."""
        n_prompt = sum(map(len, self.prompts))
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }

    def writer(self) -> LogprobsWriter:
        """Return what writes the log-probabilities of a choice."""
        return LogprobsWriter(self.served.token_bytes, self.request.names_are_ids)

    def prompt_text(self, index: int) -> str:
        """Return the text of a prompt's tokens, which echo returns."""
        return self.served.decode(self.prompts[index])


def new_id(request_id: str | None) -> str:
    """Return the id of an answer."""
    return f"cmpl-{request_id or uuid.uuid4().hex}"


def _where(index: int, prompts: Sequence[Any]) -> str:
    return "prompt" if len(prompts) == 1 else f"prompt[{index}]"


def scored_tokens(score: Score) -> list[ScoredToken]:
    """Return a score's tokens as `logprobs` needs them."""
    tokens = []
    rows = zip(score.ids.tolist(), score.logprobs.tolist(), strict=True)
    for (id, logprob), ids, top in zip(
        rows, score.top_ids.tolist(), score.top_logprobs.tolist(), strict=True
    ):
        if math.isnan(logprob):
            tokens.append(ScoredToken(id, None, None))
        else:
            pairs = zip(ids, top, strict=True)
            tokens.append(ScoredToken(id, logprob, {i: p for i, p in pairs if i >= 0}))
    return tokens


def completed_tokens(completion: Completion) -> list[ScoredToken]:
    """Return a completion's tokens as `logprobs` needs them."""
    return [
        ScoredToken(id, logprob, top)
        for id, logprob, top in zip(
            completion.ids, completion.logprobs or [], completion.top_logprobs or [], strict=True
        )
    ]


def end_token(completion: Completion) -> list[ScoredToken]:
    """Return the token that ended a text; OpenAI's lists of tokens end with it."""
    id, logprob = completion.end_id, completion.end_logprob
    if id is None or logprob is None:
        return []
    return [ScoredToken(id, logprob, completion.end_top_logprobs)]


def finish_reason(run: Run, completion: Completion) -> str:
    """Return OpenAI's finish reason. Raises RequestError (503) if the text was not begun."""
    reason = completion.finish_reason
    if reason == "cancelled":
        raise RequestError(503, "the server is stopping", code="stopping")
    is_empty = not (completion.passes or completion.ids)
    if reason == "time" and is_empty and not run.has_own_time_limit:
        raise RequestError(503, "the request has waited too long", code="queue_time")
    return _REASONS.get(reason, reason)


def n_tokens(completion: Completion) -> int:
    """Return the number of new tokens, with the one that ended the text."""
    return len(completion.ids) + (completion.end_id is not None)


async def complete(run: Run) -> bytes:
    """Run a request that was prepared; return its answer."""
    with run.running():
        await run.score_prompts()
        completions = await asyncio.gather(*(t.completion(run.seeds[t.prompt]) for t in run.texts))
        n_new = 0
        for completion in completions:
            n_new += n_tokens(completion)
            reason = finish_reason(run, completion)
            run.metrics.count_text(run.served.name, reason, completion)
        found = _best(run, list(zip(run.texts, completions, strict=True)))

        def answer() -> bytes:
            choices = (_choice(run, i, text, c) for i, (text, c) in enumerate(found))
            return encoded_with_list({**run.head(), "usage": run.usage(n_new)}, "choices", choices)

        n_echoed = sum(map(len, run.prompt_scores)) * run.request.n
        size = (n_new + n_echoed) * (1 + (run.request.logprobs or 0))
        return await run.admission.in_thread(answer) if size > _LONG_ANSWER else answer()


def _best(run: Run, found: list[tuple[Text, Completion]]) -> list[tuple[Text, Completion]]:
    """Return the n best texts of each prompt: those with the highest mean log-probability."""
    request = run.request
    if request.best_of == request.n:
        return found
    kept = []
    for begin in range(0, len(found), request.best_of):
        group = found[begin : begin + request.best_of]
        kept += sorted(group, key=lambda pair: -_mean_logprob(pair[1]))[: request.n]
    return kept


def _mean_logprob(completion: Completion) -> float:
    logprobs = completion.logprobs or []
    return math.fsum(logprobs) / len(logprobs) if logprobs else -math.inf


def _choice(run: Run, index: int, text: Text, completion: Completion) -> dict[str, Any]:
    request = run.request
    new_text = completion.text or ""
    before = run.prompt_text(text.prompt) if request.echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": before + new_text,
        "logprobs": None,
        "finish_reason": finish_reason(run, completion),
        "seed": run.seeds[text.prompt],
    }
    if request.logprobs is not None:
        writer = run.writer()
        echoed = writer.write(run.prompt_scores[text.prompt] if request.echo else [], len(before))
        writer.begin_part(len(before))
        tokens = [*completed_tokens(completion), *end_token(completion)]
        new = writer.write(tokens, len(choice["text"]))
        choice["logprobs"] = {name: echoed[name] + new[name] for name in new}
    if request.returns_ids or not run.served.has_text:
        choice["prompt_token_ids"] = run.prompts[text.prompt]
        choice["token_ids"] = completion.ids
    return choice
