"""Writes tests/fixtures/tokenizer_hf.json: the ids of tricky texts in HF `tokenizers`.

Needs the tokenizers package and the project's shared data:

    python tools/make_tokenizer_fixtures.py SHARED/data tests/fixtures/tokenizer_hf.json
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

VOCABULARIES = {
    "gpt2": ("tokenizer/encoder.json", "tokenizer/vocab.bpe"),
    "prose-21m": ("models/prose-21m/vocab.json", "models/prose-21m/merges.txt"),
}

TEXTS = [
    "",
    " ",
    "Once upon a time, there was a little girl who'd lived in the wood.",
    "don't DON'T we'll WE'LL they've I'm 'tis ''s '''d",
    "<|endoftext|>",
    "one<|endoftext|>two  <|endoftext|>  three<|endoftext|><|endoftext|>",
    "<|endoftext| ><|ENDOFTEXT|>|endoftext|>",
    "tabs\tand\n\nlines\r\n  \t \n x",
    "a" * 70 + " " * 70 + "b" + " " * 70 + "\n" * 70 + "c",
    " " * 255 + "x" + " " * 256 + "x" + " " * 257 + "x" + " " * 258,
    "\n" * 256 + "x" + "\t" * 257 + "'s" + "\u3000" * 300 + "1",
    "nbsp\xa0\xa0x next\x85line thin\u2009space ideographic\u3000\u3000x ogham\u1680x",
    "zero\u200bwidth \u200d joiner \ufeffbom \u2060word",
    "file\x1c\x1d\x1e\x1fseparators \x1c x",
    "\x00\x01\x7f\x80\x9f nul and controls",
    "café cafe\u0301 ﬁ Å A\u030a 가 각 각",
    "नमस्ते ไทย العربية עברית Ελληνικά Русский 日本語 中文 한국어 ქართული",
    "½ ² ٣٤ ४५ Ⅷ ㊿ \U0001d7d9\U0001d7da ௧ 3.14159 1,000,000",
    "😀😀 👩‍👩‍👧 🏳️‍🌈 👍🏽 🇫🇷🇩🇪 ☃️ ©®™",
    "𐍈𐀀 \U0010ffff \U000e0041 \ufffd \ufffe \uffff",
    "Ġ Ċ ĠĠthe âĢ the alphabet's own letters",
    "mixed1letters2and3digits_under-score/slash\\back",
]


def random_texts(count: int) -> list[str]:
    """Return texts of random characters from all over Unicode."""
    source = random.Random(0)
    scalars = [*range(0xD800), *range(0xE000, 0x30000), 0xE0001, 0xF0000, 0x10FFFF]
    pools = [range(0x80), range(0x250), range(0x3000), scalars, [9, 10, 32, 0xA0, 0x2003, 97, 49]]
    return [
        "".join(chr(source.choice(source.choice(pools))) for _ in range(source.randrange(1, 40)))
        for _ in range(count)
    ]


def encoder(vocab: Path, merges: Path) -> Tokenizer:
    """Return GPT-2's tokenizer, built as transformers does."""
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return tokenizer


def main(data: Path, target: Path) -> None:
    """Write the fixture from the vocabularies in `data`."""
    texts = TEXTS + random_texts(60)
    cases: dict[str, list[list[int]]] = {}
    for name, (vocab, merges) in VOCABULARIES.items():
        tokenizer = encoder(data / vocab, data / merges)
        cases[name] = [tokenizer.encode(text).ids for text in texts]
    lines = [
        '{"source": '
        + json.dumps(f"HF tokenizers {tokenizers.__version__}, tools/make_tokenizer_fixtures.py"),
        '"texts": [\n' + ",\n".join(map(json.dumps, texts)) + "\n]",
        *(
            f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, ids)) + "\n]"
            for name, ids in cases.items()
        ),
    ]
    target.write_text(",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
