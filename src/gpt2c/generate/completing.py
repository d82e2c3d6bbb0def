"""Turn a call's prompts and options into requests, and the requests' results into completions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2c.config import GPT2Config
from gpt2c.engine.protocol import EngineModel
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.forks import IMPORTING
from gpt2c.generate.drafting import check_drafts
from gpt2c.generate.encoder import Encoder
from gpt2c.generate.options import Completion, Logprobs, Options
from gpt2c.generate.prompts import Prompt, fit_context, is_single
from gpt2c.progress import with_bar
from gpt2c.schedule.batching import ContinuationBatch, run_requests
from gpt2c.schedule.prefix_cache import PrefixCache
from gpt2c.schedule.requests import Request, Result, n_kept
from gpt2c.schedule.stops import Stops

if TYPE_CHECKING:
    from gpt2c.schedule.beams import SearchOptions


def check_single(prompt: Any, options: Options, method: str) -> None:
    """Raise OptionError or OptionTypeError unless a call has one prompt and at most one seed.

    `method` is the name of the called method, for the message.
    """
    if not is_single(prompt):
        if isinstance(prompt, list) and not prompt:
            raise OptionError(f"{method} takes one prompt; found an empty list")
        raise OptionTypeError(
            f"{method} takes one prompt; found a list of prompts: call {method} once for each"
        )
    if isinstance(options.seeds, tuple):
        raise OptionTypeError(f"{method} takes one prompt, so one seed; found a list of seeds")


class Completer:
    """One call of GPT2.complete, or of a method based on it."""

    def __init__(
        self,
        engine: EngineModel,
        prefixes: PrefixCache,
        config: GPT2Config,
        encoder: Encoder,
        options: Options,
    ) -> None:
        """Begin the call; max_time counts from here."""
        self._engine, self._prefixes = engine, prefixes
        self._config, self._encoder = config, encoder
        self._options = options
        self._stops = self._new_stops()
        self._draft_settings = None
        # A logits_processor sees the logits of one token at a time, so such a call uses no drafts.
        if options.logits_processor is None:
            draft, n_tokens = options.draft, options.num_assistant_tokens
            self._draft_settings = check_drafts(engine, draft, n_tokens)

    @property
    def beams(self) -> SearchOptions | None:
        """The options of beam search; None without it."""
        return self._options.beams

    def complete_list(self, prompts: Any) -> list[Any]:
        """Return a completion for each prompt of a list; a single prompt counts as a list of one.

        With num_return_sequences, each item is the list of a prompt's completions. GPT2.complete
        lists the errors.
        """
        options = self._options
        prompt_list = [prompts] if is_single(prompts) else list(prompts)
        if isinstance(options.seeds, tuple) and len(options.seeds) != len(prompt_list):
            raise OptionError(
                f"seed is a list of {len(options.seeds)}; it must have one seed for each of "
                f"the {len(prompt_list)} prompts"
            )
        requests = [r for i, p in enumerate(prompt_list) for r in self.requests(p, i)]
        with self._engine.held():
            results = self._run(requests)
            if options.progress:
                results = with_bar(results, len(requests))
            pairs = zip(requests, list(results), strict=True)
        return list(self._grouped(pairs))

    def complete_lazily(self, prompts: Iterator[Prompt]) -> Iterator[Any]:
        """Yield what `complete_list` returns for each prompt, reading the prompts lazily."""
        options = self._options
        unfinished: deque[Request] = deque()

        def requests() -> Iterator[Request]:
            for index, prompt in enumerate(prompts):
                if not is_single(prompt) and len(prompt):
                    raise OptionTypeError(
                        f"prompt {index} of the iterator is a list of prompts; it must be one "
                        "prompt, a text or token ids"
                    )
                for request in self.requests(prompt, index):
                    unfinished.append(request)
                    yield request

        results = self._run(requests())
        if options.progress:
            results = with_bar(results, None)
        return self._grouped((unfinished.popleft(), result) for result in results)

    def _run(self, requests: Iterable[Request]) -> Iterator[list[Result]]:
        """Yield the results of each request, in order: one, or several if it is a beam search."""
        engine, prefixes, size = self._engine, self._prefixes, self._options.batch_size
        if self._options.beams is not None:
            with IMPORTING:
                from gpt2c.schedule.searching import SearchBatch

            searches = SearchBatch(engine, prefixes, size, self._options.beams)
            return run_requests(searches, requests)
        continuations = ContinuationBatch(engine, prefixes, size)
        return ([result] for result in run_requests(continuations, requests))

    def _grouped(self, pairs: Iterable[tuple[Request, list[Result]]]) -> Iterator[Any]:
        """Yield each prompt's completion; with num_return_sequences, a list of its completions."""
        group: list[Completion] = []
        first: Result | None = None  # the group's first result, which has the prompt's scores
        n_requests = 0
        for request, results in pairs:
            for number, result in enumerate(results):
                first = result if first is None or not group else first
                group.append(self.completion(request, result, first, request.sample + number))
            n_requests += 1
            if n_requests == self._options.n_requests:
                yield group if self._options.num_return_sequences is not None else group[0]
                group, n_requests = [], 0

    def completion(
        self,
        request: Request,
        result: Result,
        first: Result | None = None,
        sample: int | None = None,
    ) -> Completion:
        """Return the completion of a request's result.

        `first` is the first result of the same prompt, which has the prompt's scores (default: this
        result). `sample` is the text's number (default: the request's).
        """
        first, sample = first or result, request.sample if sample is None else sample
        text = None
        if request.is_text:
            raw = b"".join(map(self._encoder.token_bytes, result.ids))[: result.end]
            text = raw.decode("utf-8", "replace")
        scores, echoed = Logprobs.of(result.scores), Logprobs()
        end = Logprobs.of(result.end_scores)
        if self._options.echo and first.finish_reason != "time":
            n_prompt = 0 if request.is_empty else len(request.ids)
            echoed = Logprobs.of_prompt(first.prompt_scores, n_prompt)
        return Completion(
            text, result.ids, result.finish_reason, request.seed, sample,
            scores.logprobs, scores.top, echoed.logprobs, echoed.top, *result.draft_counts,
            result.sequence_score, result.end_id,
            end.logprobs[0] if end.logprobs else None, end.top[0] if end.top else None,
        )  # fmt: skip

    def requests(self, prompt: Prompt, index: int) -> Iterator[Request]:
        """Yield the requests of a prompt: one for each of its texts, or one beam search.

        `index` is the prompt's place among the call's prompts. Raises OptionError, OptionTypeError,
        TokenizerError or ContextError for a prompt that cannot be continued.
        """
        encoder, options = self._encoder, self._options
        where = f"prompt {index}"
        ids = encoder.encode(prompt, where)
        is_empty = len(ids) == 0
        if is_empty:
            ids = np.array([encoder.start_id(f"{where} is empty")], dtype=np.int32)
        n_positions = self._config.n_positions
        kept = n_kept(options.overflow, n_positions)
        if kept and len(ids) > n_positions:
            ids = ids[-kept:]
        seed = options.seed_of(index)
        plan = options.plan
        max_new, min_new = options.lengths.new_token_limits(len(ids), options.max_new_tokens)
        if options.lengths.has_minimum:
            plan = plan.with_min_new_tokens(min_new)
        for sample in range(options.n_requests):
            yield Request(
                index=index,
                is_text=isinstance(prompt, str),
                is_empty=is_empty,
                ids=fit_context(ids, n_positions, max_new, options.truncate == "left", where),
                max_new_tokens=max_new,
                plan=plan,
                seed=seed,
                sample=sample,
                stop_ids=options.stop_ids,
                stops=self._stops,
                n_top=options.logprobs,
                scores_prompt=options.echo and sample == 0,
                overflow=options.overflow,
                logits_processor=options.logits_processor,
                drafts=self._draft_settings,
                n_best=options.n_texts,
                pad_id=self._pad_id(),
            )

    def _pad_id(self) -> int | None:
        """Return the padding token, which finished groups of beams choose, or None.

        It is the model's own, else the first EOS token, as in transformers, else the first of
        stop_token_ids.
        """
        config = self._config
        if config.pad_token_id is not None:
            return config.pad_token_id
        own, eos = self._options.eos_ids, config.eos_token_id
        if own:
            return own[0]
        if own is None and eos is not None:
            return eos if isinstance(eos, int) else eos[0]
        return int(self._options.stop_ids[0]) if len(self._options.stop_ids) else None

    def _new_stops(self) -> Stops:
        """Return the stop conditions of a call that begins now."""
        options, tokenizer = self._options, None
        if options.stop_strings:
            tokenizer = self._encoder.tokenizer
            tokenizer.encode("")  # raises TokenizerError if there is no tokenizer
        return Stops(
            options.stop_strings,
            self._encoder.token_bytes if tokenizer else None,
            None if options.max_time is None else time.monotonic() + options.max_time,
            options.callback,
        )
