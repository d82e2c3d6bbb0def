"""Makes tests/fixtures/special_tokens.json: how transformers reads a tokenizer's files.

Usage: make_special_token_fixtures.py OUT
Needs transformers (5.24.0 made the stored file) and tokenizers. Every case is a folder with a
vocabulary of single bytes; if it has a tokenizer.json, that holds the same vocabulary. For each
case, the file records the ids of texts, their ids with special tokens split into characters (as in
a scored text), their ids without BOS and EOS, and the ids of BOS and EOS.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers
from fixtures import byte_alphabet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

END = "<|endoftext|>"
TEXTS = [
    "", "ab", f"a{END}b", "a new9 b", "new9", "<|bos|>x<|eos|>", "x <|bos|> y", "a<s>b", "<|a|>",
    "x |a| y", "<|a||a|>", "<pad> é",
]  # fmt: skip


VOCAB = {token: id for id, token in enumerate([*byte_alphabet(), END])}


def added(*tokens: tuple[str, bool]) -> dict[str, Any]:
    """Return an added_tokens_decoder with <|endoftext|> and the given pairs (token, is_special)."""
    all_tokens = [(END, True), *tokens]
    return {
        str(256 + n): {"content": text, "special": special, "normalized": not special}
        for n, (text, special) in enumerate(all_tokens)
    }


def tokenizer_json(processor: Any, *special: str) -> dict[str, Any]:
    """Return a tokenizer.json with the same vocabulary, this post-processor and special tokens."""
    vocab = {token: id for token, id in VOCAB.items() if token != END}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, *special])
    if processor is not None:
        tokenizer.post_processor = processor
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    return result


def template(single: str) -> Any:
    """Return a post-processor that puts BOS and EOS around texts, as `single` says."""
    return processors.TemplateProcessing(
        single=single,
        pair="$A $B",
        special_tokens=[("<|bos|>", 257), ("<|eos|>", 258)],
    )


BOS_EOS_NAMES = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
BOS_EOS_OBJECTS = {
    name: {"__type": "AddedToken", "content": token, "special": True}
    for name, token in BOS_EOS_NAMES.items()
}
BOS_EOS_IDS = {"<|bos|>": 257, "<|eos|>": 258}
BOS_EOS = ("<|bos|>", "<|eos|>")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "added_tokens_decoder": {
        "tokenizer_config": {"added_tokens_decoder": added(("new9", False), ("<s>", True))}
    },
    "overlapping": {
        "tokenizer_config": {"added_tokens_decoder": added(("<|a|>", True), ("|a|", False))}
    },
    "named, not marked": {
        "tokenizer_config": {
            **BOS_EOS_NAMES,
            "added_tokens_decoder": added(("<|bos|>", False), ("<|eos|>", False), ("new9", False)),
        }
    },
    "added_tokens": {"added_tokens": {"new9": 257, "<s>": 258}},
    "added_tokens, named": {
        "added_tokens": {**BOS_EOS_IDS, "new9": 259, "<pad>": 260},
        "special_tokens_map": {**BOS_EOS_NAMES, "pad_token": "<pad>"},
    },
    "additional_special_tokens": {
        "added_tokens": {"<s>": 257, "new9": 258},
        "tokenizer_config": {"additional_special_tokens": ["<s>"]},
    },
    "map counts more": {
        "tokenizer_config": {"bos_token": "a", "eos_token": "b"},
        "special_tokens_map": {"bos_token": "c", "eos_token": {"content": "d"}},
    },
    "map does not count": {
        "tokenizer_config": {
            "bos_token": "a",
            "eos_token": "b",
            "added_tokens_decoder": added(),
        },
        "special_tokens_map": {"bos_token": "c", "eos_token": "d"},
    },
    "null": {"tokenizer_config": {"bos_token": None, "add_bos_token": True}},
    "add_bos_token": {"tokenizer_config": {"add_bos_token": True}},
    "add_bos_token false": {"tokenizer_config": {"add_bos_token": False}},
    "add_eos_token": {"tokenizer_config": {"add_eos_token": True}},
    "both": {
        "tokenizer_config": {**BOS_EOS_OBJECTS, "add_bos_token": True, "add_eos_token": True},
        "added_tokens": BOS_EOS_IDS,
    },
    "template": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": BOS_EOS_NAMES,
        "tokenizer": tokenizer_json(template("<|bos|> $A <|eos|>"), *BOS_EOS),
    },
    "template against add_bos_token": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": {**BOS_EOS_NAMES, "add_bos_token": True},
        "tokenizer": tokenizer_json(template("$A <|eos|>"), *BOS_EOS),
    },
    "template in a sequence": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": BOS_EOS_NAMES,
        "tokenizer": tokenizer_json(
            processors.Sequence(
                [processors.ByteLevel(trim_offsets=False), template("<|bos|> <|bos|> $A")]
            ),
            *BOS_EOS,
        ),
    },
    "roberta": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": BOS_EOS_NAMES,
        "tokenizer": tokenizer_json(
            processors.RobertaProcessing(("<|eos|>", 258), ("<|bos|>", 257)), *BOS_EOS
        ),
    },
    "no template": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": {**BOS_EOS_NAMES, "add_bos_token": True},
        "tokenizer": tokenizer_json(None, *BOS_EOS),
    },
    "byte level": {
        "added_tokens": BOS_EOS_IDS,
        "tokenizer_config": {**BOS_EOS_NAMES, "add_bos_token": True, "add_eos_token": True},
        "tokenizer": tokenizer_json(processors.ByteLevel(trim_offsets=True), *BOS_EOS),
    },
}


def record(files: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what transformers reads from the files."""
    for name, values in {"config": {"model_type": "gpt2"}, "vocab": VOCAB, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "files": files,
        "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "split": [tokenizer(text, split_special_tokens=True)["input_ids"] for text in TEXTS],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }


def main() -> None:
    """Write the fixture."""
    cases = {}
    for name, files in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = record(files, Path(folder))
    made_by = f"transformers {transformers.__version__}"
    found = {"made_by": made_by, "vocab": VOCAB, "texts": TEXTS, "cases": cases}
    Path(sys.argv[1]).write_text(json.dumps(found, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
