"""`gpt2c.surprisal`: the surprisal of each word of texts."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from gpt2c._version import ARITHMETIC, __version__
from gpt2c.checks.options import choice, flag, integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.protocol import MAX_LOGPROBS
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.measure.corrections import CORRECTIONS, Correction, make_id_sets
from gpt2c.measure.passages import as_list, pattern_of, stimuli_of
from gpt2c.measure.surprisal import (
    UNITS,
    IdArrays,
    PassageScores,
    SurprisalMeter,
    SurprisalOptions,
    Unit,
)
from gpt2c.measure.windows import default_stride
from gpt2c.measure.word_table import Surprisals
from gpt2c.measure.words import Aligner
from gpt2c.progress import with_bar

if TYPE_CHECKING:
    from gpt2c.measure.scores import Score
    from gpt2c.model import GPT2

Span: TypeAlias = Sequence[int]  # the first character of a region, and the one after its last


def surprisal(
    model: GPT2,
    texts: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    by: Sequence[Hashable] | None = None,
    context: str | Sequence[str] | None = None,
    spans: Sequence[Span] | Sequence[Sequence[Span]] | None = None,
    sep: str = " ",
    apart: str | re.Pattern[str] | None = None,
    ignore: str | re.Pattern[str] | None = None,
    correction: Correction = "none",
    bos: bool = True,
    unit: Unit = "bits",
    entropy_reduction: bool = False,
    renyi_orders: Sequence[float] = (),
    next_tokens: int = 0,
    stride: int | None = None,
    special_tokens: bool = False,
    text_ids: Sequence[Hashable] | None = None,
    progress: bool = False,
) -> Surprisals:
    """Return the surprisal of each word: minus the log of its probability given what precedes it.

    >>> found = gpt2c.surprisal(model, ["The cat sat.", "The dog  sat."], correction="pimentel")
    >>> found.to_pandas()

    docs/surprisal.md defines each number exactly, and compares it with those of other tools.

    What is read:

    texts
        A text; a list of texts, whose words are separated by Unicode white space; or a list of
        lists of words. Columns of pandas, polars and NumPy are lists too. Each text is encoded as a
        whole, and its tokens are assigned to words by their characters. If a token would hold
        characters of two words, the text is encoded in two parts, cut between the words (`is_cut`).
    by
        Groups. `texts` is then a column of words, and the words of a group, in their order, are a
        text. Words of different groups may alternate. The result has a row for each word, in the
        column's order.
    context
        A text to read before each text and not to score, such as a preceding sentence or the prefix
        of a stimulus: one for all, or a list with one for each text (with `by`, for each word).
    spans
        For each text, a list of pairs (start, end) of characters: measure these regions instead of
        words. The rest of the text is read and not reported.
    sep
        What to put between given words, and between the context and a text, unless there is white
        space already. Use "" for languages without spaces between words.
    apart
        A regular expression that is searched in each word. A match becomes a word of its own:
        r"^\\W+|\\W+$" sets punctuation at the ends of words apart.
    ignore
        A regular expression. A token that it matches whole, without the white space before the
        token, does not count in its word's sum: r"\\W+" ignores tokens of punctuation.
    special_tokens
        Whether "<|endoftext|>" in a text is that token, or plain characters (the default).

    What is measured:

    correction
        "none", "pimentel" (Pimentel and Meister 2024) or "oh_schuler" (Oh and Schuler 2024):
        whether to also return surprisals corrected for the space that a token has before a word.
    bos
        Whether to read the BOS token before each text. Without it, the first word of a text without
        a context has no surprisal (NaN).
    unit
        "bits" or "nats", of surprisals and entropies.
    entropy_reduction
        Return how much each word reduces the entropy too: the entropy of the next token before the
        word, minus that after it.
    renyi_orders
        Return the Renyi entropies of these orders too, before each word.
    next_tokens
        Return the n most likely tokens before each word and after the text too, at most 128
        (`Surprisals.next_tokens`).
    stride
        How texts longer than the context are read: see GPT2.score.

    Besides:

    text_ids
        The texts' ids in the table (default: 1, 2, ...; with `by`, the groups).
    progress
        Show a bar of finished texts (needs the package tqdm).

    Raises OptionError or OptionTypeError; TokenizerError if the tokens of a text cannot be aligned
    with its words, or for a correction that the vocabulary does not allow; NumericalError,
    CacheMemoryError and ClosedError as GPT2.score does.
    """
    stimuli = stimuli_of(
        texts, by=by, context=context, spans=spans, separator=sep,
        apart=pattern_of("apart", apart), text_ids=text_ids,
    )  # fmt: skip
    orders = as_list("renyi_orders", renyi_orders)
    options = SurprisalOptions(
        choice("correction", correction, CORRECTIONS),  # type: ignore[arg-type]
        choice("unit", unit, UNITS),  # type: ignore[arg-type]
        flag("entropy_reduction", entropy_reduction),
        pattern_of("ignore", ignore),
        tuple(orders),  # model.score checks them
        integer("next_tokens", next_tokens, 0, MAX_LOGPROBS),
    )
    if options.ignore is not None and options.correction != "none":
        raise OptionError(
            f"ignore is given with correction={correction!r}; a corrected probability is that of a "
            "whole word, so set punctuation apart instead, with apart="
        )
    _check_model(model)
    n_positions = model.config.n_positions
    stride = integer(
        "stride", default_stride(n_positions) if stride is None else stride, 1, n_positions
    )
    meter = _meter(model, options, flag("bos", bos), flag("special_tokens", special_tokens), stride)
    found: Iterator[PassageScores] = meter.measure(stimuli.passages, stimuli.names)
    if flag("progress", progress):
        found = with_bar(found, len(stimuli.passages))
    settings = {
        "correction": options.correction,
        "bos": str(bos).lower(),
        "unit": options.unit,
        "stride": str(stride),
        **({"sep": sep} if sep != " " else {}),
        **({} if apart is None else {"apart": _source(apart)}),
        **({} if ignore is None else {"ignore": _source(ignore)}),
    }
    return Surprisals(
        stimuli, list(found), options, model.tokenizer.decode, partial(_metadata, model, settings)
    )


def _metadata(model: GPT2, settings: dict[str, str]) -> dict[str, str]:
    """Return what made the numbers, for the metadata of tables."""
    return {
        "gpt2c": __version__,
        "arithmetic": str(ARITHMETIC),
        "model_sha256": model.fingerprint,
        "dtype": model.dtype,
        "backend": model.backend,
        **settings,
    }


def _source(pattern: str | re.Pattern[str]) -> str:
    return pattern if isinstance(pattern, str) else pattern.pattern


def _check_model(model: object) -> None:
    if not all(hasattr(model, name) for name in ("score", "tokenizer", "config")):
        raise OptionTypeError(f"model is {show(model)}; it must be a GPT2 model")


def _meter(
    model: GPT2,
    options: SurprisalOptions,
    bos: bool,
    special_tokens: bool,
    stride: int,
) -> SurprisalMeter:
    tokenizer, config = model.tokenizer, model.config
    eos_ids = frozenset(id for id in config.eos_token_ids if id < config.vocab_size)
    if not eos_ids and tokenizer.eot_id is not None and tokenizer.eot_id < config.vocab_size:
        eos_ids = frozenset([tokenizer.eot_id])
    id_sets = make_id_sets(options.correction, tokenizer, config.vocab_size, eos_ids)

    def score(contexts: IdArrays, continuations: IdArrays) -> list[Score]:
        return model.score(
            contexts, continuations, stride=stride, top_logprobs=options.n_next_tokens,
            renyi_orders=options.renyi_orders,
            id_sets=[] if id_sets is None else [id_sets.at_border],
        )  # fmt: skip

    start = [model._encoder.start_id("bos=True")] if bos else []
    log_p_start = math.nan
    if start and id_sets is not None and id_sets.at_start is not None:
        # The same for every text, so it is not a measure of all positions.
        after_bos = model.score(start, [0], id_sets=[id_sets.at_start])
        log_p_start = float(after_bos.set_logprobs[0, 0])
    return SurprisalMeter(
        Aligner(tokenizer, special_tokens), score, tokenizer.token_bytes, options, id_sets, start,
        log_p_start,
    )  # fmt: skip
