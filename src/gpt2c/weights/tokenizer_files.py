"""Finds a checkpoint's tokenizer among its files, and saves it with a model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE, GPT2Config
from gpt2c.errors import (
    CheckpointNotFoundError,
    MissingDependencyError,
    TokenizerError,
    TokenizerWarning,
    warn,
)
from gpt2c.files import is_file_name
from gpt2c.text.added_tokens import TokenizerConfig, read_tokenizer_config
from gpt2c.text.characters import META, read_meta
from gpt2c.text.foreign_files import foreign_tokenizer
from gpt2c.text.sentence_piece import SPIECE, is_sentence_piece, read_sentence_piece
from gpt2c.text.special_tokens import read_optional
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer, gpt2_vocab_and_merges
from gpt2c.text.tokenizer_json import read_tokenizer_json
from gpt2c.text.vocab_txt import VOCAB_TXT, is_vocab_txt, read_vocab_txt
from gpt2c.weights.checkpoint import Checkpoint, StoredVocabulary
from gpt2c.weights.checkpoint.save import MAX_COPIED_BYTES, copy_companion_file

_log = logging.getLogger(__name__)

TOKENIZER_JSON: Final = "tokenizer.json"
VOCAB_JSON: Final = "vocab.json"
MERGES_TXT: Final = "merges.txt"
# Names of a vocabulary and its merges: Hugging Face's, then OpenAI's.
FILE_PAIRS: Final = ((VOCAB_JSON, MERGES_TXT), ("encoder.json", "vocab.bpe"))
# Vocabularies that the tokenizers package encodes with: a function that says whether a file looks
# like one, and the function that reads it.
_Check = Callable[[Path], bool]
PACKAGE_FILES: Final[Mapping[str, tuple[_Check, Callable[[Path], Tokenizer]]]] = {
    VOCAB_TXT: (is_vocab_txt, read_vocab_txt),
    SPIECE: (is_sentence_piece, read_sentence_piece),
}
_HUGGING_FACE_FILES: Final = (
    VOCAB_TXT,
    SPIECE,
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_REPAIR_ADVICE: Final = "repair the file, or name another tokenizer with tokenizer="
_PACKAGE_ADVICE: Final = "put the vocabulary's vocab.json and merges.txt beside the weights"


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | MissingTokenizer | None:
    """Return the tokenizer in a checkpoint's file or folder; None means GPT-2's own.

    The tokenizer comes from the first readable file; tokenizer.json is tried first, as in
    transformers. If all files are unreadable, or if there are none and the model's vocabulary does
    not have GPT-2's size, the result is a MissingTokenizer that says why.
    """
    n_vocab = checkpoint.config.vocab_size
    if isinstance(checkpoint.vocabulary, StoredVocabulary):
        return _first_usable(
            [("", partial(load_stored_vocabulary, checkpoint.vocabulary))], n_vocab
        )
    if isinstance(checkpoint.vocabulary, str):
        return MissingTokenizer(checkpoint.vocabulary, n_vocab=n_vocab)
    folder = checkpoint.folder
    if folder is not None and (found := _first_usable(_candidates(checkpoint, folder), n_vocab)):
        return found
    foreign = None if folder is None else foreign_tokenizer(folder)
    if n_vocab in (GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE):
        if foreign is not None:
            warn(
                f"{foreign}; text is encoded with GPT-2's own vocabulary. If the model has another "
                "vocabulary, name its file with tokenizer=",
                TokenizerWarning,
            )
        return None
    also = "" if foreign is None else f"; {foreign}"
    return MissingTokenizer(
        f"{folder}: found no {TOKENIZER_JSON}, no {VOCAB_JSON} with {MERGES_TXT}, no {VOCAB_TXT}, "
        f"no {SPIECE}, no {META}, and "
        f"the model's vocabulary of {n_vocab} tokens is not GPT-2's own{also}",
        n_vocab=n_vocab,
    )


# A tokenizer that may be usable: its path, for messages, and a function that reads it.
_Candidate = tuple[str, Callable[[], Tokenizer]]


def _candidates(checkpoint: Checkpoint, folder: Path) -> Iterator[_Candidate]:
    """Yield the tokenizers in a checkpoint's folder and dataset, in the order to try them."""
    yield from candidates_in(folder)
    for path in _meta_of_dataset(checkpoint, folder):
        yield str(path), partial(read_meta, path)


def candidates_in(folder: Path) -> Iterator[_Candidate]:
    """Yield the tokenizers in a folder, in the order to try them.

    A dangling link counts too: it is a broken tokenizer, not a missing one.
    """
    if os.path.lexists(folder / TOKENIZER_JSON):
        yield str(folder / TOKENIZER_JSON), partial(load_json, folder / TOKENIZER_JSON)
    for names in FILE_PAIRS:
        if all(os.path.lexists(folder / name) for name in names):
            yield str(folder / names[0]), partial(load_files, *(folder / name for name in names))
    for name, (is_one, read) in PACKAGE_FILES.items():
        if os.path.lexists(folder / name) and is_one(folder / name):
            yield str(folder / name), partial(read, folder / name)
    if os.path.lexists(folder / META):
        yield str(folder / META), partial(read_meta, folder / META)


