"""A drop-in replacement for transformers' GPT2LMHeadModel, on gpt2c's engine.

Importing gpt2c imports neither torch nor transformers; :func:`from_transformers` does.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NoReturn

from gpt2c.checks.untrusted import show
from gpt2c.closable import Closable
from gpt2c.compat.transformers.hooks import (
    LogitsProcessor,
    TokenCallback,
    all_criteria,
    checked_functions,
)
from gpt2c.compat.transformers.options import MergedOptions, ResolvedOptions
from gpt2c.compat.transformers.output import OutputRow, output_object
from gpt2c.compat.transformers.processors import ProcessorRecipe, unconditional_prompts
from gpt2c.compat.transformers.tensors import (
    checked_ids,
    checked_mask,
    padded_sequences,
    unpadded_prompts,
)
from gpt2c.errors import MissingDependencyError, OptionError, OptionTypeError
from gpt2c.generate.options import Completion
from gpt2c.model import GPT2
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_module

_INT64_MAX: Final = 2**63 - 1
_ONLY_GENERATE: Final = (
    "gpt2c's model has only generate. For anything else keep transformers' model, or see "
    "gpt2c.GPT2, which has score, logits and forward"
)


def from_transformers(
    hf_model: Any,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    backend: str = "auto",
) -> GPT2LMHeadModel:
    """Return a drop-in replacement for a transformers model's ``generate``.

    >>> model = GPT2LMHeadModel.from_pretrained("openai-community/gpt2")
    >>> model = gpt2c.from_transformers(model)  # the only new line

    hf_model is a ``transformers.GPT2LMHeadModel`` with floating-point parameters of any width, on
    any device. The parameters are copied, so hf_model may be freed or changed afterwards. tokenizer
    is the transformers tokenizer that calls use for stop_strings if they do not pass their own.
    dtype, threads and backend are the options of :meth:`gpt2c.GPT2.from_pretrained`. The default
    dtype is float32, whatever the parameters' dtype, so results are those of ``hf_model.float()``.

    Raises MissingDependencyError without torch or transformers; OptionTypeError for another kind
    of model; ConfigError or CheckpointError for a GPT-2 that gpt2c does not support (an unknown
    activation, an adapter's parameters); OptionError; BackendError.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "from_transformers needs the packages torch and transformers: pip install torch "
            f"transformers (the extra gpt2c[transformers]); {error}"
        ) from None
    if isinstance(hf_model, GPT2 | GPT2LMHeadModel):
        raise OptionTypeError(
            "hf_model is already a gpt2c model; it must be a transformers GPT2LMHeadModel"
        )
    if not isinstance(hf_model, transformers.GPT2LMHeadModel):
        raise OptionTypeError(
            f"hf_model is of type {type(hf_model).__name__}; it must be a transformers "
            "GPT2LMHeadModel"
        )
    missing = MissingTokenizer("the model came from transformers, without a tokenizer")
    gpt2 = GPT2(from_module(hf_model), missing, dtype=dtype, threads=threads, backend=backend)
    return GPT2LMHeadModel(gpt2, hf_model.config, hf_model.generation_config, tokenizer)


