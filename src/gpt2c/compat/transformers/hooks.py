"""What transformers' generate calls while it runs, called by gpt2c's; and the logits it keeps.

Rows run by themselves here, so each of transformers' objects is asked about one row at a time.
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


class StopWatch:
    """A callback of GPT2.complete that asks stopping criteria, and feeds a streamer."""

    def __init__(self, input_ids: Any, criteria: Sequence[Any], streamer: Any) -> None:
        """input_ids int64 [n_prompts, n_tokens], the padding included, as criteria see them."""
        self._input_ids, self._criteria, self._streamer = input_ids, criteria, streamer

    @property
    def is_needed(self) -> bool:
        """Whether anybody is to be asked or fed."""
        return bool(self._criteria) or self._streamer is not None

    def begin(self) -> None:
        """Gives the streamer the prompt, as transformers does."""
        if self._streamer is not None:
            self._streamer.put(self._input_ids)

    def end(self, end_id: int | None) -> None:
        """Gives it the token that ended the text, where one did, and says that this was all."""
        if self._streamer is not None:
            if end_id is not None:
                self._streamer.put(self._input_ids.new_tensor([end_id]))
            self._streamer.end()

    def __call__(self, index: int, new_ids: list[int]) -> bool:
        """Whether the text ends with the last of its new ids."""
        import torch

        if self._streamer is not None:
            self._streamer.put(torch.tensor(new_ids[-1:]))
        if not self._criteria:
            return False
        row = torch.cat([self._input_ids[index], torch.tensor(new_ids)])[None]
        return any(_says_yes(ends(row, None)) for ends in self._criteria)


def _says_yes(answer: Any) -> bool:
    """What a criterion says: older ones answer a bool, newer ones one for each row."""
    import torch

    if not isinstance(answer, bool | np.bool_ | torch.Tensor):
        raise OptionTypeError(
            f"one of stopping_criteria answers {show(answer)}; it must be True, False or a tensor "
            "of them"
        )
    return bool(torch.as_tensor(answer).any())


class LogitsHook:
    """A logits_processor of GPT2.complete that runs transformers' own, and keeps what it is asked

    to: a text's logits are found again by its tokens, which determine them.
    """

    def __init__(self, processors: Sequence[Callable[..., Any]], keeps: bool) -> None:
        """Keeps none of the logits unless it is asked to."""
        self._processors, self._keeps = processors, keeps
        self._kept: dict[bytes, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to run or to keep."""
        return bool(self._processors) or self._keeps

    def __call__(self, ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n_vocab] after transformers' processors."""
        import torch

        processed = logits
        if self._processors:
            row, scores = torch.tensor(ids)[None], torch.from_numpy(logits.copy())[None]
            for process in self._processors:
                scores = process(row, scores)
                if not isinstance(scores, torch.Tensor) or scores.shape != (1, len(logits)):
                    raise OptionError(
                        f"one of logits_processor returned {show(scores)}; it must be a tensor of "
                        f"shape [1, {len(logits)}]"
                    )
            processed = scores[0].detach().float().cpu().numpy()
        if self._keeps:
            self._kept[_key(ids)] = logits, processed
        return processed

    def logits(self, prompt: list[int], new_ids: list[int]) -> list[NDArray[np.float32]]:
        """The model's own before each of the new ids: [n_vocab]."""
        return [self._kept[key][0] for key in _keys(prompt, new_ids)]

    def scores(
        self, prompt: list[int], new_ids: list[int], plan: Plan
    ) -> list[NDArray[np.float32]]:
        """The same after all that was done to them before the choice."""
        sampler = Sampler(plan, 0, 0, len(prompt))
        rows = []
        for i, key in enumerate(_keys(prompt, new_ids)):
            processed = sampler.process(self._kept[key][1], [*prompt, *new_ids[:i]])
            rows.append(np.asarray(processed, dtype=np.float32))
        return rows


def _keys(prompt: list[int], new_ids: list[int]) -> list[bytes]:
    return [_key([*prompt, *new_ids[:i]]) for i in range(len(new_ids))]


def _key(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def functions(name: str, given: Any) -> list[Callable[..., Any]]:
    """A list of them; transformers' own classes are lists too. Raises OptionTypeError."""
    found = [] if given is None else items(name, given, "functions")
    for each in found:
        if not callable(each):
            raise OptionTypeError(f"{name} has {show(each)}; it must hold functions")
    return found


def stop_criteria(stop_strings: Sequence[str], tokenizer: Any, given: Sequence[Any]) -> list[Any]:
    """Those of a call: transformers' own for stop strings, which knows where a token may begin one,

    and those that were given. Raises OptionError for stop strings without a tokenizer.
    """
    criteria: list[Any] = []
    if stop_strings:
        if tokenizer is None:
            raise OptionError(
                "stop_strings is given without a tokenizer, which they are looked for with: pass "
                "tokenizer= to generate, or to from_transformers"
            )
        from transformers import StopStringCriteria

        criteria.append(StopStringCriteria(tokenizer, list(stop_strings)))
    return [*criteria, *given]
