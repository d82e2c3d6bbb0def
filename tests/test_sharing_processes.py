"""Shared weights and several processes: crashes, hostile files, forks, and the last user."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import cases, needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import random_folder

from gpt2c import GPT2
from gpt2c.errors import SharingWarning
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.sharing import key, region, registry
from gpt2c.weights.sharing.region import read_region
from gpt2c.weights.sharing.registry import SharedFile, opened

pytestmark = [
    needs_engine,
    pytest.mark.skipif(region.can_share() is not None, reason="not on this system"),
    pytest.mark.filterwarnings("error::gpt2c.SharingWarning"),
    pytest.mark.usefixtures("lists"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # fork with threads
]
IDS = [1, 2, 3, 4, 5]
NAMES = ["wte.weight"]

# A process: loads the model, prints the inode of its weights and a hash of its logits, and waits.
# `{before}` is code that runs before.
PROGRAM = """
import hashlib, os, signal, sys, threading, time, warnings
warnings.simplefilter("error")
import gpt2c
from gpt2c.weights.sharing import key, loading, region, registry
key._TICK = 0
{before}
model = gpt2c.GPT2.from_pretrained(sys.argv[1], shared=True)
(file,) = registry._listed
digest = hashlib.sha256(model.logits([1, 2, 3, 4, 5]).tobytes()).hexdigest()
print(os.fstat(file.fileno()).st_ino, digest, flush=True)
{after}
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return random_folder(tmp_path / "model", n_embd=36, n_layer=2)


@pytest.fixture
def digest(folder) -> str:
    """A hash of the logits of a model with weights of its own."""
    return hashlib.sha256(GPT2.from_pretrained(folder).logits(IDS).tobytes()).hexdigest()


