"""Callbacks for GPT2.complete that call transformers' criteria, streamers and processors.

gpt2c generates each row on its own, so each call of a transformers object has one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.options import items
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import Plan
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.oracle.sampling import Sampler


class TokenCallback:
    """A callback of GPT2.complete that checks stopping criteria and feeds a streamer."""

    def __init__(self, input_ids: Any, criteria: Sequence[Any], streamer: Any) -> None:
        """input_ids is int64 [n_prompts, n_tokens] with padding, as criteria expect it."""
        self._input_ids, self._criteria, self._streamer = input_ids, criteria, streamer

    @property
    def is_needed(self) -> bool:
        """Whether there is a criterion or a streamer."""
        return bool(self._criteria) or self._streamer is not None

    def begin(self) -> None:
        """Feed the prompt to the streamer, as transformers does."""
        if self._streamer is not None:
            self._streamer.put(self._input_ids)

    def end(self, end_id: int | None) -> None:
        """Feed the final EOS token, if any, to the streamer, and end it."""
        if self._streamer is not None:
            if end_id is not None:
                self._streamer.put(self._input_ids.new_tensor([end_id]))
            self._streamer.end()

    def __call__(self, index: int, new_ids: list[int]) -> bool:
        """Return whether a sequence ends here; `index` is its prompt's row in input_ids."""
        import torch

        if self._streamer is not None:
            self._streamer.put(torch.tensor(new_ids[-1:]))
        if not self._criteria:
            return False
        row = torch.cat([self._input_ids[index], torch.tensor(new_ids)])[None]
        return any(_ends_row(criterion(row, None)) for criterion in self._criteria)


def _ends_row(returned: Any) -> bool:
    """Return a criterion's result as a bool; newer criteria return a tensor, a bool per row."""
    import torch

    if not isinstance(returned, bool | np.bool_ | torch.Tensor):
        raise OptionTypeError(
            f"a criterion in stopping_criteria returned {show(returned)}; it must return a bool or "
            "a bool tensor"
        )
    return bool(torch.as_tensor(returned).any())


class LogitsProcessor:
    """A logits_processor of GPT2.complete that runs transformers' processors.

    It can keep the logits of every step, for output_logits and output_scores. The key of kept
    logits is the sequence's ids so far, which determine the logits.
    """

    def __init__(self, processors: Sequence[Callable[..., Any]], keeps_logits: bool) -> None:
        """`keeps_logits` is whether `logits` and `scores` will be called."""
        self._processors, self._keeps_logits = processors, keeps_logits
        # The logits before and after the processors.
        self._kept: dict[bytes, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    @property
    def is_needed(self) -> bool:
        """Whether there are processors to run or logits to keep."""
        return bool(self._processors) or self._keeps_logits

    def __call__(self, ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits [n_vocab] as changed by transformers' processors."""
        import torch

        processed = logits
        if self._processors:
            row, scores = torch.tensor(ids)[None], torch.from_numpy(logits.copy())[None]
            for process in self._processors:
                scores = process(row, scores)
                if not isinstance(scores, torch.Tensor) or scores.shape != (1, len(logits)):
                    raise OptionError(
                        f"a processor in logits_processor returned {show(scores)}; it must "
                        f"return a tensor of shape [1, {len(logits)}]"
                    )
            processed = scores[0].detach().float().cpu().numpy()
        if self._keeps_logits:
            self._kept[_key(ids)] = logits, processed
        return processed

    def logits(self, prompt: list[int], new_ids: list[int]) -> list[NDArray[np.float32]]:
        """Return the model's own logits [n_vocab] from which each new id was chosen."""
        return [self._kept[key][0] for key in _keys(prompt, new_ids)]

    def scores(
        self, prompt: list[int], new_ids: list[int], plan: Plan
    ) -> list[NDArray[np.float32]]:
        """Return the logits [n_vocab] from which each new id was chosen, after all stages."""
        sampler = Sampler(plan, 0, 0, len(prompt))
        rows = []
        for i, key in enumerate(_keys(prompt, new_ids)):
            processed = sampler.apply(self._kept[key][1], [*prompt, *new_ids[:i]])
            rows.append(np.asarray(processed, dtype=np.float32))
        return rows


def _keys(prompt: list[int], new_ids: list[int]) -> list[bytes]:
    """Return the key of the ids before each new id."""
    return [_key([*prompt, *new_ids[:i]]) for i in range(len(new_ids))]


def _key(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def checked_functions(name: str, given: Any) -> list[Callable[..., Any]]:
    """Return the functions in a list or in one of transformers' list classes; [] for None.

    `name` is the option. Raises OptionTypeError if an item is not callable.
    """
    checked = [] if given is None else items(name, given, "functions")
    for function in checked:
        if not callable(function):
            raise OptionTypeError(f"{name} has {show(function)}; it must hold functions")
    return checked


def all_criteria(stop_strings: Sequence[str], tokenizer: Any, given: Sequence[Any]) -> list[Any]:
    """Return the given criteria, after transformers' criterion for the stop strings, if any.

    Raises OptionError for stop strings without a tokenizer.
    """
    criteria: list[Any] = []
    if stop_strings:
        if tokenizer is None:
            raise OptionError(
                "stop_strings is given without a tokenizer, which is needed to match them: pass "
                "tokenizer= to generate, or to from_transformers"
            )
        from transformers import StopStringCriteria

        criteria.append(StopStringCriteria(tokenizer, list(stop_strings)))
    return [*criteria, *given]
