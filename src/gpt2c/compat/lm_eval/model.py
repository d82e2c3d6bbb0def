"""GPT2LM: the class of models that lm-eval calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict, TypeVar, Unpack

from gpt2c._version import __version__
from gpt2c.checks.options import INT64_MAX, did_you_mean, integer
from gpt2c.checks.untrusted import show
from gpt2c.compat.lm_eval.generating import Limits, generate_texts
from gpt2c.compat.lm_eval.scoring import Pair, encode_pair, score_pairs
from gpt2c.errors import MissingDependencyError, OptionError, OptionTypeError
from gpt2c.model import GPT2
from gpt2c.progress import with_bar
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer
from gpt2c.weights.adapters import Adapters

try:
    import lm_eval.models  # noqa: F401  # registers lm-eval's own models; see `register`
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise MissingDependencyError(
        "gpt2c.compat.lm_eval needs the package lm-eval 0.4.13 or later: pip install "
        f"'lm-eval>=0.4.13' (the extra gpt2c[lm-eval]); {error}"
    ) from None

_NAME: Final = "gpt2c"
_T = TypeVar("_T")


class EvalRequest(Protocol):
    """What gpt2c needs of an lm-eval Instance."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The context and continuation, the text, or the context and generation_kwargs."""


class ModelOptions(TypedDict, total=False):
    """Arguments of GPT2LM that GPT2.from_pretrained describes."""

    dtype: str
    threads: int | None
    backend: str
    kv_cache_bytes: int | None
    prefix_cache_bytes: int
    revision: str | None
    token: str | bool | None
    local_files_only: bool
    tokenizer: str | os.PathLike[str] | Tokenizer | None
    activation: str | None
    hparams: Mapping[str, Any] | str | os.PathLike[str] | None
    adapter: Adapters | None
    n_head: int | None


