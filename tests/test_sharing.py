"""Weights that processes share: from_pretrained(shared=True)."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    FIXTURES,
    ISAS,
    assert_arrays_equal,
    config_of,
    load,
    model_on,
    needs_engine,
    random_weights,
)
from golden_models import digests
from model_folders import random_folder
from test_golden_bits import RECORD
from test_sixteen_bits import CONFIG as MIXED_CONFIG
from test_sixteen_bits import mixed_weights

import gpt2c
from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.config import tensor_shapes
from gpt2c.errors import CheckpointError, FallbackWarning, SharingWarning
from gpt2c.formats.raw_file import RawFile
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.sharing import key, loading, region, registry
from gpt2c.weights.sharing.errors import SharingError

pytestmark = [
    needs_engine,
    pytest.mark.skipif(region.can_share() is not None, reason="not on this system"),
    pytest.mark.filterwarnings("error::gpt2c.SharingWarning"),
    pytest.mark.usefixtures("lists"),
]
IDS = [1, 2, 3, 4, 5]


@pytest.fixture
def folder(tmp_path) -> Path:
    return random_folder(tmp_path / "model", n_embd=36, n_layer=2)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The keys of the weights that this process makes instead of finding them."""
    keys: list[str] = []

    def make_region(model, key, names):
        keys.append(key)
        return region.make_region(model, key, names)

    monkeypatch.setattr(loading, "make_region", make_region)
    return keys


def own_files() -> list[str]:
    """Return the descriptors of this process's files of shared weights."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of listdir
            continue
    return [link for link in links if link.startswith("/memfd:gpt2c")]


def n_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:gpt2c")


def file_of(model: GPT2) -> registry.SharedFile:
    """Return the file of a model's weights."""
    (file,) = [f for f in registry._listed if f.entry is not None and not f.closed]
    return file


# ---- the same bits ----


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_golden_bits(any_isa, dtype, tmp_path, made):
    def make(isa, config, weights, dtype):
        path = tmp_path / str(len(made))
        model_on("numpy", config, weights).save_pretrained(path)
        # The weights are made with the slowest instruction set, and found with this one.
        kept = load(path, ISAS[0], dtype=dtype, shared=True)
        model = load(path, isa, dtype=dtype, shared=True, prefix_cache_bytes=0)
        kept.close()
        return model

    assert dict(digests(any_isa, dtype, make)) == RECORD[dtype]
    assert len(made) == len(RECORD[dtype]) / 2  # one for each model


@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_weights_and_drafts_are_those_of_a_model_alone(dtype, made):
    options = {"dtype": dtype, "prefix_cache_bytes": 0}
    alone = GPT2.from_pretrained(**options)
    first, second = (GPT2.from_pretrained(shared=True, **options) for _ in range(2))
    assert len(made) == 1
    draft = "packing" if dtype != "int4" else "lookup"
    expected = alone.complete(IDS, max_new_tokens=60, draft=None)
    for model in (first, second):
        assert model.fingerprint == alone.fingerprint
        np.testing.assert_array_equal(model.logits(IDS), alone.logits(IDS))
        found = model.complete(IDS, max_new_tokens=60, draft=draft, num_assistant_tokens=8)
        assert found.ids == expected.ids
    drafts = {"max_new_tokens": 60, "draft": draft, "num_assistant_tokens": 8}
    drafted = [model.complete(IDS, **drafts) for model in (alone, first, second)]
    assert len({(c.passes, c.drafted, c.accepted) for c in drafted}) == 1
    assert alone.n_bytes == first.n_bytes == second.n_bytes  # the drafts' packing included