def load_json(path: Path) -> Tokenizer:
    """Read a tokenizer.json under any file name; raises as read_tokenizer_json does."""
    tokenizer = read_tokenizer_json(
        path, read_tokenizer_config(path.parent, beside_tokenizer_json=True)
    )
    if tokenizer.write_files is None:
        tokenizer.write_files = partial(
            _copy_files, {**_files_in(path.parent), TOKENIZER_JSON: path}
        )
    return tokenizer


def load_files(vocab_json: Path, merges_txt: Path) -> Tokenizer:
    """Read a vocab.json and a merges.txt under any names; raises as Tokenizer.from_files does."""
    tokenizer = Tokenizer.from_files(vocab_json, merges_txt)
    files = {**_files_in(vocab_json.parent), VOCAB_JSON: vocab_json, MERGES_TXT: merges_txt}
    tokenizer.write_files = partial(_copy_files, files)
    return tokenizer


def load_stored_vocabulary(stored: StoredVocabulary) -> Tokenizer:
    """Return the tokenizer of a vocabulary inside a checkpoint's file.

    Raises TokenizerError if the vocabulary is invalid.
    """
    config = TokenizerConfig(added=stored.added, template=stored.template)
    tokenizer = Tokenizer.from_vocabulary(stored.vocab, stored.merges, (stored.source,) * 2, config)
    tokenizer.write_files = partial(_write_stored_vocabulary, stored)
    return tokenizer


def _first_usable(
    candidates: Iterator[_Candidate] | list[_Candidate], n_vocab: int
) -> Tokenizer | MissingTokenizer | None:
    """Return the first tokenizer that can be read and fits the model.

    None means that there are no candidates, and a MissingTokenizer that none of them is usable.
    """
    problems: list[str] = []
    advice = _REPAIR_ADVICE
    for path, read in candidates:
        try:
            tokenizer = check_size(read(), n_vocab)
        except (TokenizerError, CheckpointNotFoundError) as reason:
            problems.append(str(reason))
        except MissingDependencyError as reason:
            problems.append(str(reason))
            advice = _PACKAGE_ADVICE
        else:
            for problem in problems:
                _log.warning("%s; the tokenizer is %s", problem, path)
            return tokenizer
    if not problems:
        return None
    _log.warning("no tokenizer: %s", "; ".join(problems))
    return MissingTokenizer("; ".join(problems), n_vocab=n_vocab, advice=advice)


def check_size(tokenizer: Tokenizer, n_vocab: int) -> Tokenizer:
    """Return the tokenizer; raise TokenizerError if plain text may encode to ids >= n_vocab.

    Added tokens may have such ids, because people often add a padding token without enlarging the
    model. A text that contains such a token raises later.
    """
    added = set(tokenizer.special_tokens.values())
    largest = next((id for id in reversed(range(tokenizer.n_vocab)) if id not in added), -1)
    if largest >= n_vocab:
        raise TokenizerError(
            f"{tokenizer.source}: found a token with id {largest}, but the model's vocabulary has "
            f"{n_vocab} tokens: do both belong to the same model?"
        )
    return tokenizer


# ---- nanoGPT's data ----


