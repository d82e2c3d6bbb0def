"""Which tokenizer belongs to a checkpoint, and its files where a model is saved."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2_VOCABULARY, PADDED_VOCABULARY
from gpt2c.errors import (
    CheckpointNotFoundError,
    MissingDependencyError,
    TokenizerError,
    TokenizerWarning,
    warn,
)
from gpt2c.text.added_tokens import TokenizerConfig, read_tokenizer_config
from gpt2c.text.characters import META, read_meta
from gpt2c.text.foreign_files import foreign_tokenizer
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer, gpt2_files
from gpt2c.text.tokenizer_json import read_tokenizer_json
from gpt2c.weights.checkpoint import BytePairs, Checkpoint
from gpt2c.weights.checkpoint.save import MAX_BESIDE, copy_beside

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

JSON: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
# Hugging Face's names, and OpenAI's.
PAIRS: Final = ((VOCABULARY, MERGES), ("encoder.json", "vocab.bpe"))
_BESIDE: Final = (JSON, "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_MEND: Final = (
    "pass token ids instead of text, or mend the file, or name another tokenizer with tokenizer="
)
_GET_PACKAGE: Final = (
    "pass token ids instead of text, or put the vocabulary's vocab.json and merges.txt beside the "
    "weights"
)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | MissingTokenizer | None:
    """The tokenizer in a checkpoint's file or beside it; None means GPT-2's own, which fits.

    The first readable file wins; tokenizer.json comes before the others, as in transformers. If
    none is readable, passing text is an error that says why, but token ids work.
    """
    n_vocab = checkpoint.config.vocab_size
    if isinstance(checkpoint.vocabulary, BytePairs):
        return _first([("", partial(of_pairs, checkpoint.vocabulary))], n_vocab)
    if isinstance(checkpoint.vocabulary, str):
        return MissingTokenizer(checkpoint.vocabulary, n_vocab=n_vocab)
    folder = checkpoint.folder
    if folder is not None and (found := _first(_candidates(checkpoint, folder), n_vocab)):
        return found
    foreign = None if folder is None else foreign_tokenizer(folder)
    if n_vocab in (GPT2_VOCABULARY, PADDED_VOCABULARY):
        if foreign is not None:
            warn(
                f"{foreign}, which gpt2c does not read; text is encoded with GPT-2's own "
                "vocabulary. If the model has another one, name its file with tokenizer=",
                TokenizerWarning,
            )
        return None
    also = "" if foreign is None else f"; {foreign}, which gpt2c does not read"
    return MissingTokenizer(
        f"{folder}: there is no {JSON}, no {VOCABULARY} with {MERGES}, no {META}, and a vocabulary "
        f"of {n_vocab} tokens is not GPT-2's own{also}",
        n_vocab=n_vocab,
    )


# A function that reads a tokenizer, and the path to name in messages.
_Candidate = tuple[str, Callable[[], Tokenizer]]


def _candidates(checkpoint: Checkpoint, folder: Path) -> Iterator[_Candidate]:
    """The places that may hold a checkpoint's tokenizer, likeliest first."""
    yield from candidates_in(folder)
    for path in _meta_of_dataset(checkpoint, folder):
        yield str(path), partial(read_meta, path)


def candidates_in(folder: Path) -> Iterator[_Candidate]:
    """The tokenizers in a folder. A dangling link counts, as a broken tokenizer."""
    if os.path.lexists(folder / JSON):
        yield str(folder / JSON), partial(of_json, folder / JSON)
    for names in PAIRS:
        if all(os.path.lexists(folder / name) for name in names):
            yield str(folder / names[0]), partial(of_files, *(folder / name for name in names))
    if os.path.lexists(folder / META):
        yield str(folder / META), partial(read_meta, folder / META)