def test_matrices_of_16_and_32_bits(tmp_path, made):
    """One matrix turns out not to fit in 16 bits, and lies outside the arena that was packed."""
    weights = mixed_weights()
    weights["h.2.mlp.c_fc.weight"][-1, -1] = 1 + 2**-20
    model_on("numpy", MIXED_CONFIG, weights).save_pretrained(tmp_path / "model")
    alone = GPT2.from_pretrained(tmp_path / "model")
    names = list(tensor_shapes(MIXED_CONFIG))
    assert alone.stored_dtype("h.2.mlp.c_fc.weight") == "float32"
    for _ in range(2):
        shared = GPT2.from_pretrained(tmp_path / "model", shared=True)
        assert {n: shared.stored_dtype(n) for n in names} == {
            n: alone.stored_dtype(n) for n in names
        }
        assert_arrays_equal({n: shared.weight(n) for n in names}, weights)
        np.testing.assert_array_equal(shared.logits(IDS), alone.logits(IDS))
        del shared
    assert len(made) == 2  # the first one was dropped


def test_save_pretrained(tmp_path):
    shared = GPT2.from_pretrained(shared=True, dtype="int8")
    shared.save_pretrained(tmp_path / "saved")
    assert GPT2.from_pretrained(tmp_path / "saved").fingerprint == shared.fingerprint


# ---- the second process ----


def test_the_second_one_reads_no_weights(folder, made, monkeypatch):
    first = GPT2.from_pretrained(folder, shared=True)
    n_read = 0

    def pread_into(self, buffer, offset, what):
        nonlocal n_read
        n_read += len(buffer)
        return read(self, buffer, offset, what)

    read = RawFile.pread_into
    monkeypatch.setattr(RawFile, "pread_into", pread_into)
    second = GPT2.from_pretrained(folder, shared=True)
    assert len(made) == 1
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    # The header, its length, and the first bytes, which say what kind of file it is.
    assert n_read <= header + 100 < os.path.getsize(folder / "model.safetensors") / 2
    np.testing.assert_array_equal(first.logits(IDS), second.logits(IDS))


def test_close_gives_the_memory_back(folder, made):
    first, second = (GPT2.from_pretrained(folder, shared=True) for _ in range(2))
    assert (len(own_files()), n_mappings()) == (2, 2)
    with first._engine.held():
        first.close()
        assert n_mappings() == 2  # a call may still use the weights
    assert (len(own_files()), n_mappings()) == (1, 1)
    second.generate(IDS, max_new_tokens=2)
    del second
    assert (len(own_files()), n_mappings()) == (0, 0)
    with GPT2.from_pretrained(folder, shared=True):
        assert len(made) == 2
    assert (len(own_files()), n_mappings()) == (0, 0)


def test_the_weights_cannot_be_written(folder):
    model = GPT2.from_pretrained(folder, shared=True, dtype="int8")
    assert not model._engine.packed("wte.weight").flags.writeable
    with pytest.raises(gpt2c.OptionError):
        model._engine.load("wpe.weight", np.zeros((1, 36), np.float32), 0)
    path = f"/proc/self/fd/{file_of(model).fileno()}"
    assert os.stat(path).st_mode & 0o777 == 0o400
    if os.geteuid() == 0:  # who may open it for writing all the same
        with open(path, "r+b", buffering=0) as file:
            for change in (
                lambda: file.write(b"x"),
                lambda: file.truncate(0),
                lambda: os.ftruncate(file.fileno(), 1 << 30),
                lambda: mmap.mmap(file.fileno(), 4096),
                lambda: fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0),
            ):
                with pytest.raises(PermissionError):
                    change()
    else:
        with pytest.raises(PermissionError), open(path, "r+b"):
            pass


# ---- the key ----


def key_of(folder: Path, dtype: str = "float32", **options: object) -> str:
    with open_checkpoint(folder, **options) as checkpoint:
        return key.key_of(checkpoint, dtype)


def test_a_file_changed_in_place_has_another_key(folder, made):
    """Of the same size, with the old modification time."""
    path = folder / "model.safetensors"
    first = GPT2.from_pretrained(folder, shared=True)
    status = path.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(0.125).tobytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    second = GPT2.from_pretrained(folder, shared=True)
    assert len(set(made)) == 2
    assert second.fingerprint == GPT2.from_pretrained(folder).fingerprint != first.fingerprint


