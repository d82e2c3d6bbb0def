"""Reads and writes vocabularies of single characters.

nanoGPT's data/*_char/prepare.py writes ``meta.pkl``, a pickled dict of `stoi` (characters to ids)
and `itos` (ids to characters). This module reads ``meta.pkl``. It saves the vocabulary as a
``tokenizer.json`` that transformers can load, and reads that file too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from gpt2c.checks.untrusted import read_whole, show
from gpt2c.errors import TokenizerError
from gpt2c.text.tokenizer import Tokenizer, check_ids

META: Final = "meta.pkl"
_MAX_PICKLE: Final = 16 << 20  # bytes
_KEYS: Final = ("stoi", "itos")

# All parts of a tokenizer.json except its model. "Split" at an empty pattern makes each character a
# piece. The unk_token is not in the vocabulary, so that the tokenizers package also raises an
# error for an unknown character.
_UNKNOWN: Final = "<unk>"
_PARTS: Final[Mapping[str, Any]] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"String": ""},
        "behavior": "Isolated",
        "invert": False,
    },
    "post_processor": None,
    "decoder": {"type": "Fuse"},
}
# Without this, transformers would load tokenizer.json as GPT-2's tokenizer.
_CONFIG: Final = {"tokenizer_class": "PreTrainedTokenizerFast"}


class _CharacterModel:
    """The :class:`gpt2c.text.bpe.TokenizerModel` of a vocabulary of characters."""

    def __init__(self, vocab: Mapping[str, int], source: str) -> None:
        self._vocab, self._source = vocab, source

    def encode(self, text: str, ids: list[int]) -> None:
        """Append the ids of `text` to `ids`; raise TokenizerError for an unknown character."""
        try:
            ids += map(self._vocab.__getitem__, text)
        except KeyError as missing:
            char = missing.args[0]
            raise TokenizerError(
                f"the text has the character {char!r} (U+{ord(char):04X}) at index "
                f"{text.index(char)}, which is not one of the {len(self._vocab)} characters in the "
                f"vocabulary of {self._source}"
            ) from None

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self._vocab.get(token)

    def tokens(self) -> Iterable[tuple[int, bytes]]:
        """Return all ids, with their bytes."""
        return ((id, token.encode("utf-8", "replace")) for token, id in self._vocab.items())

    def unused(self) -> Iterable[tuple[int, bytes]]:
        """Return nothing, because encoding can produce all ids."""
        return ()


def _make_tokenizer(vocab: Mapping[str, int], source: str) -> Tokenizer:
    tokenizer = Tokenizer(_CharacterModel(vocab, source), (), source)
    tokenizer.write_files = lambda folder: _write(vocab, folder)
    return tokenizer


def _write(vocab: Mapping[str, int], folder: Path) -> None:
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": _unknown_token(vocab)}
    for name, values in (
        ("tokenizer.json", {**_PARTS, "model": model}),
        ("tokenizer_config.json", _CONFIG),
    ):
        text = json.dumps(values, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")


def _unknown_token(vocab: Mapping[str, int]) -> str:
    """Return a token that the vocabulary does not have."""
    name = _UNKNOWN
    while name in vocab:
        name = f"<{name}>"
    return name


# ---- tokenizer.json ----


def character_tokenizer(values: Mapping[str, Any], path: Path) -> Tokenizer | None:
    """Return the tokenizer of a parsed tokenizer.json; None unless it has the form of _write.

    Raises TokenizerError, naming the file, for invalid ids.
    """
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordLevel":
        return None
    vocab, unknown = model.get("vocab"), model.get("unk_token")
    required = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
    if not isinstance(vocab, dict) or not isinstance(unknown, str) or unknown in vocab:
        return None
    if any(values.get(name) != _PARTS[name] for name in required):
        return None
    check_ids(vocab, str(path))
    return _make_tokenizer(vocab, str(path))


# ---- meta.pkl ----


def read_meta(path: Path) -> Tokenizer:
    """Read nanoGPT's meta.pkl without executing anything in it.

    Raises CheckpointNotFoundError if there is no such file; TokenizerError, naming the file, if the
    file is not a meta.pkl.
    """
    # Imported lazily, because few models have pickles.
    from gpt2c.formats.pickle_reader import PickleReader
    from gpt2c.formats.pickle_values import PickleError, describe

    raw = read_whole(path, limit=_MAX_PICKLE, error=TokenizerError)
    try:
        value = PickleReader(raw, {"collections.OrderedDict": dict}, _reject_persistent_id).read()
    except PickleError as reason:
        raise TokenizerError(f"{path}: the pickle {reason}") from None
    if not isinstance(value, dict) or not any(key in value for key in _KEYS):
        raise TokenizerError(
            f"{path}: found {describe(value)} without stoi and itos, expected a dict of both, as "
            "nanoGPT's prepare.py writes"
        )
    return _make_tokenizer(_vocabulary(value, path), str(path))


def _reject_persistent_id(_: object) -> NoReturn:
    from gpt2c.formats.pickle_values import PickleError

    raise PickleError("has a persistent id")


def _vocabulary(meta: Mapping[Any, Any], path: Path) -> dict[str, int]:
    """Return the union of stoi and itos, which must give each character the same id."""
    from gpt2c.formats.pickle_values import describe

    stoi, itos = (meta.get(key) for key in _KEYS)
    if isinstance(itos, list):
        itos = dict(enumerate(itos))
    vocab: dict[str, int] = {}
    for name, table in (("stoi", stoi), ("itos", itos)):
        if table is None:
            continue
        if not isinstance(table, dict):
            raise TokenizerError(f"{path}: found {name} {describe(table)}, expected a dict")
        for key, value in table.items():
            token, id = (key, value) if name == "stoi" else (value, key)
            if not isinstance(token, str) or not token or type(id) is not int:
                raise TokenizerError(
                    f"{path}: {name} has {describe(key)}: {describe(value)}, expected a character "
                    "and its id"
                )
            if vocab.setdefault(token, id) != id:
                raise TokenizerError(
                    f"{path}: {show(token)} has two ids, {vocab[token]} and {id}; expected one id"
                )
    if not vocab:
        raise TokenizerError(f"{path}: found no characters, expected a vocabulary")
    check_ids(vocab, str(path))
    return vocab
