"""Reads ``tokenizer.json`` files with a byte-level BPE, without the tokenizers package.

The ids equal those of the package. Files with another kind of model or with other options need the
package: see :mod:`gpt2c.text.tokenizer_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2c.checks.untrusted import show
from gpt2c.errors import TokenizerError
from gpt2c.text.added_tokens import DEFAULT_CONFIG, AddedToken, TokenizerConfig, content_and_flags
from gpt2c.text.bpe import BPEOptions, make_bpe_model
from gpt2c.text.special_tokens import read_template
from gpt2c.text.tokenizer import Tokenizer, check_ids


def byte_level_tokenizer(
    values: Mapping[str, Any], path: Path, config: TokenizerConfig = DEFAULT_CONFIG
) -> Tokenizer | None:
    """Return the tokenizer of a tokenizer.json; None if it needs the tokenizers package.

    `values` are the file's parsed contents, and `path` names the file in messages. The BOS and EOS
    tokens come from `config`, everything else from the file.

    Raises TokenizerError, naming the file, if the file has a malformed byte-level BPE.
    """
    model = values.get("model")
    options = _bpe_options(values)
    if options is None or not isinstance(model, Mapping):
        return None
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{path}: found the vocabulary {show(vocab)}, expected an object")
    if len(set(map(str, vocab.values()))) < len(vocab):
        return None  # duplicate ids: the package decides which token an id decodes to
    check_ids(vocab, str(path))
    merges = _merges(model.get("merges"), path)
    bpe = make_bpe_model(vocab, merges, (str(path), str(path)), options)
    added = _added_tokens(values.get("added_tokens"), vocab, path)
    if not vocab and not added:
        raise TokenizerError(f"{path}: found no tokens, expected a vocabulary")
    has_gaps = max(vocab.values(), default=-1) >= len(vocab)
    if has_gaps and any(token.content not in vocab for token in added):
        return None  # the ids depend on the package's version
    pre_tokenizer = _single_part(values.get("pre_tokenizer"), "pretokenizers", "ByteLevel")
    config = replace(
        config,
        add_prefix_space=bool(pre_tokenizer and pre_tokenizer["add_prefix_space"]),
        template=read_template(values.get("post_processor")),
    )
    return Tokenizer(bpe, added, str(path), config)


def _bpe_options(values: Mapping[str, Any]) -> BPEOptions | None:
    """Return the options of the BPE; None if a part of the file does not fit a byte-level BPE."""
    model = values.get("model")
    pre_tokenizer = _single_part(values.get("pre_tokenizer"), "pretokenizers", "ByteLevel")
    decoder = _single_part(values.get("decoder"), "decoders", "ByteLevel")
    if not isinstance(model, dict) or pre_tokenizer is None or decoder is None:
        return None
    flags = {name: model.get(name) or False for name in ("fuse_unk", "byte_fallback")}
    flags["ignore_merges"] = model.get("ignore_merges") or False
    flags["use_regex"] = pre_tokenizer.get("use_regex", True)
    unk = model.get("unk_token")
    is_supported = (
        values.get("normalizer") is None
        and model.get("type", "BPE") == "BPE"
        and "merges" in model
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and model.get("dropout") in (None, 0)
        and (unk is None or isinstance(unk, str))
        and all(isinstance(flag, bool) for flag in flags.values())
        and isinstance(pre_tokenizer.get("add_prefix_space"), bool)
    )
    return BPEOptions(unk_token=unk, **flags) if is_supported else None


def _single_part(part: object, inner: str, kind: str) -> Mapping[str, Any] | None:
    """Return a part of the file if it is of the given kind, else None.

    A Sequence of a single part counts as that part. The key `inner` holds a Sequence's parts.
    """
    if not isinstance(part, dict):
        return None
    if part.get("type") == "Sequence":
        parts = part.get(inner)
        if not isinstance(parts, list) or len(parts) != 1:
            return None
        return _single_part(parts[0], inner, kind)
    return part if part.get("type") == kind else None


def _merges(merges: object, path: Path) -> list[tuple[str, str]]:
    """Return the merges as pairs; they are strings in older files and lists in newer ones."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{path}: found the merges {show(merges)}, expected a list")
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(merges, 1):
        if isinstance(merge, str) and merge.startswith("#version"):
            continue
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part for part in parts)
        ):
            raise TokenizerError(
                f"{path}: merge {number} is {show(merge)}, expected a list of two tokens, or a "
                "string of two tokens with one space between them"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _added_tokens(tokens: object, vocab: Mapping[str, int], path: Path) -> list[AddedToken]:
    """Return the added tokens, with the ids that the tokenizers package gives them.

    A token that is in the vocabulary keeps its id. The other tokens get the ids that follow the
    vocabulary's ids, in order. The package ignores the ids in the file.
    """
    if tokens is None:
        return []
    if not isinstance(tokens, list):
        raise TokenizerError(f"{path}: found added_tokens {show(tokens)}, expected a list")
    found: dict[str, AddedToken] = {}
    next_id = len(vocab)
    for token in tokens:
        content, flags = content_and_flags(path, token)
        if not content or content in found:
            continue
        id = vocab.get(content)
        if id is None:
            id, next_id = next_id, next_id + 1
        found[content] = AddedToken(content, id, **flags)
    return list(found.values())
