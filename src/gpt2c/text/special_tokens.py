"""Reads which special tokens a tokenizer's files name, and which tokens they put around texts.

The rules are those of GPT2Tokenizer in transformers 5.24.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import parse_json_leniently, read_json_object, read_whole
from gpt2c.errors import CheckpointNotFoundError, TokenizerError

_log = logging.getLogger(__name__)

END_OF_TEXT: Final = "<|endoftext|>"

MAX_FILE_BYTES: Final = 1 << 26  # bytes of a tokenizer's file; GPT-2's vocab.json has 1 MB
_TOKEN_LIST_KEYS: Final = ("additional_special_tokens", "extra_special_tokens")
_ID_LIST_SUFFIXES: Final = ("_token_ids", "_tokens", "_words_ids")  # of keys
_MAX_TEMPLATE: Final = 64  # tokens before or after a text; real templates have one

# The tokens put before and after a text, each given by its id or its string.
Template = tuple[tuple["int | str", ...], tuple["int | str", ...]]


@dataclass(frozen=True)
class NamedTokens:
    """The special tokens that a tokenizer's files name.

    bos
        None if the files have null; ``<|endoftext|>`` if they do not name a BOS token.
    eos
        None if the files have null or do not name an EOS token.
    special
        All special tokens, including the BOS and EOS tokens.
    """

    bos: str | None
    eos: str | None
    special: frozenset[str]


def named_tokens(folder: Path, values: Mapping[str, Any]) -> NamedTokens:
    """Return the special tokens of a folder whose ``tokenizer_config.json`` holds `values`.

    ``special_tokens_map.json`` overrides ``tokenizer_config.json``, but only if
    ``tokenizer_config.json`` has no added_tokens_decoder.
    """
    if "added_tokens_decoder" not in values:
        values = {**values, **_special_tokens_map(folder)}
    special = {END_OF_TEXT}
    for key, value in values.items():
        if key in _TOKEN_LIST_KEYS and isinstance(value, list | dict):
            listed = value.values() if isinstance(value, dict) else value
            special |= {token for item in listed if (token := _token_string(item))}
        elif key.endswith("_token") and (token := _token_string(value)):
            special.add(token)
    bos = _token_string(values["bos_token"]) if "bos_token" in values else END_OF_TEXT
    return NamedTokens(bos, _token_string(values.get("eos_token")), frozenset(special))


def folder_template(folder: Path, values: Mapping[str, Any], named: NamedTokens) -> Template:
    """Return the template for texts that a folder's ``vocab.json`` encodes.

    `values` is the content of ``tokenizer_config.json``. The template comes from ``tokenizer.json``
    if there is one, else from add_bos_token and add_eos_token in ``tokenizer_config.json``.
    """
    try:
        raw = read_whole(folder / "tokenizer.json", limit=MAX_FILE_BYTES, error=TokenizerError)
    except (CheckpointNotFoundError, TokenizerError):
        pass
    else:
        # Parsing a vocabulary is slow, and most files have no template.
        return read_template(_post_processor(raw)) if b"Processing" in raw else ((), ())
    eos = named.eos if "eos_token" in values or named.eos else END_OF_TEXT
    before = (named.bos,) if named.bos and _is_true(values.get("add_bos_token")) else ()
    after = (eos,) if eos and _is_true(values.get("add_eos_token")) else ()
    return before, after


def read_template(processor: object) -> Template:
    """Return the template in the post_processor of a ``tokenizer.json``, given as parsed JSON.

    Anything that is malformed counts as missing.
    """
    if not isinstance(processor, Mapping):
        return (), ()
    before: list[int | str] = []
    after: list[int | str] = []
    kind = processor.get("type")
    if kind == "Sequence":
        for part in _as_list(processor.get("processors")):
            outer_before, outer_after = read_template(part)  # later parts put tokens outside
            before, after = [*outer_before, *before], [*after, *outer_after]
    elif kind in ("BertProcessing", "RobertaProcessing"):
        before, after = _id_of_pair(processor.get("cls")), _id_of_pair(processor.get("sep"))
    elif kind == "TemplateProcessing":
        side = before  # until the text itself, then `after`
        for piece in _as_list(processor.get("single")):
            if isinstance(piece, Mapping) and "SpecialToken" in piece:
                side += _template_ids(processor, piece["SpecialToken"])
            else:
                side = after
    return tuple(before[:_MAX_TEMPLATE]), tuple(after[:_MAX_TEMPLATE])


def known_ids(
    tokens: Iterable[int | str], id_of: Callable[[str], int | None], n_vocab: int
) -> tuple[int, ...]:
    """Return the ids of tokens given as ids or strings; drop tokens that the vocabulary lacks."""
    ids = [id_of(token) if isinstance(token, str) else token for token in tokens]
    return tuple(id for id in ids if id is not None and 0 <= id < n_vocab)


def read_optional(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if there is no such file.

    Raises TokenizerError, naming the file, if the file is invalid.
    """
    try:
        return read_json_object(path, limit=MAX_FILE_BYTES, error=TokenizerError, strict=strict)
    except CheckpointNotFoundError:
        return {}


def ids_in(values: Mapping[str, Any]) -> frozenset[int]:
    """Return all token ids under a configuration's keys, such as eos_token_id or bad_words_ids."""
    found: set[int] = set()
    for key, value in values.items():
        if key.endswith("_token_id") or (
            isinstance(value, list) and key.endswith(_ID_LIST_SUFFIXES)
        ):
            _add_integers(value, found)
    return frozenset(found)


def _add_integers(value: object, found: set[int]) -> None:
    if type(value) is int:
        found.add(value)
    elif isinstance(value, list):
        for item in value:
            _add_integers(item, found)


def _special_tokens_map(folder: Path) -> dict[str, Any]:
    try:
        return read_optional(folder / "special_tokens_map.json")
    except TokenizerError as reason:
        _log.warning("%s; the file is ignored", reason)
        return {}


def _token_string(value: object) -> str | None:
    """Return a token given as a JSON string or as an object with "content"; None if neither."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _is_true(value: object) -> bool:
    return value is True or value == 1


def _post_processor(raw: bytes) -> object:
    try:
        values = parse_json_leniently(raw)
    except ValueError:  # code that reads the file's vocabulary reports the error
        return None
    return values.get("post_processor") if isinstance(values, dict) else None


def _template_ids(processor: Mapping[str, Any], special: object) -> list[int | str]:
    """Return the ids of a SpecialToken in a TemplateProcessing."""
    name = special.get("id") if isinstance(special, Mapping) else None
    tokens = processor.get("special_tokens")
    known = tokens.get(name) if isinstance(tokens, Mapping) else None
    ids = known.get("ids") if isinstance(known, Mapping) else None
    return _integers(_as_list(ids)[:_MAX_TEMPLATE])


def _id_of_pair(pair: object) -> list[int | str]:
    """Return a list of the id in a pair [token, id]; an empty list if the pair is malformed."""
    return _integers(_as_list(pair)[1:2])


def _integers(values: Iterable[object]) -> list[int | str]:
    return [value for value in values if type(value) is int]


def _as_list(value: object) -> list[Any]:
    """Return a list as it is, and an empty list for any other value."""
    return value if isinstance(value, list) else []
