"""Which tokens a tokenizer's files name as special, and which they put around every text.

"transformers" here means its GPT2Tokenizer in version 5.24.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gpt2c.checks.untrusted import open_regular, parse_json_leniently, read_json_object
from gpt2c.errors import CheckpointNotFoundError, TokenizerError

if TYPE_CHECKING:
    from gpt2c.config import GPT2Config
    from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

END_OF_TEXT: Final = "<|endoftext|>"

_MAX_BYTES: Final = 1 << 26
_MAP_FILE: Final = "special_tokens_map.json"
_CONFIG_FILE: Final = "config.json"
_LISTS_IDS: Final = ("_token_ids", "_tokens", "_words_ids")
_JSON_FILE: Final = "tokenizer.json"
_LISTS: Final = ("additional_special_tokens", "extra_special_tokens")
_MOST_AROUND: Final = 64  # tokens before or after a text; real templates have one

# The tokens put before and after a text: ids, or tokens of the vocabulary.
Around = tuple[tuple["int | str", ...], tuple["int | str", ...]]


@dataclass(frozen=True)
class NamedTokens:
    """The special tokens that the files name.

    bos
        None if the files say null; ``<|endoftext|>`` if they say nothing.
    eos
        None if the files say null or nothing.
    special
        All of them.
    """

    bos: str | None
    eos: str | None
    special: frozenset[str]


def named_tokens(folder: Path, values: Mapping[str, Any]) -> NamedTokens:
    """The special tokens of a folder; values are those of its ``tokenizer_config.json``.

    As in transformers, ``special_tokens_map.json`` overrides ``tokenizer_config.json``, but only if
    the latter has no added_tokens_decoder.
    """
    if "added_tokens_decoder" not in values:
        values = {**values, **_special_tokens_map(folder)}
    special = {END_OF_TEXT}
    for key, value in values.items():
        if key in _LISTS and isinstance(value, list | dict):
            listed = value.values() if isinstance(value, dict) else value
            special |= {text for item in listed if (text := _content(item))}
        elif key.endswith("_token") and (text := _content(value)):
            special.add(text)
    bos = _content(values["bos_token"]) if "bos_token" in values else END_OF_TEXT
    return NamedTokens(bos, _content(values.get("eos_token")), frozenset(special))


def tokens_around(folder: Path, values: Mapping[str, Any], named: NamedTokens) -> Around:
    """The tokens that transformers puts around every text.

    values are those of ``tokenizer_config.json``. The template in ``tokenizer.json`` decides;
    without that file, add_bos_token and add_eos_token in ``tokenizer_config.json`` do.
    """
    raw = _tokenizer_json(folder)
    if raw is not None:
        # Parsing a vocabulary is slow, and most files have no template.
        return template(_post_processor(raw)) if b"Processing" in raw else ((), ())
    eos = named.eos if "eos_token" in values or named.eos else END_OF_TEXT
    before = (named.bos,) if named.bos and _is_true(values.get("add_bos_token")) else ()
    after = (eos,) if eos and _is_true(values.get("add_eos_token")) else ()
    return before, after


def template(processor: object) -> Around:
    """The tokens that the post_processor of a ``tokenizer.json`` puts around a single text."""
    if not isinstance(processor, Mapping):
        return (), ()
    before: list[int | str] = []
    after: list[int | str] = []
    kind = processor.get("type")
    if kind == "Sequence":
        for part in _list(processor.get("processors")):
            outer_before, outer_after = template(part)
            before, after = [*outer_before, *before], [*after, *outer_after]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        before, after = _pair_id(processor.get("cls")), _pair_id(processor.get("sep"))
    elif kind == "TemplateProcessing":
        found = before
        for piece in _list(processor.get("single")):
            if isinstance(piece, Mapping) and "SpecialToken" in piece:
                found += _template_ids(processor, piece["SpecialToken"])
            else:
                found = after
    return tuple(before[:_MOST_AROUND]), tuple(after[:_MOST_AROUND])


def known_ids(
    tokens: Iterable[int | str], id_of: Callable[[str], int | None], n_vocab: int
) -> tuple[int, ...]:
    """The ids of tokens given as ids or strings; tokens that the vocabulary lacks are dropped."""
    ids = [id_of(token) if isinstance(token, str) else token for token in tokens]
    return tuple(id for id in ids if id is not None and 0 <= id < n_vocab)


def encode_part(tokenizer: Tokenizer | MissingTokenizer, text: str) -> list[int]:
    """The ids of a part of a text, without the tokens put around a whole text."""
    if getattr(tokenizer, "prefix_ids", ()) or getattr(tokenizer, "suffix_ids", ()):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def with_named_tokens(
    config: GPT2Config, folder: Path | None, tokenizer: Tokenizer | MissingTokenizer | None
) -> tuple[GPT2Config, Mapping[str, Any]]:
    """The configuration with the BOS and EOS tokens that its files name, and its raw values.

    Ids in ``config.json`` win if they are in the vocabulary, and so does a null eos_token_id.
    Missing keys come from the tokenizer. folder is None for a checkpoint without such files.
    """
    said = {} if folder is None else read_lenient(folder / _CONFIG_FILE)
    if tokenizer is None:
        return config, said
    bos, eos = ([id for id in ids if id is not None and id < config.vocab_size] for ids in (
        (tokenizer.bos_id, tokenizer.eot_id), (tokenizer.eot_id,)
    ))  # fmt: skip
    says_bos = config.bos_token_id is not None and (folder is None or "bos_token_id" in said)
    if bos and not says_bos:
        config = replace(config, bos_token_id=bos[0])
    says_eos = "eos_token_id" in said or (folder is None and config.eos_token_id is not None)
    if eos and not says_eos:
        config = replace(config, eos_token_id=eos[0])
    return config, said


def read_lenient(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or is not an object."""
    try:
        return read_json_object(path, limit=_MAX_BYTES, error=TokenizerError)
    except (CheckpointNotFoundError, TokenizerError):
        return {}


