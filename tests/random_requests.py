"""Makes random requests of every kind, and their outcomes, for tests of calls that run together.

Whatever runs beside a request, its outcome has the bits of the same request alone.
random_callers.py makes the requests from threads and asyncio tasks, and compares.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from conftest import FLOAT_ISAS, ISAS, config_of, model_on, random_weights

import gpt2c
from gpt2c import GPT2, Completion, Score

# The random models' vocabulary: single bytes, pairs and triples of letters, and the last two ids.
_TOKENS = [bytes([byte]) for byte in 'abcdef\n:"* .é'.encode()]
_TOKENS += [bytes([a, b]) for a in b"abcdef" for b in b"abcdef"]
_TOKENS += [b"abc", b"cab", b"fed", b"ace", b"bad", b"dab", b"fab", b" be", b" fad", b" cafe"]
_TOKENS += [b"" for _ in range(62 - len(_TOKENS))]
EOS, POISON = 62, 63
N_VOCAB, N_POSITIONS = 64, 96
WORDS = ["the", "king", "said", "to", "his", "daughter", "once", "upon", "a", "time", "was", "an"]


class OnPurposeError(Exception):
    """Raised by a callback or a logits_processor on purpose."""


class Letters:
    """The random models' tokenizer, which encodes each byte as a token."""

    n_vocab = N_VOCAB
    eot_id = EOS
    tokens = (*_TOKENS, b"<end>", b"")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        try:
            return [self.tokens.index(bytes([byte])) for byte in text.encode()]
        except ValueError:
            raise gpt2c.TokenizerError(f"{text!r} has a byte without a token") from None

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def decode(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


# ---- models ----


@dataclass(frozen=True)
class Memory:
    """What limits a model's memory. By default nothing that a test meets; no prefix cache."""

    n_pages: int | None = None  # of the KV cache
    prefix_cache_bytes: int = 0


@dataclass(frozen=True)
class Loaded:
    """A model, a smaller one that drafts for it, and the words of which its prompts consist."""

    model: GPT2
    draft: GPT2 | None
    words: list[str]

    def close(self) -> None:
        self.model.close()
        if self.draft is not None:
            self.draft.close()


def model_names() -> list[str]:
    """Return the names of the models: every dtype on every instruction set, NumPy, and tales."""
    compiled = [f"{isa} float32" for isa in FLOAT_ISAS]
    compiled += [f"{isa} {dtype}" for isa in ISAS for dtype in ("int8", "int4")]
    return [*compiled, "numpy float32", "numpy float64", *(["tales"] if ISAS else [])]


def load(name: str, memory: Memory = Memory()) -> Loaded:
    """Load a model by one of the names that `model_names` returns.

    A prompt with the id POISON makes a random model's activations overflow, so that its request
    fails with NumericalError (except in float64).
    """
    loaded = _load(name, memory.prefix_cache_bytes)
    if memory.n_pages is not None:
        # As kv_cache_bytes would; the size of a page is known only now.
        loaded.model._engine.cache_limit = memory.n_pages * loaded.model._engine.page_bytes
    return loaded


def _load(name: str, prefix_cache_bytes: int) -> Loaded:
    options: dict[str, Any] = {"prefix_cache_bytes": prefix_cache_bytes}
    if name == "tales":
        return Loaded(GPT2.from_pretrained(**options), None, [f"{word} " for word in WORDS])
    backend, dtype = name.split()
    shape = {"vocab_size": N_VOCAB, "n_positions": N_POSITIONS, "eos_token_id": EOS}
    config = config_of(**shape, tie_word_embeddings=False)
    weights = random_weights(config, seed=4)
    weights["wte.weight"][POISON] = 3e38
    # The last activation has a 1 at index 0: the logit of POISON is -40, so it is never generated.
    weights["ln_f.weight"][0], weights["ln_f.bias"][0] = 0, 1
    weights["lm_head.weight"][:, 0] = 0
    weights["lm_head.weight"][POISON] = [-40, *[0] * (config.n_embd - 1)]
    loaded = model_on(backend, config, weights, dtype=dtype, threads=2, **options)
    draft = None
    if backend != "numpy":
        config = config_of(**shape, tie_word_embeddings=False, n_layer=1)
        kept = random_weights(config, seed=4)
        draft = model_on(backend, config, {key: weights[key] for key in kept}, threads=2)
    for each in (loaded, draft):
        if each is not None:
            each.tokenizer = Letters()  # type: ignore[assignment]
    return Loaded(loaded, draft, [*"abcdef", *"abc", ". ", "é", "\n", "cab", "fed"])


# ---- requests ----


@dataclass(frozen=True)
class Request:
    """A call to make, and when its caller abandons it.

    `hooks` maps "callback" and "logits_processor" to what the function does, and after how many
    tokens.
    """

    number: int
    kind: str  # a key of _PERFORM
    prompts: Any
    options: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, tuple[str, int]] = field(default_factory=dict)
    cut: int | None = None  # the pieces or results after which the caller abandons an iterator
    delay: float = 0.0  # seconds before the call begins

    @property
    def is_list(self) -> bool:
        """Whether there are several prompts."""
        if self.kind == "lazy":
            return True
        prompts = self.prompts
        is_text_or_empty = isinstance(prompts, str) or len(prompts) == 0
        return not is_text_or_empty and not isinstance(prompts[0], int | np.integer)

    @property
    def keeps_pages(self) -> bool:
        """Whether the call keeps pages of the KV cache that no other call can take from it.

        An iterator that is cut may keep them until the garbage collector finds it.
        """
        is_outside = self.kind in ("session", "score", "forward") or "num_beams" in self.options
        is_echo, is_cut = "echo" in self.options, self.cut is not None
        return is_outside or is_echo or is_cut or "logits_processor" in self.hooks

    @property
    def is_unseeded(self) -> bool:
        """Whether the call draws its own seeds, which its completions record."""
        return self.kind == "complete" and "seed" not in self.options


