"""From prompts and options to requests for the engine, and from its results to completions."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2c.batching import Request, Result, run_requests
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.generation import Completion, Logprobs, Options
from gpt2c.progress import with_bar
from gpt2c.prompts import Prompt, fit_context, is_single
from gpt2c.stops import Stops

if TYPE_CHECKING:
    from gpt2c.model import GPT2


class Completer:
    """One call of GPT2.complete, or of what is made of it."""

    def __init__(self, model: GPT2, options: Options) -> None:
        """The call's time begins now."""
        self._model, self._engine, self._options = model, model._engine, options
        self._stops = self._new_stops()

    def all(self, prompts: Any) -> list[Any]:
        """A completion for each prompt of a list; a single one is a list of one."""
        options = self._options
        prompt_list = [prompts] if is_single(prompts) else list(prompts)
        if isinstance(options.seeds, tuple) and len(options.seeds) != len(prompt_list):
            raise OptionError(
                f"seed is a list of {len(options.seeds)}; it must have one for each of the "
                f"{len(prompt_list)} prompts"
            )
        requests = [r for i, p in enumerate(prompt_list) for r in self.requests(p, i)]
        with self._engine.held():
            results = run_requests(self._engine, requests, options.batch_size)
            if options.progress:
                results = with_bar(results, len(requests))
            pairs = zip(requests, list(results), strict=True)
        return list(self._grouped(iter(prompt_list), pairs))

    def each(self, prompts: Iterator[Prompt]) -> Iterator[Any]:
        """The same for an iterator, lazily."""
        options = self._options
        begun: deque[Request] = deque()
        asked: deque[Prompt] = deque()

        def requests() -> Iterator[Request]:
            for index, prompt in enumerate(prompts):
                if not is_single(prompt):
                    raise OptionTypeError(
                        f"prompt {index} of the iterator is a list of prompts; it must be one, a "
                        "text or token ids"
                    )
                prompt_requests = list(self.requests(prompt, index))
                asked.append(prompt)
                for request in prompt_requests:
                    begun.append(request)
                    yield request

        results = run_requests(self._engine, requests(), options.batch_size)
        if options.progress:
            results = with_bar(results, None)
        pairs = ((begun.popleft(), result) for result in results)
        # A prompt is there once its requests are; the pairs end the loop.
        return self._grouped((asked.popleft() for _ in itertools.count()), pairs)

    def _grouped(
        self, prompts: Iterator[Prompt], pairs: Iterable[tuple[Request, Result]]
    ) -> Iterator[Any]:
        """A completion for each prompt; where num_return_sequences is given, a list of them."""
        group: list[Completion] = []
        prompt: Prompt = ""
        first: Result | None = None
        for request, result in pairs:
            if not group:
                prompt, first = next(prompts), result
            assert first is not None
            group.append(self._completion(prompt, request, result, first))
            if len(group) == self._options.n_samples:
                yield group if self._options.num_return_sequences is not None else group[0]
                group = []

    def _completion(
        self, prompt: Prompt, request: Request, result: Result, first: Result
    ) -> Completion:
        """first is the prompt's first result, which has the prompt's scores."""
        text = None
        if isinstance(prompt, str):
            raw = self._model.tokenizer.decode_bytes(result.ids)[: result.end]
            text = raw.decode("utf-8", "replace")
        scores, echoed = Logprobs.of(result.scores), Logprobs()
        if self._options.echo:
            n_prompt = len(request.ids) if len(prompt) else 0
            echoed = Logprobs.of_prompt(first.prompt_scores, n_prompt)
        return Completion(
            text, result.ids, result.finish_reason, request.seed, request.sample,
            scores.logprobs, scores.top, echoed.logprobs, echoed.top,
        )  # fmt: skip

    def requests(self, prompt: Prompt, index: int) -> Iterator[Request]:
        """One for each of the prompt's texts."""
        model, options = self._model, self._options
        where = f"prompt {index}"
        ids = model._encode(prompt, where)
        if len(ids) == 0:
            ids = np.array([model._start_id(where)], dtype=np.int32)
        n_positions = model.config.n_positions
        if options.overflow == "slide" and len(ids) > n_positions:
            ids = ids[-max(n_positions // 2, 1) :]
        seed = options.seed_of(index)
        for sample in range(options.n_samples):
            yield Request(
                index=index,
                ids=fit_context(
                    ids, n_positions, options.max_new_tokens, options.truncate == "left", where
                ),
                max_new_tokens=options.max_new_tokens,
                plan=options.plan,
                seed=seed,
                sample=sample,
                stop_ids=options.stop_ids,
                stops=self._stops,
                n_top=options.logprobs,
                scores_prompt=options.echo and sample == 0,
                slides=options.overflow == "slide",
                logits_processor=options.logits_processor,
            )

    def _new_stops(self) -> Stops:
        """What is watched for in the texts of a call that begins now."""
        options, tokenizer = self._options, None
        if options.stop_strings:
            tokenizer = self._model.tokenizer
            tokenizer.encode("")  # where there is none, to say so now
        return Stops(
            options.stop_strings,
            tokenizer.token_bytes if tokenizer else None,
            None if options.max_time is None else time.monotonic() + options.max_time,
            options.callback,
        )
