"""Checks that need no published result: they hold for every model that is loaded correctly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.config import GPT2Config, tensor_shapes
from gpt2c.errors import NumericalError, TokenizerError
from gpt2c.model import GPT2
from gpt2c.oracle.reference import gpt2
from gpt2c.published.report import Check, checked, skipped
from gpt2c.published.sizes import ARCHITECTURE
from gpt2c.text.tokenizer import MissingTokenizer

# The largest difference from the float64 oracle, as a share of the largest logit. llm.c allows 0.01
# for its float32 logits of GPT-2 124M on a CPU, which are about 100.
ORACLE_BOUND: Final = 1e-4
_N_IDS: Final = 24  # of each text of random ids
_N_TEXTS: Final = 5
_N_NEW: Final = 8
_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces,\ta tab, a line end\r\nand  another \n",
    "naïve café, Straße, Ελλάδα, Москва, עברית, العربية, हिन्दी, 日本語, 한국어",
    "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} e\N{COMBINING ACUTE ACCENT}\u200d",
    "don't 3.14159 1,000 x=y+2; </s> \x00\x7f",
)


def general_checks(model: GPT2, like: tuple[str, GPT2Config] | None) -> Iterator[Check]:
    """Yield the results; `like` is the name and the configuration of a known model."""
    yield _architecture(model.config, like)
    yield _weights_are_finite(model)
    try:
        yield _logits_equal_oracle(model)
        yield _alone_equals_batch(model)
        yield _generated_is_most_likely(model)
    except NumericalError as error:
        yield checked(False, "finite logits", str(error), "no NaN")
    yield _tokenizer(model)


def _architecture(config: GPT2Config, like: tuple[str, GPT2Config] | None) -> Check:
    found = {name: getattr(config, name) for name in ARCHITECTURE}
    if like is None:
        shown = ", ".join(f"{name} {found[name]}" for name in ARCHITECTURE[:5])
        return checked(True, "architecture", shown, "any that gpt2c loads")
    name, other = like
    wrong = [key for key in ARCHITECTURE if found[key] != getattr(other, key)]
    return checked(
        not wrong,
        f"architecture of {name}",
        ", ".join(f"{key} {found[key]}" for key in wrong) or "the same",
        ", ".join(f"{key} {getattr(other, key)}" for key in wrong) or "the same",
    )


def _weights_are_finite(model: GPT2) -> Check:
    names = list(tensor_shapes(model.config))
    wrong = [name for name in names if not np.isfinite(model.weight(name)).all()]
    found = ", ".join(wrong[:4]) + (" ..." if len(wrong) > 4 else "")
    return checked(
        not wrong, "finite weights", (found and f"NaN or infinity in {found}") or "all finite",
        f"{len(names)} tensors without NaN and infinity",
    )  # fmt: skip


class _Float64Weights(Mapping[str, NDArray[np.float64]]):
    """A model's weights in float64, each made when it is read, so that few are in memory."""

    def __init__(self, model: GPT2) -> None:
        self._model, self._names = model, tensor_shapes(model.config)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._names:
            raise KeyError(name)
        return self._model.weight(name).astype(np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _random_ids(config: GPT2Config) -> list[list[int]]:
    """Return texts of random ids, of different lengths; the first is the longest."""
    random = np.random.default_rng(0)
    longest = min(_N_IDS, config.n_positions)
    lengths = [max(longest - 5 * k, 1) for k in range(_N_TEXTS)]
    return [random.integers(0, config.vocab_size, n).tolist() for n in lengths]


def _logits_equal_oracle(model: GPT2) -> Check:
    name = f"logits on {model.backend} equal the float64 oracle's"
    if model.dtype not in ("float32", "float64"):
        return skipped(name, f"{model.dtype} also rounds activations (docs/quantization.md)")
    ids = _random_ids(model.config)[0]
    found = model.logits(ids).astype(np.float64)
    exact = gpt2(np.array(ids), _Float64Weights(model), model.config)  # [n, n_vocab]
    if not np.isfinite(exact).all():
        return checked(False, name, "the oracle's logits are not finite", "finite logits")
    largest = float(np.abs(exact).max())
    difference = float(np.abs(found - exact).max())
    return checked(
        difference <= ORACLE_BOUND * largest, name,
        f"difference {difference:.2g} of logits up to {largest:.3g}",
        f"at most {ORACLE_BOUND * largest:.2g}",
        f"{ORACLE_BOUND:g} of the largest logit",
    )  # fmt: skip


def _alone_equals_batch(model: GPT2) -> Check:
    texts = _random_ids(model.config)
    together = [score.logprobs for score in model.score(texts)]
    alone = [model.score(ids).logprobs for ids in texts]
    pairs = list(zip(together, alone, strict=True))
    if model.backend == "numpy":  # its products depend on shapes
        largest = max(float(np.nanmax(np.abs(a - b), initial=0)) for a, b in pairs)
        return checked(
            largest <= ORACLE_BOUND, "scores alone and in a batch", f"difference {largest:.2g}",
            f"at most {ORACLE_BOUND:g}", "NumPy's products depend on their shapes",
        )  # fmt: skip
    same = sum(a.tobytes() == b.tobytes() for a, b in pairs)
    return checked(
        same == len(pairs), "scores alone and in a batch have the same bits",
        f"{same} of {len(pairs)} texts", f"{len(pairs)} of {len(pairs)} texts",
    )  # fmt: skip


def _generated_is_most_likely(model: GPT2) -> Check:
    """Generate greedily with the KV cache, token by token, and score the result in one pass."""
    prompt = _random_ids(model.config)[0][: max(model.config.n_positions // 2, 1)]
    new: list[int] = []
    session = model.session()
    logits = session.feed(prompt)
    for _ in range(min(_N_NEW, model.config.n_positions - len(prompt))):
        new.append(int(logits.argmax()))
        logits = session.feed(new[-1:])
    name = "tokens that are generated one by one are the most likely"
    if not new:
        return skipped(name, "the context has a single position")
    score = model.score(prompt, new, top_logprobs=1)
    gaps = score.top_logprobs[-len(new) :, 0] - score.logprobs[-len(new) :]  # [n_new]
    right = int((gaps <= (ORACLE_BOUND if model.backend == "numpy" else 0)).sum())
    return checked(right == len(new), name, f"{right} of {len(new)}", f"{len(new)} of {len(new)}")


def _tokenizer(model: GPT2) -> Check:
    name, tokenizer = "the tokenizer gives texts back", model.tokenizer
    if isinstance(tokenizer, MissingTokenizer):
        return skipped(name, "the model has no tokenizer")
    right, tried = 0, 0
    for text in _TEXTS:
        try:
            ids: Any = tokenizer.encode(text, special=False, add_special_tokens=False)
        except TokenizerError:  # a character that the vocabulary lacks
            continue
        tried += 1
        right += tokenizer.decode(ids) == text and max(ids) < model.config.vocab_size
    if not tried:
        return skipped(name, "its vocabulary has none of the texts that are tried")
    return checked(right == tried, name, f"{right} of {tried} texts", f"{tried} of {tried} texts")
