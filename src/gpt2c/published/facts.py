"""Published results of models, read from TOML files: what `verify` compares a model with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.errors import ConfigError, OptionError
from gpt2c.published.entries import Entries, read_toml
from gpt2c.published.sizes import ARCHITECTURE, SIZES, has_shape_of

_FOLDER: Final = Path(__file__).parents[1] / "data" / "published"
_PACKAGED: Final = (_FOLDER / "gpt2.toml", _FOLDER / "tales.toml")

FactKind = Literal["greedy", "loss", "logit", "logprobs", "next", "perplexity"]


@dataclass(frozen=True)
class Fact:
    """A published result of a model.

    model, kind, source
        The model's name; the kind of result; where it was published.
    tolerance, why
        The largest difference that is allowed, and the reason for its size.
    prompt, prompt_ids
        The text before the new tokens, and its ids; at least one of the two. If both are given, the
        tokenizer must encode the text to these ids.
    new, new_ids, n_new
        The published continuation: its text with its number of tokens, or its ids.
    compares_words
        Compare only the words of the new text, because the source changed its white space.
    total, total_from
        The log-probability of the new tokens from the index total_from on, or None.
    text, rows, bos
        What the mean loss was published of: a text, or lists of ids; whether the BOS token comes
        before each.
    id, words
        The id whose logit was published; the most likely next words.
    expected
        The published numbers.
    n_tokens
        How many tokens the text of a perplexity has.
    """

    model: str
    kind: FactKind
    source: str
    tolerance: float
    why: str
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    new: str | None = None
    new_ids: tuple[int, ...] = ()
    n_new: int = 0
    compares_words: bool = False
    total: float | None = None
    total_from: int = 0
    text: str | None = None
    rows: tuple[tuple[int, ...], ...] = ()
    bos: bool = False
    id: int = -1
    words: tuple[str, ...] = ()
    expected: tuple[float, ...] = ()
    n_tokens: int = 0


@dataclass(frozen=True)
class Facts:
    """The models that a file has facts about, by name, and the facts."""

    models: dict[str, GPT2Config]
    facts: list[Fact] = field(default_factory=list)

    def model_like(self, config: GPT2Config) -> str | None:
        """Return the name of the first model whose tensors have these shapes, or None."""
        found = (name for name, other in self.models.items() if has_shape_of(config, other))
        return next(found, None)


def packaged_facts() -> Facts:
    """Return the packaged facts about OpenAI's four sizes and the embedded model."""
    parts = [read_facts(path) for path in _PACKAGED]
    models = {name: config for part in parts for name, config in part.models.items()}
    return Facts(models, [fact for part in parts for fact in part.facts])


def read_facts(path: Path) -> Facts:
    """Read a file of facts; OpenAI's four sizes are known, and the file may describe others.

    Raises OptionError naming the file and the entry that is wrong; CheckpointNotFoundError if there
    is no such file; and OptionTypeError.
    """
    read = read_toml(path)
    read.check_names({"models", "check"})
    models = {size.name: size.config for size in SIZES}
    own = read.table("models")
    models.update({name: _config(own.table(name)) for name, _ in own.items()})
    facts = [_fact(check) for check in read.tables("check")]
    for fact in facts:
        if fact.model not in models:
            raise OptionError(
                f"{path}: found a check of the model {show(fact.model)}; expected one of "
                f"{', '.join(models)}, or a table [models.{fact.model}]"
            )
    return Facts(models, facts)


def _config(read: Entries) -> GPT2Config:
    read.check_names(ARCHITECTURE)
    try:
        return GPT2Config(**dict(read.items()))
    except ConfigError as reason:
        raise OptionError(f"{read.where}: {reason}") from None


def _fact(read: Entries) -> Fact:
    kind: FactKind = read.one_of("kind", get_args(FactKind))
    common = {
        "model": read.text("model"),
        "kind": kind,
        "source": read.text("source"),
        "tolerance": read.number("tolerance"),
        "why": read.text("why"),
    }
    names = {*common, "prompt", "prompt_ids"}
    own: dict[str, object] = {}
    if kind == "greedy":
        own["compares_words"] = read.one_of("compare", ("text", "words"), "text") == "words"
        if "new_ids" in read:
            own["new_ids"] = tuple(read.ids("new_ids"))
            own["n_new"] = len(read.ids("new_ids"))
        else:
            own["new"], own["n_new"] = read.text("new"), read.integer("n_new", 1)
        if "total" in read:
            own["total"] = read.number("total")
            own["total_from"] = read.integer("total_from", 0, 0)
        names |= {"compare", "new_ids", "new", "n_new", "total", "total_from"}
    elif kind == "loss":
        if "rows" in read:
            own["rows"] = tuple(map(tuple, read.rows("rows")))
        else:
            own["text"] = read.text("text")
        own["bos"], own["expected"] = read.flag("bos", False), (read.number("expected"),)
        names |= {"rows", "text", "bos", "expected"}
    elif kind == "logit":
        own["id"], own["expected"] = read.integer("id", 0), (read.number("expected"),)
        names |= {"id", "expected"}
    elif kind == "logprobs":
        own["new_ids"] = tuple(read.ids("new_ids"))
        own["expected"] = tuple(read.numbers("expected"))
        names |= {"new_ids", "expected"}
    elif kind == "next":
        own["words"], own["expected"] = tuple(read.texts("words")), tuple(read.numbers("expected"))
        names |= {"words", "expected"}
    else:
        own["n_tokens"], own["expected"] = read.integer("n_tokens", 2), (read.number("expected"),)
        names |= {"n_tokens", "expected"}
    read.check_names(names)
    if kind in ("greedy", "logit", "logprobs", "next"):
        own.update(_prompt(read))
    return Fact(**common, **own)  # type: ignore[arg-type]  # checked above, entry by entry


def _prompt(read: Entries) -> dict[str, object]:
    if "prompt" not in read and "prompt_ids" not in read:
        raise OptionError(f"{read.where}: prompt is missing; it must be a text, or prompt_ids ids")
    return {
        "prompt": read.text("prompt") if "prompt" in read else None,
        "prompt_ids": tuple(read.ids("prompt_ids")) if "prompt_ids" in read else None,
    }
