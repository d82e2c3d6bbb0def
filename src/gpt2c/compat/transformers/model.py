"""For programs that use transformers: its GPT2LMHeadModel, on gpt2c's engine.

torch and transformers are imported by whoever calls :func:`from_transformers`, never by gpt2c.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from gpt2c.checks.untrusted import show
from gpt2c.compat.transformers.hooks import LogitsHook, StopWatch, functions, stop_criteria
from gpt2c.compat.transformers.options import Call, GenerateOptions
from gpt2c.compat.transformers.tensors import (
    checked_ids,
    checked_mask,
    prompts_of,
    sequences_of,
    steps_of,
)
from gpt2c.errors import MissingDependencyError, OptionError, OptionTypeError
from gpt2c.generate.options import Completion
from gpt2c.generate.sampling import SamplingOptions, Vocabulary, check_sampling
from gpt2c.model import GPT2
from gpt2c.text.tokenizer import MissingTokenizer
from gpt2c.weights.checkpoint import from_module

_SEEDS: Final = 2**63 - 1  # torch's integers go so far
_ELSEWHERE: Final = (
    "gpt2c's has generate alone. For the rest keep transformers' model, or see gpt2c.GPT2, which "
    "has score, logits and forward"
)


def from_transformers(
    hf_model: Any,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    backend: str = "auto",
) -> GPT2LMHeadModel:
    """A loaded transformers GPT2LMHeadModel, to be used in its place: ``model.generate`` and all.

    >>> model = GPT2LMHeadModel.from_pretrained("openai-community/gpt2")
    >>> model = gpt2c.from_transformers(model)  # the one line that is new

    hf_model is a ``transformers.GPT2LMHeadModel`` whose parameters are floats of any width, on any
    device. They are copied: it may be freed, and what is changed in it later does not show here.
    tokenizer, transformers' own, is what stop_strings are looked for with where a call gives none.
    dtype, threads and backend are those of :meth:`gpt2c.GPT2.from_pretrained`; float32 is what is
    computed in whatever the parameters' width, so the answers are those of ``hf_model.float()``.

    Raises MissingDependencyError without torch and transformers; OptionTypeError for another model;
    ConfigError or CheckpointError for one that gpt2c does not compute (an unknown activation, the
    parameters of an adapter); OptionError; BackendError.
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
            "hf_model is a model of gpt2c's already; it must be a transformers GPT2LMHeadModel"
        )
    if not isinstance(hf_model, transformers.GPT2LMHeadModel):
        raise OptionTypeError(
            f"hf_model is of type {type(hf_model).__name__}; it must be a transformers "
            "GPT2LMHeadModel"
        )
    missing = MissingTokenizer("the model is transformers', and so are its texts")
    gpt2 = GPT2(
        from_module(hf_model), missing, dtype=dtype, threads=threads, backend=backend
    )  # fmt: skip
    return GPT2LMHeadModel(gpt2, hf_model.config, hf_model.generation_config, tokenizer)