def ids_in(values: Mapping[str, Any]) -> frozenset[int]:
    """The token ids that a configuration names in any role: eos_token_id, bad_words_ids."""
    found: set[int] = set()
    for key, value in values.items():
        if key.endswith("_token_id") or (isinstance(value, list) and key.endswith(_LISTS_IDS)):
            _add_integers(value, found)
    return frozenset(found)


def _add_integers(value: object, found: set[int]) -> None:
    if type(value) is int:
        found.add(value)
    elif isinstance(value, list):
        for item in value:
            _add_integers(item, found)


def _special_tokens_map(folder: Path) -> dict[str, Any]:
    path = folder / _MAP_FILE
    try:
        return read_json_object(path, limit=_MAX_BYTES, error=TokenizerError)
    except CheckpointNotFoundError:
        return {}
    except TokenizerError as reason:
        _log.warning("%s; the file is ignored", reason)
        return {}


def _content(value: object) -> str | None:
    """The string of a token, which is given as a string or as an object with it."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _is_true(value: object) -> bool:
    return value is True or value == 1


def _tokenizer_json(folder: Path) -> bytes | None:
    """The bytes of ``tokenizer.json``; None if it is missing or unreadable."""
    try:
        with open_regular(folder / _JSON_FILE, TokenizerError) as file:
            raw = file.read(_MAX_BYTES + 1) or b""
    except (CheckpointNotFoundError, TokenizerError, OSError):
        return None
    return None if len(raw) > _MAX_BYTES else raw


def _post_processor(raw: bytes) -> object:
    try:
        values = parse_json_leniently(raw)
    except ValueError:  # reported when the vocabulary is read
        return None
    return values.get("post_processor") if isinstance(values, dict) else None


def _template_ids(processor: Mapping[str, Any], special: object) -> list[int | str]:
    name = special.get("id") if isinstance(special, Mapping) else None
    tokens = processor.get("special_tokens")
    known = tokens.get(name) if isinstance(tokens, Mapping) else None
    ids = known.get("ids") if isinstance(known, Mapping) else None
    return _integers(_list(ids)[:_MOST_AROUND])


def _pair_id(pair: object) -> list[int | str]:
    """The id in a pair of a token and its id, as a list of at most one."""
    return _integers(_list(pair)[1:2])


def _integers(values: Iterable[object]) -> list[int | str]:
    return [value for value in values if type(value) is int]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