def test_a_replaced_file_has_another_key(folder, tmp_path, made):
    first = GPT2.from_pretrained(folder, shared=True)
    other = random_folder(tmp_path / "other", n_embd=36, n_layer=2, n_inner=144)
    path = folder / "model.safetensors"
    status = path.stat()
    os.utime(other / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other / "model.safetensors", path)
    assert path.stat().st_size == status.st_size
    second = GPT2.from_pretrained(folder, shared=True)
    assert len(set(made)) == 2
    del first, second


def test_what_else_the_key_depends_on(folder, tmp_path, monkeypatch):
    keys = {key_of(folder), key_of(folder, "int8"), key_of(folder, activation="relu")}
    for module, name, value in (
        (key.version, "__version__", "0.0.1"),
        (key.version, "ARITHMETIC", 99),
        (key, "_LAYOUT", 99),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.add(key_of(folder))
    package = tmp_path / "package"
    shutil.copytree(key._PACKAGE, package, ignore=shutil.ignore_patterns("data", "models"))
    monkeypatch.setattr(key, "_PACKAGE", package)
    monkeypatch.setattr(key.version, "IMPORTED_AT", time.time_ns() + 10**9)
    keys.add(key_of(folder))
    time.sleep(0.05)
    (package / "engine" / "select.py").touch()
    keys.add(key_of(folder))
    assert len(keys) == 8
    assert key_of(folder) in keys


def test_adapters(tmp_path, made):
    """A weight, and a scale that only adapter_config.json says, are in the key too."""
    adapter = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "adapters" / "plain", adapter)
    base = FIXTURES / "adapters" / "base"
    hashes = []
    for alpha in (5, 7):
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": alpha}))
        for given in (None, adapter, [(adapter, 0.5)]):
            models = [GPT2.from_pretrained(base, adapter=given, shared=True) for _ in range(2)]
            alone = GPT2.from_pretrained(base, adapter=given)
            assert {model.fingerprint for model in models} == {alone.fingerprint}
            hashes.append(alone.fingerprint)
    assert len(set(made)) == len(set(hashes)) == 5


def test_code_that_was_changed_after_the_import(folder, monkeypatch):
    monkeypatch.setattr(key.version, "IMPORTED_AT", 0)
    with pytest.warns(SharingWarning, match=r"\.py was changed after this process imported gpt2c"):
        GPT2.from_pretrained(folder, shared=True)


class FileOfTime:
    """A file with a given change time, in nanoseconds."""

    path = Path("weights")

    def __init__(self, changed_at: int) -> None:
        self.changed_at = changed_at

    def identity(self) -> tuple[int, int, int, int, int]:
        return 1, 2, 3, 4, self.changed_at


@pytest.mark.parametrize(("fraction", "seconds"), [(123, 0.3), (0, 1.5)])
def test_new_files_are_not_trusted(monkeypatch, fraction, seconds):
    """A change in the same tick of a clock would go unseen; some clocks count in seconds."""
    monkeypatch.setattr(key, "_TICK", 3 * 10**8)
    monkeypatch.setattr(key, "_LONG_TICK", 15 * 10**8)
    begin = time.time_ns()
    changed_at = begin // 10**9 * 10**9 + fraction
    checkpoint = type("Files", (), {"files": [FileOfTime(1), FileOfTime(changed_at)]})
    key.wait_for_old_files(checkpoint)
    assert time.time_ns() >= changed_at + seconds * 10**9


@pytest.mark.parametrize("changed_at", [0, -5, (int(time.time()) + 3600) * 10**9])
def test_times_that_cannot_be_right(changed_at):
    checkpoint = type("Files", (), {"files": [FileOfTime(changed_at)]})
    with pytest.raises(SharingError, match="weights has a change time"):
        key.wait_for_old_files(checkpoint)