def of_json(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json with any file name; raises as the readers do."""
    tokenizer = read_tokenizer_json(path, read_tokenizer_config(path.parent))
    if tokenizer.write_files is None:
        tokenizer.write_files = partial(_copy_files, {**_files_in(path.parent), JSON: path})
    return tokenizer


def of_files(vocab_json: Path, merges_txt: Path) -> Tokenizer:
    """The tokenizer of a vocab.json and merges.txt with any names; raises as the readers do."""
    tokenizer = Tokenizer.from_files(vocab_json, merges_txt)
    files = {**_files_in(vocab_json.parent), VOCABULARY: vocab_json, MERGES: merges_txt}
    tokenizer.write_files = partial(_copy_files, files)
    return tokenizer


def of_pairs(pairs: BytePairs) -> Tokenizer:
    """The tokenizer of a vocabulary inside a checkpoint's file; raises TokenizerError."""
    config = TokenizerConfig(added=pairs.added, around=pairs.around)
    tokenizer = Tokenizer.from_vocabulary(pairs.vocab, pairs.merges, (pairs.source,) * 2, config)
    tokenizer.write_files = partial(_write_pairs, pairs)
    return tokenizer


def _first(
    candidates: Iterator[_Candidate] | list[_Candidate], n_vocab: int
) -> Tokenizer | MissingTokenizer | None:
    """The first tokenizer that can be read and fits the model; None without candidates."""
    problems: list[str] = []
    advice = _MEND
    for path, read in candidates:
        try:
            tokenizer = check_size(read(), n_vocab)
        except (TokenizerError, CheckpointNotFoundError) as reason:
            problems.append(str(reason))
        except MissingDependencyError as reason:
            problems.append(str(reason))
            advice = _GET_PACKAGE
        else:
            for problem in problems:
                _log.warning("%s; the tokenizer is %s", problem, path)
            return tokenizer
    if not problems:
        return None
    _log.warning("no tokenizer: %s", "; ".join(problems))
    return MissingTokenizer("; ".join(problems), n_vocab=n_vocab, advice=advice)


def check_size(tokenizer: Tokenizer, n_vocab: int) -> Tokenizer:
    """Raises TokenizerError where a text's ids may be ids that the model does not have.

    Tokens that were added without enlarging the model, as padding often is, are let pass: they are
    refused where a text has them.
    """
    added = set(tokenizer.special_tokens.values())
    largest = next((id for id in reversed(range(tokenizer.n_vocab)) if id not in added), -1)
    if largest >= n_vocab:
        raise TokenizerError(
            f"{tokenizer.source}: found a token with id {largest}, but the model's vocabulary has "
            f"{n_vocab} tokens: are the two of the same model?"
        )
    return tokenizer


# ---- nanoGPT's data ----


def _meta_of_dataset(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    """Find data/DATASET/meta.pkl of the nanoGPT that wrote a checkpoint, if it is still there.

    The checkpoint's configuration names the dataset. data/ is searched for in the checkpoint's
    folder, in its parent and, if the folder's path ends in out_dir, in the folder that out_dir is
    relative to. Only a file of this name is read, and no link at or below data/ is followed.
    """
    if checkpoint.dataset is None:
        return
    dataset, out_dir = checkpoint.dataset
    if not is_file_name(dataset):
        _log.warning("%s: the dataset %s is not the name of a folder", folder, show(dataset))
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
                    "%s: is not read, because its path has a link: name it with tokenizer=", path
                )
    except (OSError, RuntimeError, ValueError) as reason:  # link loops; invalid names
        _log.warning("%s: cannot look for the dataset %s: %s", folder, show(dataset), reason)


def is_file_name(name: str) -> bool:
    """Whether this is a single path component that stays inside its folder."""
    return name not in ("", ".", "..") and not any(char in name for char in "/\\:\0")


# ---- saving ----


def save_tokenizer(
    checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer | MissingTokenizer | None
) -> None:
    """Write the files of a checkpoint's tokenizer, as tokenizer_of returned it, by the usual names.

    The files of an unreadable tokenizer are copied unchanged, with a warning.

    Raises CheckpointError if one of them is a link out of its folder.
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
        _save_gpt2s_own(folder)
        return
    if checkpoint.folder is None or checkpoint.vocabulary is not None:
        return
    files = _files_in(checkpoint.folder)
    if tokenizer is None:
        _save_gpt2s_own(folder)
    if isinstance(tokenizer, MissingTokenizer) and (checkpoint.folder / META).is_file():
        files[META] = checkpoint.folder / META
    if isinstance(tokenizer, MissingTokenizer) and files:
        warn(f"the tokenizer's files are copied unchanged: {tokenizer.reason}", TokenizerWarning)
    _copy_files(files, folder)


def _files_in(folder: Path) -> dict[str, Path]:
    """The tokenizer files in a folder, by the names to save them under."""
    files = {name: folder / name for name in _BESIDE}
    for names in reversed(PAIRS):
        if all((folder / name).is_file() for name in names):
            files |= {new: folder / name for name, new in zip(names, PAIRS[0], strict=True)}
    return {name: path for name, path in files.items() if path.is_file()}


def _copy_files(files: Mapping[str, Path], folder: Path) -> None:
    for name, path in files.items():
        if path.is_file() and path.stat().st_size > MAX_BESIDE:
            warn(f"{path}: is not copied: found more than {MAX_BESIDE} bytes", TokenizerWarning)
        else:
            copy_beside(path, folder / name)


def _save_gpt2s_own(folder: Path) -> None:
    vocab, merges = gpt2_files()
    text = json.dumps(vocab, ensure_ascii=False)
    (folder / VOCABULARY).write_text(text, encoding="utf-8")
    shutil.copyfile(merges, folder / MERGES)


def _write_pairs(pairs: BytePairs, folder: Path) -> None:
    text = json.dumps(dict(pairs.vocab), ensure_ascii=False)
    (folder / VOCABULARY).write_text(text, encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in pairs.merges)
    (folder / MERGES).write_text("#version: 0.2\n" + merges, encoding="utf-8")
    decoder = {
        str(token.id): {"content": token.content, "special": token.special} for token in pairs.added
    }
    values: dict[str, Any] = {"added_tokens_decoder": decoder}
    tokens = {id: token for token, id in pairs.vocab.items()}
    for name, ids in zip(("bos", "eos"), pairs.around, strict=True):
        for id in ids:
            values |= {f"add_{name}_token": True, f"{name}_token": tokens[int(id)]}
    text = json.dumps(values, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
