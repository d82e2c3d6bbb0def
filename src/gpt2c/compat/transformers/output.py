"""Make the output object of transformers' generate, with scores, logits and hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2c.compat.transformers.hooks import LogitsProcessor
from gpt2c.compat.transformers.options import ResolvedOptions
from gpt2c.generate.options import Completion
from gpt2c.generate.sampling import SamplingOptions, Vocabulary, check_sampling
from gpt2c.model import GPT2


class OutputRow(NamedTuple):
    """What a row of the output object is made from."""

    prompt: list[int]  # without padding
    new_ids: list[int]  # with the EOS token
    processor: LogitsProcessor


def output_object(
    gpt2: GPT2, sequences: Any, resolved: ResolvedOptions, completions: list[Completion],
    rows: list[OutputRow], width: int,
) -> Any:  # fmt: skip
    """Return transformers' output object; the lists have one entry per row of `sequences`.

    `width` is the number of columns of input_ids.
    """
    import torch
    from transformers.generation import utils

    if resolved.n_beams > 1:
        scores = torch.tensor([completion.sequence_score for completion in completions])
        return utils.GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=scores)
    output = utils.GenerateDecoderOnlyOutput(sequences=sequences)
    n_steps, n_vocab = max(len(row.new_ids) for row in rows), gpt2.config.vocab_size
    if resolved.output_logits:
        logits = [row.processor.logits(row.prompt, row.new_ids) for row in rows]
        output["logits"] = _tensors_by_step(logits, n_steps, n_vocab)
    if resolved.output_scores:
        end_ids = frozenset(resolved.end_ids(n_vocab))
        vocabulary = Vocabulary(n_vocab, end_ids, lambda: gpt2.tokenizer)
        sampling = {name: resolved.options.get(name) for name in SamplingOptions.__annotations__}
        plan = check_sampling(sampling, vocabulary)
        scores = [row.processor.scores(row.prompt, row.new_ids, plan) for row in rows]
        output["scores"] = _tensors_by_step(scores, n_steps, n_vocab)
    if resolved.output_hidden_states:
        fed = [[*row.prompt, *row.new_ids[:-1]] for row in rows]
        states = [_hidden_states(gpt2, ids) for ids in fed]
        lengths = [len(row.prompt) for row in rows]
        output["hidden_states"] = _hidden_states_by_step(states, lengths, width, n_steps)
    return output


def _hidden_states(model: GPT2, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return what transformers calls hidden states: float32 [n_layer + 1, n_tokens, n_embd].

    They are the embeddings, the residual stream after each block but the last, and the last layer
    norm's output.
    """
    seen = model.forward(list(ids), capture=["embed", "resid_post", "ln_f"])
    if not model.config.n_layer:
        return seen["ln_f"][None]
    return np.concatenate([seen["embed"][None], seen["resid_post"][:-1], seen["ln_f"][None]])


def _hidden_states_by_step(
    states: Sequence[NDArray[np.float32]], lengths: Sequence[int], width: int, n_steps: int
) -> tuple[tuple[Any, ...], ...]:
    """Return for each step and layer a tensor [n_rows, n, n_embd].

    `states` are each row's [n_layer + 1, n_tokens, n_embd], and `lengths` the rows' prompt lengths.
    The first step has the prompts, padded on the left to n = `width`; each other step has the one
    token before it. Padding, and rows that have ended, are zeros.
    """
    import torch

    n_layers, _, n_embd = states[0].shape
    steps = []
    for step in range(n_steps):
        n = 1 if step else width
        values = np.zeros((n_layers, len(states), n, n_embd), dtype=np.float32)
        for row, (state, length) in enumerate(zip(states, lengths, strict=True)):
            end = length + step
            begin = end - 1 if step else 0
            if end <= state.shape[1]:
                values[:, row, n - (end - begin) :] = state[:, begin:end]
        steps.append(tuple(map(torch.from_numpy, values)))
    return tuple(steps)


def _tensors_by_step(
    logits_by_row: Sequence[Sequence[NDArray[np.float32]]], n_steps: int, n_vocab: int
) -> tuple[Any, ...]:
    """Return a tensor [n_rows, n_vocab] for each step from each row's list of logits [n_vocab].

    After a row has ended, its values are zeros.
    """
    import torch

    by_step = np.zeros((n_steps, len(logits_by_row), n_vocab), dtype=np.float32)
    for row, logits_by_step in enumerate(logits_by_row):
        for step, logits in enumerate(logits_by_step):
            by_step[step, row] = logits
    return tuple(torch.from_numpy(logits) for logits in by_step)