def test_a_file_that_changes_while_it_is_read(folder, monkeypatch):
    def fill(*arguments):
        os.chmod(folder / "model.safetensors", 0o644 + time.time_ns() % 2)  # changes only its ctime
        return filled(*arguments)

    filled = loading.fill
    time.sleep(0.05)
    monkeypatch.setattr(loading, "fill", fill)
    with pytest.warns(SharingWarning, match="were changed meanwhile"):
        GPT2.from_pretrained(folder, shared=True)
    monkeypatch.setattr(
        loading, "fill", lambda *_: os.utime(folder / "model.safetensors", ns=(5, 5))
    )
    with pytest.raises(CheckpointError, match="changed while it was read"):
        GPT2.from_pretrained(folder, shared=True)


# ---- where weights cannot be shared ----


def refuse(error):
    def refused(*_, **__):
        raise type(error)(*error.args)  # a new one, whose traceback keeps no file open

    return refused


@pytest.mark.parametrize(
    ("owner", "name", "error", "message"),
    [
        (os, "memfd_create", OSError(38, "Function not implemented"), "not implemented"),
        (os, "truncate", OSError(28, "No space left on device"), "No space left"),
        (fcntl, "fcntl", OSError(16, "Device or resource busy"), "busy"),
        (os, "mkdir", PermissionError(13, "Permission denied"), "Permission denied"),
        (fcntl, "lockf", OSError(37, "No locks available"), "No locks"),
        (loading, "attach", SharingError("it does not fit"), "it does not fit"),
        (loading, "make_region", MemoryError("no memory"), "no memory"),
    ],
)
def test_a_system_that_refuses(folder, monkeypatch, owner, name, error, message):
    monkeypatch.setattr(owner, name, refuse(error))
    with pytest.warns(SharingWarning, match=f"not shared with other processes: .*{message}") as got:
        model = GPT2.from_pretrained(folder, shared=True)
    assert got[0].filename == __file__
    monkeypatch.undo()
    np.testing.assert_array_equal(model.logits(IDS), GPT2.from_pretrained(folder).logits(IDS))
    assert own_files() == []


def test_systems_without_sealed_memory(folder, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.warns(SharingWarning, match="this Python lacks os.memfd_create"):
        GPT2.from_pretrained(folder, shared=True)


def test_numpy(folder):
    with pytest.warns(SharingWarning, match="this needs the compiled engine"):
        model = GPT2.from_pretrained(folder, backend="numpy", shared=True)
    expected = GPT2.from_pretrained(folder, backend="numpy").logits(IDS)
    np.testing.assert_array_equal(model.logits(IDS), expected)


@pytest.mark.usefixtures("no_engine", "no_preferences")
def test_no_engine(folder):
    with pytest.warns((SharingWarning, FallbackWarning)) as got:
        GPT2.from_pretrained(folder, shared=True)
    assert [w.category for w in got] == [FallbackWarning, SharingWarning]


def test_arrays(monkeypatch):
    config = config_of()
    with pytest.warns(SharingWarning, match="they come from arrays"):
        model_on(ISAS[-1], config, random_weights(config), shared=True)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_shared_must_be_a_bool(value):
    with pytest.raises(gpt2c.OptionTypeError, match="shared"):
        GPT2.from_pretrained(shared=value)


def test_a_checkpoint_that_cannot_be_loaded(folder, lists):
    """Its error is that of loading, and the next process does not wait for a lock."""
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-4] + np.float32(np.nan).tobytes())
    for _ in range(2):
        with pytest.raises(CheckpointError, match="expected finite numbers"):
            GPT2.from_pretrained(folder, shared=True)
    assert own_files() == []


# ---- commands ----


def test_the_commands_option(folder, lists, made, capsys):
    kept = GPT2.from_pretrained(folder, shared=True)
    main(["info", "--model", str(folder), "--shared"])
    assert len(made) == 1
    main(["info", "--model", str(folder)])
    assert len(list(lists.iterdir())) == 1
    kept.close()


def test_the_servers_option(folder):
    from gpt2c.cli.main import make_parser
    from gpt2c.cli.serve.models import model_sources

    options = make_parser().parse_args(["serve", "--model", str(folder), "--shared"])
    assert model_sources(options)[0].options["shared"] is True
