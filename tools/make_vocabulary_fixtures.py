"""Makes tests/fixtures/vocabularies: ids and texts of transformers for two kinds of vocabulary.

Run from the repository's root, in environments with these packages:

    python tools/make_vocabulary_fixtures.py wordpiece      # transformers 5
    python tools/make_vocabulary_fixtures.py sentencepiece  # transformers 4 and sentencepiece

transformers 5 reads SentencePiece's models with other ids for unknown text, because its T5Tokenizer
expects T5's own ids; transformers 4 calls the package sentencepiece.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fixtures import FIXTURES, new_folder

OUT = FIXTURES / "vocabularies"
CORPUS = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "今天天气很好,我们去公园散步吧。她说:“你好!”",
    "The quick brown fox jumps over the lazy dog.  Two spaces, naïve café; Ünïcödé!",
    "東京都に住んでいます。大阪へ行きたい。123456",
    "Hello world! I can't believe it's 2024.",
]
TEXTS = [
    "", "Hello 今天天气很好", "吾輩は猫である。名前はまだ無い。", "  two  spaces  ", " leading",
    "trailing ", "naïve café ÜNÏCÖDÉ", "emoji \U0001f642\U0001f468\u200d\U0001f469 end",
    "tab\tnew\nline\r\n", "\x00\x01ctrl\x7f\u200b\ufeff zero",
    "\uff76\uff80\uff76\uff85 \uff21\uff22\uff23 \u2460\u2461 \u3314",
    "[CLS] hello [SEP] [MASK][PAD]", "<s> hi </s><unk>", "▁under ▁▁x", "天" * 120, "a" * 150,
    "한국어 العربية עברית हिन्दी", "\u3000全角\u3000スペース", "x</s>y [SEP]z", "…—“quotes”«»",
    "\ufb01 ligature ½", "e\u0301 combining", "1234567890", "ß ẞ İ \u0131", "\ud7ff \U0010ffff",
    "[UNK] [unused1]", "can't isn't",
]  # fmt: skip


def write_expected(folder: Path, tokenizer: Any, packages: list[str]) -> None:
    versions = {name: importlib.metadata.version(name) for name in packages}
    cases = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    expected = {"made_with": versions, "n_vocab": len(tokenizer), "cases": cases}
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=True) + "\n")


def make_wordpiece() -> None:
    from transformers import BertTokenizer

    characters = sorted({c for text in CORPUS for c in text if not c.isspace()})
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    tokens += ["##" + c for c in characters if ord(c) < 0x3000]
    tokens += ["the", "qu", "##ick", "hello", "world", "can", "##ing", "isn", "hi"]
    for name, lower in (("wordpiece", False), ("wordpiece_lower", True)):
        folder = new_folder(OUT / name)
        vocab = dict.fromkeys(t.lower() if lower and t[0] != "[" else t for t in tokens)
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        write_expected(folder, BertTokenizer.from_pretrained(folder), ["transformers"])


def make_sentencepiece() -> None:
    import sentencepiece
    from transformers import T5Tokenizer

    for name, byte_fallback in (("sentencepiece", False), ("sentencepiece_bytes", True)):
        folder = new_folder(OUT / name)
        with tempfile.TemporaryDirectory() as temporary:
            corpus, rules = Path(temporary, "corpus.txt"), Path(temporary, "rules.tsv")
            corpus.write_text("\n".join(CORPUS * 40), encoding="utf-8")
            # A part of NFKC: all of it would take 200 KB of the model.
            pairs = [(0xFF21 + i, 0x41 + i) for i in range(26)] + [(0x3000, 0x20), (0xFF76, 0x30AB)]
            rules.write_text("".join(f"{a:X}\t{b:X}\n" for a, b in [*pairs, (0x2460, 0x31)]))
            sentencepiece.SentencePieceTrainer.train(
                input=str(corpus), model_prefix=str(folder / "spiece"), model_type="unigram",
                vocab_size=480 if byte_fallback else 220, byte_fallback=byte_fallback,
                user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]", "Two spaces"],
                normalization_rule_tsv=str(rules), hard_vocab_limit=False,
            )  # fmt: skip
        (folder / "spiece.vocab").unlink()
        config = {
            "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]", "extra_ids": 0,
            "additional_special_tokens": [], "bos_token": "<s>", "cls_token": "[CLS]",
            "sep_token": "[SEP]", "mask_token": "[MASK]", "tokenizer_class": "T5Tokenizer",
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = T5Tokenizer.from_pretrained(folder)
        write_expected(folder, tokenizer, ["transformers", "sentencepiece"])


if __name__ == "__main__":
    {"wordpiece": make_wordpiece, "sentencepiece": make_sentencepiece}[sys.argv[1]]()