class GPT2LM(TemplateLM):  # type: ignore[misc]  # lm-eval may be absent
    """A GPT-2 model for ``lm_eval.simple_evaluate(model=GPT2LM(...), tasks=[...])``.

    Requests, windows and results are those of lm-eval's own model "hf" in float32;
    docs/evaluation.md lists the differences. Results have the same bits for every batch_size.

    pretrained
        A checkpoint's path or name, as GPT2.from_pretrained takes it, or a loaded GPT2. By default
        the embedded model.
    max_length
        The max number of tokens that the model sees (default: the model's positions).
    max_gen_toks
        The max number of new tokens of a request that does not say it (default 256, at most half of
        max_length).
    prefix_token_id
        The token that stands for an empty context (default: BOS, or else EOS).
    draft, num_assistant_tokens
        Speculative decoding; GPT2.complete describes it. It changes no text.
    seed
        What the draws of sampled texts depend on, besides the context and the options. A request's
        own ``seed`` in generation_kwargs takes precedence.
    batch_size, max_batch_size, device, trust_remote_code
        Accepted because lm-eval passes them (its default device is "cuda:0"), and without effect.

    The other arguments are those of GPT2.from_pretrained. Raises OptionTypeError naming an
    argument that is unknown, and the errors of GPT2.from_pretrained; TokenizerError if the model
    has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | GPT2 | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        prefix_token_id: int | None = None,
        draft: str | GPT2 | None = "auto",
        num_assistant_tokens: int | None = None,
        seed: int = 1234,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: object = None,
        trust_remote_code: bool | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        """Load the model."""
        super().__init__()
        self.gpt2 = _loaded(pretrained, options)
        tokenizer = self.gpt2.tokenizer
        if isinstance(tokenizer, MissingTokenizer):
            tokenizer.encode("")  # raises TokenizerError
        assert isinstance(tokenizer, Tokenizer)
        self.tokenizer: Tokenizer = tokenizer
        n_positions, n_vocab = self.gpt2.config.n_positions, self.gpt2.config.vocab_size
        self.max_length = n_positions
        if max_length is not None:
            self.max_length = integer("max_length", max_length, 2, n_positions)
        self._prefix_id = self.tokenizer.bos_id
        if prefix_token_id is not None:
            self._prefix_id = integer("prefix_token_id", prefix_token_id, 0, n_vocab - 1)
        elif self._prefix_id is None:
            self._prefix_id = self.gpt2._encoder.start_id("an empty context")
        self.max_gen_toks = min(256, self.max_length // 2)
        if max_gen_toks is not None:
            self.max_gen_toks = integer("max_gen_toks", max_gen_toks, 0, self.max_length - 1)
        self._seed = integer("seed", seed, 0, INT64_MAX)
        self._drafting = {"draft": draft, "num_assistant_tokens": num_assistant_tokens}

    # ---- what lm-eval calls ----

    def loglikelihood(
        self, requests: Sequence[EvalRequest], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether greedy decoding chooses it.

        The arguments of a request are a context and a continuation. Raises OptionError or
        ContextError for a continuation that cannot be scored.
        """
        encode = cache(self._encode)
        texts = [request.args for request in requests]
        pairs = [
            encode_pair(context, continuation, encode, self.prefix_token_id)
            for context, continuation in texts
        ]
        found = []
        for text, answer in zip(texts, self._scored(pairs, disable_tqdm), strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
            found.append(answer)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[EvalRequest], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each text, of any length, after the prefix token.

        Each text is scored by itself, in windows of max_length tokens, of which the last is moved
        back so that it is full too.
        """
        texts = [text for (text,) in (request.args for request in requests)]
        windows = [self._rolling_windows(text) for text in texts]
        answers = self._scored([pair for pairs in windows for pair in pairs], disable_tqdm)
        found = []
        for text, pairs in zip(texts, windows, strict=True):
            total = sum((next(answers)[0] for _ in pairs), 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(
        self, requests: Sequence[EvalRequest], disable_tqdm: bool = False
    ) -> list[str]:
        """Continue each context up to one of its stop strings, which the text leaves out.

        The arguments of a request are a context and its generation_kwargs. All requests run in one
        batch, each with its own options.
        """
        arguments = [request.args for request in requests]
        encode = cache(self._encode)
        contexts = [(encode(context, True), kwargs) for context, kwargs in arguments]
        limits = Limits(self.max_length, self.max_gen_toks, self._seed)
        results = generate_texts(self.gpt2, contexts, limits, self._drafting)
        texts = [""] * len(arguments)
        for index, text in self._shown(results, len(arguments), disable_tqdm):
            texts[index] = text
            self.cache_hook.add_partial("generate_until", arguments[index], text)
        return texts

    def apply_chat_template(self, chat_history: object, add_generation_prompt: bool = True) -> str:
        """Raise OptionError: GPT-2 has no chat template."""
        raise OptionError(
            "GPT-2 models have no chat template; run without --apply_chat_template "
            "(apply_chat_template=False)"
        )

    @property
    def eot_token_id(self) -> int | None:
        """The id of the EOS token."""
        return self.tokenizer.eot_id

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context."""
        assert self._prefix_id is not None
        return self._prefix_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's source, which lm-eval puts into the names of its files."""
        return self.tokenizer.source.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return the ids of a text.

        By default, the tokens that the tokenizer puts around texts are added, unless the text
        begins with the prefix token's name.
        """
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tok_decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def get_model_info(self) -> dict[str, object]:
        """Return what lm-eval records about the model beside its results."""
        return {
            "model_num_parameters": self.gpt2.config.n_parameters,
            "model_dtype": self.gpt2.dtype,
            "model_backend": self.gpt2.backend,
            "gpt2c_version": __version__,
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **_: object,
    ) -> list[tuple[float, bool]]:
        """Score ids; lm-eval's base class declares this method."""
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        return list(self._scored(pairs, disable_tqdm))

    # ---- helpers ----

    def _encode(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self.tok_encode(text, None if special else False))

    def _rolling_windows(self, text: str) -> list[Pair]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length, context_len=1,
        )  # fmt: skip
        return [Pair(*make_disjoint_window(window)) for window in windows]

    def _scored(self, pairs: list[Pair], quiet: bool) -> Iterator[tuple[float, bool]]:
        answers = score_pairs(self.gpt2._engine, pairs, self.max_length)
        return self._shown(answers, len(pairs), quiet)

    def _shown(self, results: Iterator[_T], total: int, quiet: bool) -> Iterator[_T]:
        return results if quiet else with_bar(results, total)


def register() -> None:
    """Make the model known to lm-eval as "gpt2c".

    lm-eval's releases that read entry points do this by themselves. Those that do not import their
    own models only while none is known; importing this module has imported them.
    """
    if _NAME not in model_registry:
        model_registry.register(_NAME)(GPT2LM)


def _loaded(pretrained: object, options: Mapping[str, Any]) -> GPT2:
    known = ModelOptions.__annotations__
    if unknown := [name for name in options if name not in known]:
        names = [*known, "pretrained", *(GPT2LM.__init__.__kwdefaults__ or ())]
        raise OptionTypeError(
            f"gpt2c's model for lm-eval has no argument {show(unknown[0])}"
            f"{did_you_mean(unknown[0], names)} (it has {', '.join(sorted(names))})"
        )
    if isinstance(pretrained, GPT2):
        if options:
            raise OptionError(
                f"{next(iter(options))} is given with a loaded model; pass it when you load the "
                "model"
            )
        return pretrained
    if pretrained is not None and not isinstance(pretrained, str | Path):
        raise OptionTypeError(
            f"pretrained is {show(pretrained)}; it must be a path, a name or a gpt2c.GPT2"
        )
    return GPT2.from_pretrained(pretrained, **options)