@dataclass
class Outcome:
    """What a request returned: comparable values, in order, and the error that ended it."""

    values: list[Any] = field(default_factory=list)
    error: str | None = None
    calls: Counter[Any] = field(default_factory=Counter)  # of the callback
    foreign: list[str] = field(default_factory=list)  # hooks that ran in another caller's thread
    seeds: list[int | None] = field(default_factory=list)


def make_requests(rng: random.Random, loaded: Loaded, n: int) -> list[Request]:
    """Return n random requests for a model; some of them share prefixes."""
    words = loaded.words
    prefixes = ["".join(rng.choices(words, k=rng.choice([4, 18, 30]))) for _ in range(3)]
    frequencies = {
        "complete": 34, "generate": 12, "lazy": 7, "stream": 26,
        "session": 7, "score": 6, "logits": 4, "forward": 4,
    }  # fmt: skip
    kinds = rng.choices([*frequencies], [*frequencies.values()], k=n)
    return [_RequestMaker(rng, loaded, prefixes).request(i, kind) for i, kind in enumerate(kinds)]


class _RequestMaker:
    """Makes one random request."""

    def __init__(self, rng: random.Random, loaded: Loaded, prefixes: list[str]) -> None:
        self.rng, self.loaded, self.prefixes = rng, loaded, prefixes
        self.vocab_size = loaded.model.config.vocab_size

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    def request(self, number: int, kind: str) -> Request:
        rng = self.rng
        delay = 0.0 if self.maybe(0.5) else rng.uniform(0, 0.003)
        if kind == "session":
            return Request(number, kind, self.ids(60), {"script": self.script()}, delay=delay)
        if kind in ("logits", "forward"):
            return Request(number, kind, self.ids(90), delay=delay)
        if kind == "score":
            return Request(number, kind, self.some(0.6), self.score_options(), delay=delay)
        prompts = self.prompt() if kind == "stream" else self.some(0.35)
        if kind == "lazy":
            prompts = [self.prompt() for _ in range(rng.randrange(1, 9))]
        uncut = Request(number, kind, prompts)
        options = self.options(kind, len(prompts) if uncut.is_list else 0)
        hooks = {} if "num_beams" in options else self.hooks()
        cut = rng.randrange(8) if kind in ("stream", "lazy") and self.maybe(0.25) else None
        return Request(number, kind, prompts, options, hooks, cut, delay)

    # -- prompts --

    def text(self) -> str:
        rng = self.rng
        begin = rng.choice(self.prefixes) if self.maybe(0.5) else ""
        length = rng.choices([0, 1, 4, 12, 40], [1, 5, 10, 10, 2])[0]
        return begin + "".join(rng.choices(self.loaded.words, k=rng.randint(0, length)))

    def ids(self, limit: int = N_POSITIONS + 4) -> list[int]:
        rng = self.rng
        n = rng.choice([1, 2, 5, 17, 40, limit]) if self.maybe(0.4) else rng.randint(1, 30)
        common = list(range(1, 30)) if self.maybe(0.4) else []
        ids = [*common, *(rng.randrange(0, 50) for _ in range(n))][-limit:]
        if self.maybe(0.04):
            ids[rng.randrange(len(ids))] = POISON
        return ids

    def prompt(self) -> Any:
        if self.maybe(0.6):
            return self.text()
        ids = self.ids()
        return np.array(ids) if self.maybe(0.2) else ids

    def some(self, share_of_lists: float) -> Any:
        """Return a prompt or a list of texts, or of ids."""
        if not self.maybe(share_of_lists):
            return self.prompt()
        make = self.text if self.maybe(0.5) else self.ids
        return [make() for _ in range(self.rng.choice([1, 2, 3, 8]))]

    # -- options --

    def options(self, kind: str, n_prompts: int) -> dict[str, Any]:
        rng = self.rng
        n_new = rng.choices([0, 1, 3, 8, 20, 45], [1, 2, 4, 8, 8, 3])[0]
        options: dict[str, Any] = {"max_new_tokens": n_new}
        is_search = kind != "stream" and self.maybe(0.12)
        if is_search:
            options |= self.beams()
        elif self.maybe(0.5):
            options |= self.sampling(kind, n_prompts)
        options |= self.penalties(n_new)
        options |= self.ends(is_search)
        options |= self.drafts()
        if kind in ("complete", "lazy") and self.maybe(0.45):
            options["logprobs"] = rng.choice([0, 1, 5])
            if self.maybe(0.4):
                options["echo"] = True
        if kind != "stream" and self.maybe(0.3):
            options["batch_size"] = rng.choice([1, 2, 5])
        return options

    def beams(self) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {"num_beams": rng.choice([2, 3, 4])}
        if self.maybe(0.3):
            options |= {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
        if self.maybe(0.3):
            options["num_return_sequences"] = 2
        if self.maybe(0.4):
            options["length_penalty"] = rng.choice([-1.0, 0.0, 2.0])
        if self.maybe(0.4):
            options["early_stopping"] = rng.choice([True, False, "never"])
        return options

    def sampling(self, kind: str, n_prompts: int) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {"temperature": rng.choice([0.3, 0.7, 1.0, 1.6])}
        filters: dict[str, Any] = {
            "top_k": 7, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.9, "top_n_sigma": 1.5,
            "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "mirostat_tau": 3.0,
        }  # fmt: skip
        options |= {name: value for name, value in filters.items() if self.maybe(0.12)}
        if self.maybe(0.1):
            options |= {"xtc_probability": 0.5, "xtc_threshold": 0.05}
        if self.maybe(0.1):
            options["sampler_order"] = rng.sample(gpt2c.SAMPLER_ORDER, len(gpt2c.SAMPLER_ORDER))
        if kind != "complete" or self.maybe(0.8):
            options["seed"] = rng.randrange(2**64)
            if n_prompts and kind != "stream" and self.maybe(0.5):
                options["seed"] = [rng.randrange(1000) for _ in range(n_prompts)]
        if kind != "stream" and self.maybe(0.2):
            options["num_return_sequences"] = rng.choice([1, 2, 4])
        return options

    def penalties(self, n_new: int) -> dict[str, Any]:
        rng = self.rng
        penalties: dict[str, Any] = {
            "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.5,
            "no_repeat_ngram_size": 3, "bad_words": [[5], [7, 8]],
            "logit_bias": {3: 4.0, 9: -3.0}, "suppress_tokens": [1, 2, EOS],
            "min_new_tokens": rng.randint(0, n_new),
        }  # fmt: skip
        options = {name: value for name, value in penalties.items() if self.maybe(0.1)}
        if self.maybe(0.1):
            options |= {"dry_multiplier": 0.8, "dry_sequence_breakers": ["a"]}
        if self.maybe(0.01):
            options["suppress_tokens"] = list(range(self.vocab_size))  # leaves no token
        return options

    def ends(self, is_search: bool) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {}
        if self.maybe(0.2):
            options["stop_strings"] = rng.choice(["e", ["ab", "dc"], ["é", " the"], "aa"])
        if self.maybe(0.15):
            options["stop_token_ids"] = rng.sample(range(50), 3)
        if self.maybe(0.15):
            options["truncate"] = "left"
        if not is_search and self.maybe(0.2):
            options["overflow"] = "slide"
        if self.maybe(0.02):
            options["max_time"] = rng.choice([0.0, 0.001, 0.01])
        return options

    def drafts(self) -> dict[str, Any]:
        drafts = ["auto", None]
        if self.loaded.model.backend != "numpy":
            drafts += ["lookup"]
            drafts += ["packing"] if self.loaded.model.dtype != "int4" else []
            drafts += ["model"] if self.loaded.draft is not None else []
        draft = self.rng.choice(drafts)
        options: dict[str, Any] = {"draft": draft}
        if draft is not None and self.maybe(0.3):
            options["num_assistant_tokens"] = self.rng.choice([1, 4, 9])
        return options

    def hooks(self) -> dict[str, tuple[str, int]]:
        rng = self.rng
        hooks = {}
        if self.maybe(0.2):
            hooks["callback"] = (rng.choice(["watch", "watch", "stop", "raise"]), rng.randint(1, 9))
        if self.maybe(0.12):
            what = rng.choice(["change", "change", "same", "raise", "wrong"])
            hooks["logits_processor"] = (what, rng.randint(1, 9))
        return hooks

    def script(self) -> list[tuple[str, int]]:
        rng = self.rng
        return [(rng.choice(["feed", "feed", "all", "rollback", "copy"]), rng.randint(1, 9))
                for _ in range(rng.randint(1, 8))]  # fmt: skip

    def score_options(self) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {"top_logprobs": rng.choice([0, 0, 3]), "bos": self.maybe(0.3)}
        if self.maybe(0.3):
            options["stride"] = rng.choice([1, 10, 96])
        if self.maybe(0.3):
            options["continuations"] = self.ids(12)
        if self.maybe(0.3):
            options |= {"second_moments": True, "renyi_orders": [0.5, 3], "id_sets": [range(9)]}
        options["measures_itself"] = self.maybe(0.2)
        return options


# ---- performing a request ----


def perform(loaded: Loaded, request: Request, seeds: Any = None) -> Outcome:
    """Make the call in this thread. If `seeds` is not None, it is the call's option seed."""
    outcome = Outcome()
    try:
        _PERFORM[request.kind](
            loaded, request, options_of(loaded, request, outcome, seeds), outcome
        )
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


async def perform_async(loaded: Loaded, request: Request) -> Outcome:
    """Make the call in this task: streams with stream_async, other calls in a thread.

    A stream that is cut is cancelled, or closed, after the request's number of pieces.
    """
    if request.kind != "stream":
        return await asyncio.to_thread(perform, loaded, request)
    outcome = Outcome()
    options = options_of(loaded, request, outcome, None, is_async=True)
    got_enough = asyncio.Event()

    async def read() -> None:
        async for piece in loaded.model.stream_async(request.prompts, **options):
            outcome.values += piece if isinstance(piece, str) else [piece]
            if request.cut is not None and len(outcome.values) > request.cut:
                if request.number % 2:
                    return
                got_enough.set()

    try:
        if request.cut is None or request.number % 2:
            await read()
            return outcome
        reading = asyncio.create_task(read())
        waiting = asyncio.create_task(got_enough.wait())
        await asyncio.wait([reading, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not reading.done():
            reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


def options_of(
    loaded: Loaded, request: Request, outcome: Outcome, seeds: Any, is_async: bool = False
) -> dict[str, Any]:
    """Return the call's options, with its draft model and its hooks.

    The hooks record their calls in the outcome.
    """
    options = dict(request.options)
    if options.get("draft") == "model":
        options["draft"] = loaded.draft
    if seeds is not None:
        options["seed"] = seeds
    caller = None if is_async else threading.get_ident()

    def check(hook: str) -> None:
        if caller is not None and threading.get_ident() != caller:
            outcome.foreign.append(f"{hook} in {threading.current_thread().name}")

    makers: dict[str, Callable[..., Any]] = {"callback": _callback, "logits_processor": _processor}
    for hook, (what, n) in request.hooks.items():
        options[hook] = makers[hook](what, n, partial(check, hook), outcome)
    return options


def _callback(what: str, n: int, check: Callable[[], None], outcome: Outcome) -> Any:
    def callback(index: int, ids: list[int]) -> bool:
        check()
        outcome.calls[index, tuple(ids)] += 1
        if what == "raise" and len(ids) >= n:
            raise OnPurposeError("a callback")
        return what == "stop" and len(ids) >= n

    return callback


def _processor(what: str, n: int, check: Callable[[], None], _: Outcome) -> Any:
    def process(ids: list[int], logits: Any) -> Any:
        check()
        if what == "raise" and len(ids) % 10 == n:
            raise OnPurposeError("a processor")
        if what == "wrong" and len(ids) % 10 == n:
            return logits[1:]
        if what == "change":
            logits[ids[-1]] -= 2.0
            logits[len(ids) % 40] += 1.0
        return logits

    return process


def plain(value: Any) -> Any:
    """Return a completion, a score or logits as values that == compares bit by bit."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    if isinstance(value, Score):
        fields = (
            "ids", "logprobs", "ranks", "entropies", "top_ids", "top_logprobs", "second_moments",
            "renyi_entropies", "set_logprobs", "cross_entropies", "other_logprobs",
            "end_cross_entropy",
        )  # fmt: skip
        return tuple(plain(getattr(value, name)) for name in fields)
    if isinstance(value, Completion):
        fields = ("text", "ids", "finish_reason", "end_id", "end_logprob", "seed", "sample",
                  "sequence_score", "logprobs", "top_logprobs", "prompt_logprobs",
                  "prompt_top_logprobs")  # fmt: skip
        return {name: repr(getattr(value, name)) for name in fields}
    return value


def _perform_complete(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    done = loaded.model.complete(r.prompts, **options)
    completions = done if r.is_list else [done]
    outcome.seeds = [(c[0] if isinstance(c, list) else c).seed for c in completions]
    outcome.values += plain(completions)


def _perform_generate(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    done = loaded.model.generate(r.prompts, **options)
    outcome.values += done if r.is_list else [done]


def _perform_lazy(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    caller = threading.get_ident()

    def prompts() -> Iterator[Any]:
        for prompt in r.prompts:
            if threading.get_ident() != caller:
                outcome.foreign.append("the iterator of prompts")
            yield prompt

    for done in loaded.model.complete(prompts(), **options):
        outcome.values.append(plain(done))
        if r.cut is not None and len(outcome.values) > r.cut:
            return


def _perform_stream(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    """Read a stream. One that is cut is closed, dropped, or left in a reference cycle."""
    stream = loaded.model.stream(r.prompts, **options)
    for piece in stream:
        outcome.values += piece if isinstance(piece, str) else [piece]
        if r.cut is not None and len(outcome.values) > r.cut:
            if r.number % 3 == 0:
                stream.close()  # type: ignore[attr-defined]
            elif r.number % 3 == 1:
                cycle: list[Any] = [stream]
                cycle.append(cycle)
            return


def _perform_session(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    session = loaded.model.session()
    for turn, (what, n) in enumerate(options["script"]):
        if what == "rollback":
            session.rollback(min(n, len(session)))
        elif what == "copy":
            session = session.copy()
        else:
            ids = (r.prompts * 2)[turn : turn + n]
            outcome.values.append(plain(session.feed(ids, all=what == "all")))
        outcome.values.append(session.ids)


def _perform_score(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    is_lazy = r.is_list and r.number % 2 and "continuations" not in options
    given = iter(r.prompts) if is_lazy else r.prompts
    other = loaded.model if options.pop("measures_itself") else None
    scores = loaded.model.score(given, other=other, **options)
    for score in scores if r.is_list else [scores]:
        outcome.values.append(plain(score))


def _perform_logits(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    outcome.values.append(plain(loaded.model.logits(r.prompts)))


def _perform_forward(loaded: Loaded, r: Request, options: Any, outcome: Outcome) -> None:
    found = loaded.model.forward(
        r.prompts, capture=["h.0.probs", "logits"], edit={"h.1.mlp_act": lambda x: 2 * x}
    )
    outcome.values += [plain(array) for array in found.values()]


_PERFORM: dict[str, Callable[[Loaded, Request, Any, Outcome], None]] = {
    "complete": _perform_complete,
    "generate": _perform_generate,
    "lazy": _perform_lazy,
    "stream": _perform_stream,
    "session": _perform_session,
    "score": _perform_score,
    "logits": _perform_logits,
    "forward": _perform_forward,
}