@pytest.fixture
def run(start, folder):
    """Start PROGRAM."""

    def run(before: str = "", after: str = "") -> subprocess.Popen[str]:
        program = PROGRAM.format(before=before, after=after)
        return start(
            [sys.executable, "-c", program, folder], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    return run


def answer(process: subprocess.Popen[str]) -> list[str]:
    """Return [inode, digest] as a process prints them."""
    assert process.stdout
    return process.stdout.readline().split()


def kill(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def users() -> Iterator[str]:
    """Yield the files of shared weights that any process has open or mapped: their inodes."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for line in (process / "maps").read_text().splitlines():
                if "/memfd:gpt2c" in line:
                    yield line.split()[4]
            for file in (process / "fd").iterdir():
                if os.readlink(file).startswith("/memfd:gpt2c"):
                    yield str(file.stat().st_ino)
        except (OSError, IndexError):  # the process ended meanwhile
            continue


# ---- many processes ----


def test_processes_at_once(run, digest):
    processes = [run() for _ in range(6)]
    inodes, digests = zip(*map(answer, processes), strict=True)
    assert set(digests) == {digest}
    assert len(set(inodes)) == 1
    # The maker goes, and the weights stay for those that come later.
    kill(*processes[:5])
    assert answer(run()) == [inodes[0], digest]


def test_when_the_last_process_is_killed_nothing_is_left(run, digest, lists, tmp_path):
    processes = [run() for _ in range(3)]
    (inode,) = {answer(process)[0] for process in processes}
    assert inode in set(users())
    kill(*processes)
    assert inode not in set(users())
    (entry,) = lists.iterdir()
    # Whoever next makes other weights deletes the list.
    GPT2.from_pretrained(random_folder(tmp_path / "other"), shared=True)
    assert entry not in set(lists.iterdir())


def test_a_list_in_use_is_not_deleted(run, digest, lists, tmp_path):
    process = run()
    answered = answer(process)
    GPT2.from_pretrained(random_folder(tmp_path / "other"), shared=True)
    assert len(list(lists.iterdir())) == 2
    assert answer(run()) == answered


# ---- crashes ----

# Where the maker is killed: the function that never returns, or never begins.
MOMENTS = {
    "before the list is locked": "registry._locked = die",
    "with the list locked": "registry._holders = die",
    "before loading": "loading.fill = die",
    "while it loads": "loading.new_model = after(2, loading.new_model)",
    "before it makes the file": "os.memfd_create = die",
    "with an empty file": "os.truncate = die",
    "before the weights": "os.pwrite = after(0, os.pwrite)",
    "while it moves the weights": """
def make_region(model, *arguments):
    print("dying", flush=True)
    threading.Thread(target=lambda: (time.sleep(DELAY), kill()), daemon=True).start()
    region.make_region(model, *arguments)
    kill()
loading.make_region = make_region""",
    "before the seals": "__import__('fcntl').fcntl = die",
    "before the weights are listed": "registry._line_of = die",
    "while the list is written": "os.pwrite = after(1, os.pwrite)",
    "with a list of garbage": "os.truncate = after(1, os.truncate)",
    "right after it is listed": "registry.Entry.add = after(0, registry.Entry.add)",
}
KILLERS = """
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
def die(*_, **__):
    print("dying", flush=True)
    time.sleep(0.5)  # another process begins to wait
    kill()
def after(n, function):
    calls = []
    def replaced(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(1)
        if len(calls) > n:
            die()
        return result
    return replaced
DELAY = {delay}
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_maker_is_killed(run, digest, moment):
    maker = run(KILLERS.format(delay=random.Random(moment).random() / 500) + MOMENTS[moment])
    assert answer(maker) == ["dying"]
    waiting = run()  # mostly waits for the maker's lock
    assert answer(maker) == []
    assert maker.wait() == -signal.SIGKILL
    first = answer(waiting)
    assert first[1] == digest
    assert answer(run()) == first
    kill(waiting)


@pytest.mark.slow
def test_kills_at_random_moments(run, digest):
    """Each process gets the right weights, whichever others began or were killed before it."""
    rng = random.Random(5)
    living: list[subprocess.Popen[str]] = []
    for _ in range(cases(40)):
        living += [run(), run()]
        time.sleep(rng.uniform(0.2, 0.8))  # about as long as a process takes to start and load
        for _ in range(rng.choice([1, 2, 2])):
            kill(living.pop(rng.randrange(len(living))))
    for process in living:
        assert answer(process)[1] == digest
    kill(*living)
    assert answer(run())[1] == digest


def test_a_maker_that_stands_still(run, folder, digest, monkeypatch):
    """Others wait for it; when they give up, they load weights of their own."""
    before = "loading.fill = lambda *_: (print('loading', flush=True), time.sleep(600))"
    maker = run(before)
    assert answer(maker) == ["loading"]
    os.kill(maker.pid, signal.SIGSTOP)
    monkeypatch.setattr(registry, "_MAX_WAIT", 0.5)
    with pytest.warns(SharingWarning, match="another process has been making them"):
        model = GPT2.from_pretrained(folder, shared=True)
    assert hashlib.sha256(model.logits(IDS).tobytes()).hexdigest() == digest
    waiting = run()
    time.sleep(0.5)
    assert waiting.poll() is None
    kill(maker)
    assert answer(waiting)[1] == digest


# ---- forks ----


def test_a_child_keeps_the_weights_when_its_parent_ends(run, digest):
    after = """
if child := os.fork():
    print(child, flush=True)
    os._exit(0)
model.logits([1, 2, 3])
print("child", flush=True)
"""
    parent = run(after=after)
    inode, found = answer(parent)
    assert found == digest
    answers = [answer(parent), answer(parent)]
    answers.remove(["child"])
    assert parent.wait() == 0
    assert answer(run()) == [inode, digest]
    os.kill(int(answers[0][0]), signal.SIGKILL)


def test_a_fork_while_the_weights_are_made(run, digest):
    """The child must not keep the file writable, or it could not be sealed."""
    before = """
def make_region(model, *arguments):
    move = model.move_to
    class Forking:
        def __getattr__(self, name):
            return getattr(model, name)
        def move_to(self, *arguments):
            stop = threading.Event()
            def fork():
                while not stop.is_set():
                    if os.fork() == 0:
                        time.sleep(1)
                        os._exit(0)
            thread = threading.Thread(target=fork)
            thread.start()
            move(*arguments)
            stop.set()
            thread.join()
    return region.make_region(Forking(), *arguments)
loading.make_region = make_region
warnings.simplefilter("ignore", DeprecationWarning)
"""
    assert answer(run(before))[1] == digest


# ---- hostile files ----


def hostile_folder(path: Path, kind: str) -> None:
    other = path.with_name("other")
    if kind == "link":
        other.mkdir(mode=0o700)
        path.symlink_to(other)
    elif kind == "file":
        path.write_text("")
        path.chmod(0o700)
    elif kind == "open to others":
        path.mkdir()
        path.chmod(0o711)
    else:
        path.mkdir(mode=0o700)
        os.chown(path, 12345, -1)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


@pytest.mark.parametrize(
    "kind", ["link", "file", "open to others", pytest.param("of another user", marks=as_root)]
)
def test_a_hostile_folder(folder, lists, kind):
    hostile_folder(lists, kind)
    with pytest.warns(SharingWarning, match="must be a folder that only this user"):
        GPT2.from_pretrained(folder, shared=True).logits(IDS)
    assert not lists.is_dir() or not list(lists.iterdir())


def hostile_entry(path: Path, kind: str) -> None:
    target = path.with_name("target")
    if kind == "link":
        target.write_text("precious")
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir()
    elif kind == "open to others":
        path.touch()
        path.chmod(0o622)
    else:
        path.touch(mode=0o600)
        os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    "kind",
    ["link", "pipe", "folder", "open to others", pytest.param("of another user", marks=as_root)],
)
def test_a_hostile_list(folder, lists, kind):
    GPT2.from_pretrained(folder, shared=True)
    (path,) = lists.iterdir()
    path.unlink()
    hostile_entry(path, kind)
    with pytest.warns(SharingWarning):
        GPT2.from_pretrained(folder, shared=True).logits(IDS)
    if kind == "link":
        assert path.with_name("target").read_text() == "precious"
    # It does not disturb other models either.
    GPT2.from_pretrained(shared=True)
    assert path.lstat()


@pytest.fixture
def hostile_files(tmp_path) -> Iterator[dict[str, int]]:
    """Descriptors that a list may name."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "file").write_bytes(bytes(8192))
    files = {
        "pipe": os.open(tmp_path / "pipe", os.O_RDWR),
        "device": os.open("/dev/zero", os.O_RDONLY),
        "folder": os.open(tmp_path, os.O_RDONLY),
        "file on disk": os.open(tmp_path / "file", os.O_RDONLY),
        "empty memory": os.memfd_create("gpt2c", os.MFD_ALLOW_SEALING),
        "not sealed": copy_with(lambda raw: raw, seal=False),
    }
    yield files
    for descriptor in files.values():
        os.close(descriptor)


def whole_file(name: str = "tiny") -> bytes:
    """Return a small valid file with the key "key"."""
    values = {"key": "key", "dtypes": {}, "weights": [4096, 100], "draft": [8192, 50]}
    return file_with(values)


def file_with(values: object) -> bytes:
    header = json.dumps(values).encode()
    prefix = region._PREFIX.pack(region._MAGIC, len(header), hashlib.sha256(header).digest())
    return (prefix + header).ljust(12288, b"\1")


def copy_with(change, seal: bool = True) -> int:
    descriptor = os.memfd_create("gpt2c", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(descriptor, change(whole_file()))
    if seal:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, region._seals())
    return descriptor


def file_at(descriptor: int) -> SharedFile:
    file = opened(SharedFile, f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    return file


def test_lists_that_name_hostile_files(folder, lists, digest, hostile_files):
    GPT2.from_pretrained(folder, shared=True)
    (path,) = lists.iterdir()
    lines = b""
    for descriptor in hostile_files.values():
        inode = os.fstat(descriptor).st_ino
        lines += b"%d %d %d\n" % (os.getpid(), descriptor, inode)
    lines += b"1 1 1\n0 0 0\n4294967296 5 6\n9999999999 1 2\n\xff\0 garbage\n" + b"7" * 70000
    path.write_bytes(lines)
    first, second = (GPT2.from_pretrained(folder, shared=True) for _ in range(2))
    assert hashlib.sha256(second.logits(IDS).tobytes()).hexdigest() == digest
    assert len({os.fstat(f.fileno()).st_ino for f in registry._listed}) == 1
    del first


HEADER = {"key": "key", "dtypes": {}, "weights": [4096, 100], "draft": [8192, 50]}


def test_a_valid_header():
    found = read_region(file_at(copy_with(lambda raw: raw)), "key", NAMES)
    assert found == region.Region(12288, {}, (4096, 100), (8192, 50))
    assert read_region(file_at(copy_with(lambda raw: raw)), "other key", NAMES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": "another"},
        {"key": None},
        {"dtypes": []},
        {"dtypes": {"unknown.weight": "float16"}},
        {"dtypes": {"wte.weight": "int8"}},
        {"dtypes": {"wte.weight": []}},
        {"weights": [4096, 8193]},
        {"weights": [4097, 100]},
        {"weights": [-4096, 100]},
        {"weights": [4096, -1]},
        {"weights": [4096, 2**70]},
        {"weights": [4096, 100.0]},
        {"weights": [4096, True]},
        {"weights": [4096]},
        {"weights": "4096"},
        {"draft": None},
        {"draft": [12288, 1]},
    ],
)
def test_a_header_with_wrong_values(change):
    raw = file_with({**HEADER, **change})
    assert read_region(file_at(copy_with(lambda _: raw)), "key", NAMES) is None


@settings(max_examples=cases(300))
@given(
    at=st.integers(0, 300), value=st.integers(0, 255), length=st.sampled_from([None, 0, 7, 48, 200])
)
def test_a_damaged_header(at, value, length):
    """It is found to be damaged, or it was changed where nothing is."""
    whole = whole_file()
    raw = whole[:at] + bytes([value]) + whole[at + 1 :]
    used = region._PREFIX.size + len(json.dumps(HEADER))
    found = read_region(file_at(copy_with(lambda _: raw[:length])), "key", NAMES)
    is_whole = raw[:used] == whole[:used] and length is None
    assert (found is not None) == is_whole


def test_a_file_that_does_not_fit_the_model(folder, lists):
    """Its key is right and its sizes are not: only a program that means harm makes such a file."""
    with open_checkpoint(folder) as checkpoint:
        name = key.key_of(checkpoint, "float32")
    raw = file_with({**HEADER, "key": name})
    file = file_at(copy_with(lambda _: raw))
    lists.mkdir(mode=0o700)
    with registry.locked_entry(name) as entry:
        entry.add(file)
    with pytest.warns(SharingWarning, match="rejected the arguments"):
        GPT2.from_pretrained(folder, shared=True).logits(IDS)


@as_root
def test_a_file_of_another_user(folder, lists):
    """Root could open it, but does not trust it."""
    descriptor = copy_with(lambda raw: raw)
    os.fchown(descriptor, 12345, -1)
    inode = os.fstat(descriptor).st_ino
    lists.mkdir(mode=0o700)
    with registry.locked_entry("key") as entry:
        entry.file.write(b"%d %d %d\n" % (os.getpid(), descriptor, inode))
        assert entry.find(lambda file: True) is None
    os.close(descriptor)


def test_the_lists_are_private(folder, lists):
    old = os.umask(0)
    try:
        GPT2.from_pretrained(folder, shared=True)
    finally:
        os.umask(old)
    (path,) = lists.iterdir()
    assert stat.filemode(lists.stat().st_mode) == "drwx------"
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