class GPT2LMHeadModel:
    """What a transformers model answers of text generation, computed by gpt2c.

    It has the name of the class in whose place it stands, by which ``transformers.pipeline`` tells
    what it can do. There are no logits, gradients or training here: for those keep transformers'
    model; for scores there is :meth:`gpt2c.GPT2.score`.
    """

    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = ("text",)

    def __init__(self, gpt2: GPT2, config: Any, generation_config: Any, tokenizer: Any) -> None:
        """:func:`from_transformers` is the way here."""
        self._gpt2 = gpt2
        self.config = config  # transformers', for who asks: what is changed in it has no effect
        # What calls go by where they say nothing else, as in transformers: it may be changed.
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
        """Continues prompts, as transformers' ``generate`` of the same arguments does.

        inputs, or input_ids
            Token ids, an integer tensor [n_prompts, n_tokens]; None begins with bos_token_id.
        attention_mask
            [n_prompts, n_tokens], 0 where there is padding, which is left of the prompts. None:
            pad_token_id is padding, unless it is an EOS token too. Nothing is computed for padding.
            A row of only padding is an empty prompt, which begins with bos_token_id.
        generation_config, options
            By transformers' names, with its meanings; those that are not given are the model's
            generation_config's, and else transformers' own. docs/transformers.md lists them.

        Returns an int64 tensor [n_prompts * num_return_sequences, n_tokens + n_new] on the device
        of the ids: each prompt with what follows it, filled with pad_token_id on the right. With
        return_dict_in_generate transformers' output object, with sequences and what output_scores
        and output_logits ask for. Greedy ids are those of transformers in float32, where no two
        logits are equal within float32's error. Draws are gpt2c's own: other texts than
        transformers', of the same distribution, repeatable by ``torch.manual_seed``.

        Raises OptionError or OptionTypeError, naming the option, for what cannot be and for what is
        not supported; ContextError for a prompt longer than the context; NumericalError;
        CacheMemoryError.
        """
        arguments = {
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
        }
        asked = self._asked({**arguments, **options}, generation_config)
        if inputs is not None and input_ids is not None:
            raise OptionError("inputs and input_ids are both given; they are the same argument")
        given = inputs if input_ids is None else input_ids
        ids = checked_ids(given, asked)
        mask = checked_mask(attention_mask, ids, asked.padding)
        call = asked.call(ids.shape[1], self._gpt2.config)
        prompts = prompts_of(ids, mask, self._gpt2.config.n_positions, asked)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        criteria = functions("stopping_criteria", stopping_criteria)
        criteria = stop_criteria(call.stop_strings, tokenizer, criteria)
        processors = functions("logits_processor", logits_processor)
        _check_together(call, len(prompts), criteria, streamer, processors)
        keeps = call.returns_dict and (call.output_scores or call.output_logits)
        watch = StopWatch(ids, criteria, streamer)
        hook = LogitsHook(processors, keeps and call.n_beams == 1)
        watch.begin()
        done = self._complete(prompts, call, watch, hook)
        watch.end(done[0].end_id)
        # transformers' texts have the token that ends them.
        new_ids = [d.ids if d.end_id is None else [*d.ids, d.end_id] for d in done]
        sequences = sequences_of(ids, new_ids, call)
        if given is not None:
            sequences = sequences.to(given.device)
        if not call.returns_dict:
            return sequences
        kept_of = [prompts[i // call.n_sequences] for i in range(len(done))]
        return self._output(sequences, call, done, kept_of, new_ids, hook)

    def _asked(self, given: Mapping[str, Any], config: Any) -> GenerateOptions:
        from transformers import GenerationConfig

        if config is not None and not isinstance(config, GenerationConfig):
            raise OptionTypeError(
                f"generation_config is of type {type(config).__name__}; it must be a transformers "
                "GenerationConfig"
            )
        # Those of version 5; before it an empty configuration had them.
        defaults_of = getattr(GenerationConfig, "_get_default_generation_params", None)
        return GenerateOptions(
            given,
            {} if config is None else config.to_diff_dict(),
            self.generation_config.to_diff_dict(),
            GenerationConfig().to_dict() if defaults_of is None else defaults_of(),
        )

    def _complete(
        self, prompts: list[list[int]], call: Call, watch: StopWatch, hook: LogitsHook
    ) -> list[Completion]:
        options = dict(call.options)
        # Texts that nobody looks at while they grow are made faster.
        if watch.is_needed:
            options["callback"] = watch
        if hook.is_needed:
            options["logits_processor"] = hook
        if call.draws:
            import torch

            options["seed"] = torch.randint(_SEEDS, (len(prompts),)).tolist()
        ends = call.end_ids(self._gpt2.config.vocab_size)
        done: Any = self._gpt2.complete(prompts, stop_token_ids=ends, **options)
        return [each for group in done for each in group]

    def _output(
        self, sequences: Any, call: Call, done: list[Completion], prompts: list[list[int]],
        new_ids: list[list[int]], hook: LogitsHook,
    ) -> Any:  # fmt: skip
        """transformers' object, with what was asked for."""
        import torch
        from transformers.generation import utils

        if call.n_beams > 1:
            scores = torch.tensor([each.sequence_score for each in done])
            return utils.GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=scores)
        output = utils.GenerateDecoderOnlyOutput(sequences=sequences)
        n_steps, n_vocab = max(map(len, new_ids)), self._gpt2.config.vocab_size
        pairs = list(zip(prompts, new_ids, strict=True))
        if call.output_logits:
            output["logits"] = steps_of([hook.logits(*pair) for pair in pairs], n_steps, n_vocab)
        if call.output_scores:
            ends = frozenset(call.end_ids(n_vocab))
            vocabulary = Vocabulary(n_vocab, ends, lambda: self._gpt2.tokenizer)
            sampling = {n: call.options.get(n) for n in SamplingOptions.__annotations__}
            plan = check_sampling(sampling, vocabulary)
            scores = [hook.scores(*pair, plan) for pair in pairs]
            output["scores"] = steps_of(scores, n_steps, n_vocab)
        return output

    # ---- what programs and pipelines ask of a model ----

    @property
    def device(self) -> Any:
        """torch's "cpu"."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        """torch's float32, which is what is computed in."""
        import torch

        return torch.float32

    def can_generate(self) -> bool:
        """It can."""
        return True

    def eval(self) -> GPT2LMHeadModel:
        """The model itself, which is never trained."""
        return self

    def to(self, *places: Any, **named: Any) -> GPT2LMHeadModel:
        """The model itself, where the CPU and float32 are asked for.

        Raises OptionError for another device or dtype: gpt2c runs on the CPU.
        """
        import torch

        for place in (*places, *named.values()):
            if isinstance(place, torch.dtype):
                is_here = place == torch.float32
            else:
                is_here = place is None or isinstance(place, bool) or _is_cpu(place)
            if not is_here:
                raise OptionError(
                    f"the model cannot go to {show(place)}: gpt2c computes on the CPU, in float32 "
                    "(for a pipeline pass device='cpu'; for less memory pass dtype= to "
                    "from_transformers)"
                )
        return self

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises OptionTypeError: there is no forward pass here."""
        raise OptionTypeError(f"the model cannot be called: {_ELSEWHERE}")

    if not TYPE_CHECKING:  # which then still sees a name that there is not

        def __getattr__(self, name: str) -> NoReturn:
            """Says where else to look for what a transformers model has and this one has not."""
            raise AttributeError(f"the model has no {name!r}: {_ELSEWHERE}", name=name, obj=self)

    def close(self) -> None:
        """Frees the weights once running calls are done; later calls raise ClosedError."""
        self._gpt2.close()

    def __enter__(self) -> GPT2LMHeadModel:
        """The model itself; it is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the model."""
        self.close()

    def __repr__(self) -> str:
        """What runs it."""
        return f"<gpt2c.compat.transformers.model.GPT2LMHeadModel on {self._gpt2!r}>"


def _is_cpu(place: Any) -> bool:
    import torch

    try:
        return bool(torch.device(place).type == "cpu")
    except (RuntimeError, TypeError):  # no device, or none that torch can reach
        return False


def _check_together(
    call: Call, n_prompts: int, criteria: Sequence[Any], streamer: Any, processors: Any
) -> None:
    """Refuses what is supported, but not beside each other."""
    if streamer is not None and (n_prompts > 1 or call.n_sequences > 1 or call.n_beams > 1):
        raise OptionError(
            "streamer is given for several texts; gpt2c streams a single prompt, one text of it, "
            "and no beam search"
        )
    for method in () if streamer is None else ("put", "end"):
        if not callable(getattr(streamer, method, None)):
            raise OptionTypeError(
                f"streamer is {show(streamer)}; it must have the methods put and end"
            )
    if criteria and call.n_beams > 1:
        raise OptionError(
            f"num_beams is {call.n_beams}; stop_strings and stopping_criteria do not go with beam "
            "search here (gpt2c.GPT2's own beams take stop_strings)"
        )
    if processors and (name := call.penalty()) is not None:
        raise OptionError(
            f"logits_processor is given together with {name}; transformers runs its own processors "
            "before yours, and gpt2c after them: leave one of the two out"
        )