class GPT2LMHeadModel(Closable):
    """The text generation of a transformers model, computed by gpt2c.

    The class has the name of transformers' class, because ``transformers.pipeline`` uses this name
    to find out what a model can do. It has no forward pass, gradients or training: for those keep
    transformers' model. For scores see :meth:`gpt2c.GPT2.score`.
    """

    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = ("text",)

    def __init__(self, gpt2: GPT2, config: Any, generation_config: Any, tokenizer: Any) -> None:
        """Use :func:`from_transformers` instead."""
        self._gpt2 = gpt2
        self.config = config  # transformers' object, for reading: changes have no effect
        # The default options of calls, as in transformers; users may change them.
        self.generation_config = copy.deepcopy(generation_config)
        self.tokenizer = tokenizer

    # ---- generation ----

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Sequence[Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> Any:
        """Continue prompts, as transformers' ``generate`` does with the same arguments.

        inputs, or input_ids
            Token ids: an integer tensor [n_prompts, n_tokens]. Without ids the prompt is
            bos_token_id.
        attention_mask
            A tensor [n_prompts, n_tokens], 0 for padding, which must be on the left. Without a
            mask, pad_token_id is padding, unless it is also an EOS token. Padding costs no
            computation. A row of only padding is an empty prompt and becomes bos_token_id.
        generation_config, options
            Options with transformers' names and meanings; `options` take precedence. Options that
            are not given come from the model's generation_config, then from transformers' defaults.
            docs/transformers.md lists the options.
        logits_processor, stopping_criteria, streamer
            Objects of transformers, with the meanings that they have there.

        Returns an int64 tensor [n_prompts * num_return_sequences, n_tokens + n_new] on the device
        of the ids: each prompt and its new ids, padded on the right with pad_token_id. With
        return_dict_in_generate, returns transformers' output object, with `sequences` and, if
        output_scores or output_logits is set, `scores` or `logits`. Greedy ids are those of
        transformers in float32, unless two logits are equal within float32's error. Samples have
        the same distribution as in transformers, but other random numbers; ``torch.manual_seed``
        makes them repeatable.

        Raises OptionError or OptionTypeError, naming the option, for invalid or unsupported
        options; ContextError for a prompt longer than the context; NumericalError;
        CacheMemoryError.
        """
        arguments = {
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
        }
        merged = self._merged_options({**arguments, **options}, generation_config)
        if inputs is not None and input_ids is not None:
            raise OptionError("inputs and input_ids are both given; they are the same argument")
        given = inputs if input_ids is None else input_ids
        ids = checked_ids(given, merged)
        mask = checked_mask(attention_mask, ids, merged.prompt_pad_id)
        resolved = merged.resolve(ids.shape[1], self._gpt2.config)
        prompts = unpadded_prompts(ids, mask, self._gpt2.config.n_positions, merged)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        criteria = checked_functions("stopping_criteria", stopping_criteria)
        criteria = all_criteria(resolved.stop_strings, tokenizer, criteria)
        processors = checked_functions("logits_processor", logits_processor)
        _check_combinations(resolved, len(prompts), criteria, streamer)
        resolved, row_processors = self._row_processors(resolved, prompts, processors, ids.shape[1])
        callback = TokenCallback(ids, criteria, streamer)
        callback.begin()
        completions = self._complete(prompts, resolved, callback, row_processors)
        callback.end(completions[0].end_id)
        # transformers' sequences include the EOS token; gpt2c's ids do not.
        new_ids = [c.ids if c.end_id is None else [*c.ids, c.end_id] for c in completions]
        sequences = padded_sequences(ids, new_ids, resolved)
        if given is not None:
            sequences = sequences.to(given.device)
        if not resolved.returns_dict:
            return sequences
        n = resolved.n_sequences
        rows = [
            OutputRow(prompts[row // n], new, row_processors[row // n])
            for row, new in enumerate(new_ids)
        ]
        return output_object(self._gpt2, sequences, resolved, completions, rows, ids.shape[1])

    def _merged_options(self, given: Mapping[str, Any], config: Any) -> MergedOptions:
        from transformers import GenerationConfig

        if config is not None and not isinstance(config, GenerationConfig):
            raise OptionTypeError(
                f"generation_config is of type {type(config).__name__}; it must be a transformers "
                "GenerationConfig"
            )
        # transformers 5 has this method; in version 4 an empty GenerationConfig held the defaults.
        get_defaults = getattr(GenerationConfig, "_get_default_generation_params", None)
        return MergedOptions(
            given,
            {} if config is None else config.to_diff_dict(),
            self.generation_config.to_diff_dict(),
            GenerationConfig().to_dict() if get_defaults is None else get_defaults(),
        )

    def _row_processors(
        self, resolved: ResolvedOptions, prompts: list[list[int]],
        given: Sequence[Any], width: int,
    ) -> tuple[ResolvedOptions, list[LogitsProcessor]]:  # fmt: skip
        """Return the options that are left to gpt2c, and each prompt's logits_processor.

        `given` are the user's processors, and `width` the number of columns of input_ids. The
        prompts share one processor, unless transformers' own processors run, which know the length
        of their prompt.
        """
        outputs_logits = resolved.output_scores or resolved.output_logits
        keeps_logits = resolved.returns_dict and outputs_logits and resolved.n_beams == 1
        penalties = resolved.penalties()
        if not resolved.for_processors and not (given and penalties):
            return resolved, [LogitsProcessor(given, keeps_logits)] * len(prompts)
        n_vocab = self._gpt2.config.vocab_size
        recipe = ProcessorRecipe(
            resolved.for_processors, penalties, width, resolved.options["max_new_tokens"],
            resolved.end_ids(n_vocab), n_vocab,
        )  # fmt: skip
        others = [[0]] * len(prompts)
        if recipe.is_guided:
            others = unconditional_prompts(*resolved.negative_prompt, prompts, n_vocab)
        return resolved.without_penalties(), [
            LogitsProcessor(
                [*recipe.build(row, prompt, self._gpt2, others[row]), *given],
                keeps_logits,
            )
            for row, prompt in enumerate(prompts)
        ]

    def _complete(
        self, prompts: list[list[int]], resolved: ResolvedOptions, callback: TokenCallback,
        processors: list[LogitsProcessor],
    ) -> list[Completion]:  # fmt: skip
        """Return the completion of each row: n_sequences rows for each prompt."""
        options = dict(resolved.options)
        # transformers' model has no EOS tokens but those of the call.
        options["eos_token_id"] = resolved.end_ids(self._gpt2.config.vocab_size)
        seeds = None
        if resolved.draws:
            import torch

            seeds = torch.randint(_INT64_MAX, (len(prompts),)).tolist()
        completions: list[Completion] = []
        begin, max_time = time.monotonic(), options.get("max_time")
        # Prompts with the same processor run together.
        first = 0
        for processor, group in groupby(processors):
            rows = slice(first, first + len(list(group)))
            if first and max_time is not None:
                options["max_time"] = max(max_time - (time.monotonic() - begin), 0)
            # Generation is faster without a callback or a logits_processor.
            if callback.is_needed:
                options["callback"] = partial(_call_of_row, callback, first)
            if processor.is_needed:
                options["logits_processor"] = processor
            seed = None if seeds is None else seeds[rows]
            by_prompt: Any = self._gpt2.complete(prompts[rows], seed=seed, **options)
            completions += [each for of_prompt in by_prompt for each in of_prompt]
            first = rows.stop
        return completions

    # ---- the model attributes that programs and pipelines read ----

    @property
    def device(self) -> Any:
        """torch's CPU device."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        """torch's float32, the compute dtype."""
        import torch

        return torch.float32

    def can_generate(self) -> bool:
        """Return True."""
        return True

    def eval(self) -> GPT2LMHeadModel:
        """Return the model itself, which is always in evaluation mode."""
        return self

    def to(self, *targets: Any, **named: Any) -> GPT2LMHeadModel:
        """Return the model itself.

        Raises OptionError for a device other than the CPU or a dtype other than float32.
        """
        import torch

        for target in (*targets, *named.values()):
            if isinstance(target, torch.dtype):
                is_supported = target == torch.float32
            else:
                is_supported = target is None or isinstance(target, bool) or _is_cpu(target)
            if not is_supported:
                raise OptionError(
                    f"the model cannot be moved to {show(target)}: gpt2c computes on the CPU in "
                    "float32. For a pipeline pass device='cpu'; for less memory pass dtype= to "
                    "from_transformers"
                )
        return self

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise OptionTypeError: the model has no forward pass."""
        raise OptionTypeError(f"the model cannot be called: {_ONLY_GENERATE}")

    if not TYPE_CHECKING:  # with __getattr__, a type checker would accept unknown names

        def __getattr__(self, name: str) -> NoReturn:
            """Raise AttributeError, which says where to find the other attributes of a model."""
            raise AttributeError(
                f"the model has no {name!r}: {_ONLY_GENERATE}", name=name, obj=self
            )

    def close(self) -> None:
        """Free the weights once running calls have ended; later calls raise ClosedError."""
        self._gpt2.close()

    def __repr__(self) -> str:
        """Name the class and the model's backend."""
        return f"<gpt2c.compat.transformers.model.GPT2LMHeadModel on {self._gpt2!r}>"


def _is_cpu(device: Any) -> bool:
    import torch

    try:
        return bool(torch.device(device).type == "cpu")
    except (RuntimeError, TypeError):  # not a device, or one that torch cannot use
        return False


def _check_combinations(
    resolved: ResolvedOptions,
    n_prompts: int,
    criteria: Sequence[Any],
    streamer: Any,
) -> None:
    """Raise OptionError for unsupported combinations of options, and check the streamer's type."""
    has_one_sequence = n_prompts == resolved.n_sequences == resolved.n_beams == 1
    if streamer is not None and not has_one_sequence:
        raise OptionError(
            "streamer is given for several sequences; gpt2c streams a single sequence, without "
            "beam search"
        )
    for method in () if streamer is None else ("put", "end"):
        if not callable(getattr(streamer, method, None)):
            raise OptionTypeError(
                f"streamer is {show(streamer)}; it must have the methods put and end"
            )
    if criteria and resolved.n_beams > 1:
        raise OptionError(
            f"num_beams is {resolved.n_beams}; stop_strings and stopping_criteria cannot be "
            "combined with beam search here (gpt2c.GPT2's own beam search takes stop_strings)"
        )
    if resolved.output_hidden_states and resolved.returns_dict and resolved.n_beams > 1:
        raise OptionError(
            f"output_hidden_states is True and num_beams is {resolved.n_beams}; gpt2c does not "
            "support the two together: leave out one, or call GPT2.forward with the sequences"
        )


def _call_of_row(callback: TokenCallback, first: int, index: int, new_ids: list[int]) -> bool:
    """Call the callback of the whole call from a call for its rows from `first` on."""
    return callback(first + index, new_ids)