def _meta_of_dataset(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """Yield paths of data/DATASET/meta.pkl, the tokenizer of the data that nanoGPT trained on.

    The checkpoint names DATASET and the folder in which it was saved, out_dir. data/ may be in the
    checkpoint's folder, in its parent and, if the folder's path ends with out_dir, in the folder
    that out_dir is relative to. The checkpoint is untrusted, so only a file of this name is read,
    and links at or below data/ are not followed.
    """
    if checkpoint.dataset is None:
        return
    dataset, out_dir = checkpoint.dataset
    if not is_file_name(dataset):
        _log.warning("%s: the dataset %s is not a folder's name; ignored", folder, show(dataset))
        return
    roots = [folder, folder.parent]
    try:
        here = folder.resolve(strict=True)
        parts = Path(out_dir).parts
        if 0 < len(parts) < len(here.parts) and here.parts[-len(parts) :] == parts:
            roots.append(here.parents[len(parts) - 1])
        roots = list(dict.fromkeys(root.resolve(strict=True) for root in roots))
        for root in roots:
            path = root / "data" / dataset / META
            if not os.path.lexists(path):
                continue
            if path.resolve() == path:
                yield path
            else:
                _log.warning(
                    "%s: not read, because its path has a link: pass the path as tokenizer=", path
                )
    except (OSError, RuntimeError, ValueError) as reason:  # link loops; invalid names
        _log.warning("%s: cannot look for the dataset %s: %s", folder, show(dataset), reason)


# ---- saving ----


def save_tokenizer(
    checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer | MissingTokenizer | None
) -> None:
    """Write the files of a model's tokenizer into `folder`, under Hugging Face's names.

    A tokenizer of None means GPT-2's own. If the checkpoint's tokenizer cannot be read, its files
    are copied unchanged, with a TokenizerWarning.

    Raises TokenizerError if the tokenizer was not read from files, and CheckpointError if a file is
    a link to another folder.
    """
    if isinstance(tokenizer, Tokenizer) and tokenizer.write_files is not None:
        tokenizer.write_files(folder)
        return
    if isinstance(tokenizer, Tokenizer):
        if tokenizer is not Tokenizer.gpt2():
            raise TokenizerError(
                f"{tokenizer.source}: this tokenizer was made in memory and cannot be saved: give "
                "the model one that was read from a file, with tokenizer="
            )
        _write_gpt2_files(folder)
        return
    if checkpoint.folder is None or checkpoint.vocabulary is not None:
        return
    files = _files_in(checkpoint.folder)
    if tokenizer is None:
        _write_gpt2_files(folder)
    if isinstance(tokenizer, MissingTokenizer) and (checkpoint.folder / META).is_file():
        files[META] = checkpoint.folder / META
    if isinstance(tokenizer, MissingTokenizer) and files:
        warn(f"the tokenizer's files are copied unchanged: {tokenizer.reason}", TokenizerWarning)
    _copy_files(files, folder)


def _files_in(folder: Path) -> dict[str, Path]:
    """Return a folder's tokenizer files: the name under which to save each, and its path."""
    files = {name: folder / name for name in _HUGGING_FACE_FILES}
    for names in reversed(FILE_PAIRS):
        if all((folder / name).is_file() for name in names):
            files |= {new: folder / name for name, new in zip(names, FILE_PAIRS[0], strict=True)}
    return {name: path for name, path in files.items() if path.is_file()}


def _copy_files(files: Mapping[str, Path], folder: Path) -> None:
    for name, path in files.items():
        if path.is_file() and path.stat().st_size > MAX_COPIED_BYTES:
            warn(
                f"{path}: not copied: it has more than {MAX_COPIED_BYTES} bytes, the limit for a "
                "tokenizer's file",
                TokenizerWarning,
            )
        else:
            copy_companion_file(path, folder / name)


def _write_gpt2_files(folder: Path) -> None:
    import shutil

    vocab, merges = gpt2_vocab_and_merges()
    text = json.dumps(vocab, ensure_ascii=False)
    (folder / VOCAB_JSON).write_text(text, encoding="utf-8", newline="\n")
    shutil.copyfile(merges, folder / MERGES_TXT)


def _write_stored_vocabulary(stored: StoredVocabulary, folder: Path) -> None:
    text = json.dumps(dict(stored.vocab), ensure_ascii=False)
    (folder / VOCAB_JSON).write_text(text, encoding="utf-8", newline="\n")
    merges = "".join(f"{left} {right}\n" for left, right in stored.merges)
    text = "#version: 0.2\n" + merges
    (folder / MERGES_TXT).write_text(text, encoding="utf-8", newline="\n")
    decoder = {
        str(token.id): {"content": token.content, "special": token.special}
        for token in stored.added
    }
    config: dict[str, Any] = {"added_tokens_decoder": decoder}
    tokens = {id: token for token, id in stored.vocab.items()}
    for name, ids in zip(("bos", "eos"), stored.template, strict=True):
        for id in ids:
            config |= {f"add_{name}_token": True, f"{name}_token": tokens[int(id)]}
    text = json.dumps(config, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


def with_special_ids(
    config: GPT2Config, folder: Path | None, tokenizer: Tokenizer | MissingTokenizer | None
) -> tuple[GPT2Config, Mapping[str, Any]]:
    """Return the configuration with BOS and EOS ids, and the raw values of ``config.json``.

    Ids in ``config.json`` take precedence if they are in the vocabulary, and so does a null
    eos_token_id. The tokenizer gives the ids that are missing. `folder` is None for a checkpoint
    without a ``config.json``. An unreadable file counts as empty.
    """
    raw = {} if folder is None else _read_lenient(folder / "config.json")
    if tokenizer is None:
        return config, raw

    def in_vocabulary(*ids: int | None) -> list[int]:
        return [id for id in ids if id is not None and id < config.vocab_size]

    bos = in_vocabulary(tokenizer.bos_id, tokenizer.eot_id)
    eos = in_vocabulary(tokenizer.eot_id)
    has_bos = config.bos_token_id is not None and (folder is None or "bos_token_id" in raw)
    if bos and not has_bos:
        config = replace(config, bos_token_id=bos[0])
    has_eos = "eos_token_id" in raw or (folder is None and config.eos_token_id is not None)
    if eos and not has_eos:
        config = replace(config, eos_token_id=eos[0])
    return config, raw


def _read_lenient(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if the file is missing or invalid."""
    try:
        return read_optional(path)
    except TokenizerError:
        return {}
