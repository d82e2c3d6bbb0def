"""Makes mutated checkpoints, tokenizers and calls, which may raise only gpt2c's own errors.

A finding is an input that raises any other exception, takes more than 5 seconds, or takes more
memory than MAX_MEMORY. test_fuzz.py runs a few thousand inputs from fixed seeds;
tools/soak/fuzz.py runs as many as you ask for.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gpt2c
from gpt2c import GPT2
from gpt2c.errors import TokenizerWarning
from gpt2c.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = FIXTURES / "formats"
TRAINERS = FIXTURES / "trainers"
TALES = Path(gpt2c.__file__).parent / "models" / "tales"
MAX_SECONDS = 5
# The max growth of the resident memory, in bytes; an input has at most 150 KB. AddressSanitizer
# keeps freed memory, so the limit is larger with it.
MAX_MEMORY = (1 << 30) if "ASAN_OPTIONS" in os.environ else (96 << 20)
# The limit of virtual memory, in bytes. An allocation beyond it raises MemoryError, which is a
# finding.
MAX_ADDRESSES = 2 << 30

WORDS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\0", b"\n",
    b" ", b"-1", b"0", b"1e9", b"1.0", b"true", b"null", b"NaN", b"{}", b"[]", b"9007199254740993",
    b"18446744073709551616", b"1e400", b"-0", b'"dtype"', b'"shape"', b'"data_offsets"', b'"F16"',
    b"[0,8]", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\0" * 8,
    b"\xff" * 7 + b"\x7f", b"\x80\x80\x80\x80\x01", b"\x01", b"\x20", b"h.0.", b"../", b"/",
]  # fmt: skip


class FindingError(Exception):
    """An input that raised a wrong exception or took too much time or memory."""


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Make a few changes: flip bits, insert words, delete, repeat or move parts."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(changed) + 1)
        n = rng.choice((1, 1, 2, 4, 8, 8, 40))
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            word = rng.choice(WORDS)
            changed[at : at + rng.choice((0, len(word)))] = word
        elif kind == 2:
            del changed[at : at + n]
        elif kind == 3:
            changed[at:at] = changed[at : at + n]
        elif kind == 4:
            begin = rng.randrange(len(changed) + 1)
            changed[at : at + n] = changed[begin : begin + n]
        elif kind == 5 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif rng.randrange(8) == 0:
            del changed[at:]
    return bytes(changed)


# ---- checkpoints ----

# The next functions mutate a part of a file, or return a function that does so.


def _anywhere(rng: random.Random, raw: bytes) -> bytes:
    return mutated(rng, raw)


def _head(n: int) -> Callable[[random.Random, bytes], bytes]:
    """Return a function that mostly mutates the first n bytes; the rest is weights."""

    def change(rng: random.Random, raw: bytes) -> bytes:
        cut = n if rng.randrange(8) else len(raw)
        return mutated(rng, raw[:cut]) + raw[cut:]

    return change


def _tail(n: int) -> Callable[[random.Random, bytes], bytes]:
    """Return a function that mutates the last n bytes."""
    return lambda rng, raw: raw[:-n] + mutated(rng, raw[-n:])


def _entries(rng: random.Random, raw: bytes) -> bytes:
    """Mutate an entry of a ZIP archive, drop entries, or mutate the archive itself."""
    if rng.randrange(4) == 0:
        return mutated(rng, raw) if rng.randrange(2) else _tail(600)(rng, raw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w") as new:
        infos = old.infolist()
        pickles = [info for info in infos if info.filename.endswith(".pkl")]
        target = rng.choice(pickles or infos)
        for info in infos:
            content = old.read(info)
            if info is target:
                content = _head(400)(rng, content) if not pickles else mutated(rng, content)
            elif rng.randrange(60) == 0:
                continue
            new.writestr(info, content)
    return buffer.getvalue()


def _sources() -> list[tuple[str, Path, str, Callable[[random.Random, bytes], bytes]]]:
    """Return what to mutate: a name, the folder, the file in it, and the function that mutates."""
    found: list[tuple[str, Path, str, Callable[[random.Random, bytes], bytes]]] = []
    tiny = FIXTURES / "transformers" / "tiny"
    sharded = FORMATS / "safetensors_sharded"
    found += [
        ("safetensors", tiny, "model.safetensors", _head(3000)),
        ("config", tiny, "config.json", _anywhere),
        ("shards", sharded, "model.safetensors.index.json", _anywhere),
        ("torch archive", FORMATS / "torch_zip", "pytorch_model.bin", _entries),
        ("torch legacy", FORMATS / "torch_legacy", "pytorch_model.bin", _head(2600)),
        ("torch shards", FORMATS / "torch_sharded", "pytorch_model.bin.index.json", _anywhere),
        ("nanogpt", FORMATS / "nanogpt_no_bias", "ckpt.pt", _entries),
        ("build-nanogpt", FORMATS / "build_nanogpt", "model_19072.pt", _entries),
        ("mingpt", FORMATS / "mingpt", "model.pt", _entries),
        ("mingpt's config", FORMATS / "mingpt", "config.json", _anywhere),
        ("llm.c", FORMATS / "llmc_float32", "model.bin", _head(40)),
        ("gguf", FORMATS / "gguf", "q4_0.gguf", _head(9000)),
        ("tensorflow", FORMATS / "tensorflow", "model.ckpt.index", _anywhere),
        ("tensorflow's state", FORMATS / "tensorflow", "checkpoint", _anywhere),
        ("hparams", FORMATS / "tensorflow", "hparams.json", _anywhere),
        ("torch with extras", TRAINERS / "extras_archive", "pytorch_model.bin", _entries),
        ("torch 4 with extras", TRAINERS / "extras_archive_4", "pytorch_model.bin", _entries),
        ("torch legacy with extras", TRAINERS / "extras_legacy", "pytorch_model.bin", _head(13000)),
        ("torch 1 with extras", TRAINERS / "extras_legacy_1", "pytorch_model.bin", _head(16000)),
        ("lightning", TRAINERS / "lightning", "last.ckpt", _entries),
        ("another head", TRAINERS / "GPT2DoubleHeadsModel", "model.safetensors", _head(3000)),
        ("one of a tied pair", TRAINERS / "save_model", "model.safetensors", _head(3000)),
        ("whole module", TRAINERS / "whole", "legacy.pt", _anywhere),
        ("optimizer", TRAINERS / "trainer", "optimizer.pt", _entries),
    ]
    return found


def npz_folder(folder: Path, compressed: bool) -> Path:
    """Save the weights of the smallest fixture as an .npz archive."""
    folder.mkdir()
    with open_checkpoint(FIXTURES / "transformers" / "tiny") as checkpoint:
        arrays = {name: t.read(0, t.shape[0]) for name, t in checkpoint.tensors.items()}
    save = np.savez_compressed if compressed else np.savez
    save(folder / "model.npz", **arrays, n_head=np.array(5))
    return folder


def checkpoints(rng: random.Random, work: Path) -> Iterator[tuple[str, bytes, Callable[[], None]]]:
    """Yield mutated checkpoints without end.

    Each is a name, the changed bytes, and a function that loads the checkpoint.
    """
    sources = _sources()
    for compressed in (False, True):
        folder = npz_folder(work / f"npz_{compressed}", compressed)
        sources.append(("npz", folder, "model.npz", _entries))
    copies = []
    for n, (name, folder, file, change) in enumerate(sources):
        alone = folder.name == "gguf"  # this folder has several models: copy only one
        copy = work / str(n)
        if alone:
            copy.mkdir()
            shutil.copy(folder / file, copy)
        else:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("expected.json"))
        copies.append((name, copy, copy / file, (folder / file).read_bytes(), change))
    while True:
        name, folder, path, raw, change = rng.choice(copies)
        changed = change(rng, raw)
        path.write_bytes(changed)
        target = folder if rng.randrange(2) else path
        if target.suffix == ".json" or target.name == "checkpoint":
            target = folder
        yield name, changed, partial(_load, target, deep=rng.randrange(8) == 0)
        path.write_bytes(raw)


def _load(target: Path, deep: bool) -> None:
    """Read all tensors of a checkpoint; if `deep`, also load it and generate."""
    if not deep:
        with open_checkpoint(target) as checkpoint:
            for source in checkpoint.tensors.values():
                source.read(0, source.shape[0])
        return
    # Mutated weights may be NaN.
    with suppress(gpt2c.NumericalError), GPT2.from_pretrained(target, threads=1) as model:
        model.generate([0], max_new_tokens=2)


# ---- tokenizers ----


def tokenizers(rng: random.Random, work: Path) -> Iterator[tuple[str, bytes, Callable[[], None]]]:
    """Yield mutated files of a small tokenizer with added tokens, without end.

    Each is a name, the changed bytes, and a function that uses the file.
    """
    from gpt2c.text.characters import read_meta
    from gpt2c.text.tokenizer import Tokenizer
    from gpt2c.text.tokenizer_json import JsonTokenizer, read_tokenizer_json

    warnings.simplefilter("ignore", TokenizerWarning)
    model = GPT2.from_pretrained(FORMATS / "gguf" / "f32.gguf")
    model.save_pretrained(work / "model")
    folder = work / "model"
    added = {"content": "<user>", "lstrip": True, "rstrip": False, "single_word": False}
    config = {"add_prefix_space": True, "added_tokens_decoder": {"260": added}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text('{"<user>": 260, "<pad>": 261}')
    vocab = json.loads((folder / "vocab.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0", "added_tokens": [{**added, "id": 262, "normalized": False,
                "special": True}], "pre_tokenizer": byte_level, "decoder": byte_level,
                "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"]},
            }
        )
    )  # fmt: skip
    names = ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"]
    names += ["tokenizer.json", "meta.pkl"]
    chars = dict(enumerate("the <usrpad>é\u3000😀\0"))
    meta = {"vocab_size": 16, "itos": chars, "stoi": {char: id for id, char in chars.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    raws = {name: (folder / name).read_bytes() for name in names}
    texts = ["the <user> thé", "<pad>\u3000 <user>", "😀\0", "a" * 3000, " " * 3000]

    def use(name: str, text: str) -> None:
        if name == "tokenizer.json":
            read = rng.choice((JsonTokenizer, read_tokenizer_json))
            tokenizer: Tokenizer = read(folder / name)
        elif name == "meta.pkl":
            tokenizer = read_meta(folder / name)
        else:
            tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
        for special in (True, False):
            ids = tokenizer.encode(text, special=special)
            tokenizer.decode(ids)

    while True:
        name = rng.choice(names)
        if name == "added_tokens.json":
            (folder / "tokenizer_config.json").write_bytes(b"{}")
        changed = mutated(rng, raws[name])
        (folder / name).write_bytes(changed)
        yield name, changed, partial(use, name, rng.choice(texts))
        for name in names:
            (folder / name).write_bytes(raws[name])


# ---- calls ----


def _hostile(rng: random.Random) -> Any:
    """Return an arbitrary value for an argument."""
    integers = [0, 1, -1, 2, 5, 7, 63, 2**31 - 1, 2**31, -(2**31), 2**63, 2**64, -(2**64), 10**40]
    values: list[Callable[[], Any]] = [
        lambda: rng.choice(integers),
        lambda: rng.choice([0.0, -0.0, 1.0, 0.5, -1.5, 1e308, 5e-324, float("inf"), float("nan")]),
        lambda: rng.choice([None, True, False, ..., NotImplemented, object(), int, len, {}, set()]),
        lambda: rng.choice(["", "a", "\0", "\ud800", "the king", "<|endoftext|>", "é", "left"]),
        lambda: rng.choice([b"", b"abc", bytearray(b"a"), memoryview(b"abc")]),
        lambda: [_hostile(rng) for _ in range(rng.randrange(4))],
        lambda: tuple(_hostile(rng) for _ in range(rng.randrange(3))),
        lambda: {rng.choice([1, "a", -1, 2**70, None]): _hostile(rng)},
        lambda: [rng.choice(integers) for _ in range(rng.randrange(6))],
        lambda: [rng.randrange(100) for _ in range(rng.randrange(9))],
        lambda: np.array([rng.randrange(-2, 5000) for _ in range(rng.randrange(4))]),
        lambda: np.zeros(rng.choice([(), (0,), (2,), (1, 2), (2, 0), (1, 1, 1)]),
                         dtype=rng.choice(["i1", "u8", "f4", "f8", "c8", "?", "O", "U3", "M8[s]"])),
        lambda: rng.choice([np.int64(3), np.uint8(200), np.float32(0.5), np.bool_(True),
                            np.str_("a"), np.datetime64("2020"), np.float64("nan")]),
        lambda: iter([_hostile(rng) for _ in range(rng.randrange(3))]),
        lambda: range(rng.choice([0, 1, 3, 2**40])),
        lambda: np.arange(8)[:: rng.choice([1, -1, 2])],
    ]  # fmt: skip
    return rng.choice(values)()


# Options that run the caller's code or wait are not fuzzed.
_NOT_FUZZED = {"callback", "logits_processor", "progress", "max_time"}


def api(rng: random.Random, work: Path) -> Iterator[tuple[str, bytes, Callable[[], None]]]:
    """Yield calls of a small model without end, with up to four arbitrary arguments.

    Each is the method's name, the call as text, and a function that makes the call.
    """
    from gpt2c.generate.options import CompleteOptions, GenerateOptions, StreamOptions

    model = GPT2.from_pretrained(FORMATS / "gguf" / "f32.gguf", threads=1)
    options = {
        "generate": [*GenerateOptions.__annotations__],
        "complete": [*CompleteOptions.__annotations__],
        "stream": [*StreamOptions.__annotations__], "score": ["bos", "special_tokens", "stride"],
        "perplexity": ["bos", "special_tokens", "stride"], "logits": [],
        "encode": ["special", "add_special_tokens"], "decode": [],
        "token_bytes": [], "feed": ["all"], "rollback": [],
    }  # fmt: skip

    def call(method: str, argument: Any, given: dict[str, Any]) -> None:
        session = model.session()
        owner: Any = model
        if method in ("encode", "decode", "token_bytes"):
            owner = model.tokenizer
        elif method in ("feed", "rollback"):
            owner = session
            session.feed([1, 2, 3])
        try:
            result = getattr(owner, method)(argument, **given)
            if hasattr(result, "__next__"):
                for _, _ in zip(range(5), result, strict=False):
                    pass
        except TypeError as error:
            # Python itself raises TypeError for an argument that a method lacks.
            if isinstance(error, gpt2c.Error) or "unexpected keyword" not in str(error):
                raise

    while True:
        method = rng.choice([*options])
        names = [name for name in options[method] if name not in _NOT_FUZZED]
        given = {rng.choice(names): _hostile(rng) for _ in range(rng.randrange(4) if names else 0)}
        if "max_new_tokens" in options[method]:
            given.setdefault("max_new_tokens", 2)
        argument = _hostile(rng) if rng.randrange(3) else rng.choice(["the", [1, 2], ["a", "b"]])
        shown = f"{method}({argument!r}, {given!r})".encode("utf-8", "backslashreplace")[:2000]
        yield method, shown, partial(call, method, argument, given)


# ---- running ----

KINDS = {"checkpoints": checkpoints, "tokenizers": tokenizers, "api": api}


def run(kind: str, seed: int, n_inputs: int, keep: Path | None = None) -> Counter[str]:
    """Run n_inputs inputs of a kind; return the numbers of accepted and refused ones by name.

    Raises FindingError. `keep` is a folder in which to save the input that it is about.
    """
    counts: Counter[str] = Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as work:
        cases = KINDS[kind](random.Random(seed), Path(work))
        for n in range(n_inputs):
            name, changed, call = next(cases)
            if n == 100:  # all modules are imported by now
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
            try:
                call()
                counts[f"{name}: accepted"] += 1
            except gpt2c.Error as error:
                str(error).encode("utf-8")  # the message must be printable
                counts[f"{name}: refused"] += 1
            except BaseException as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise _finding(
                    name, changed, n, keep, f"{type(error).__name__}: {error}"
                ) from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10
            if n > 100 and grown > MAX_MEMORY:
                raise _finding(name, changed, n, keep, f"{grown >> 20} MB of memory")
    return counts


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"over {MAX_SECONDS} seconds")


def _finding(name: str, changed: bytes, n: int, keep: Path | None, what: str) -> FindingError:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name.replace(' ', '_')}-{n}").write_bytes(changed)
    return FindingError(f"input {n}, {name} ({len(changed)} bytes): {what}; {changed[:300]!r}")
