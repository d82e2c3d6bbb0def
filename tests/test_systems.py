"""What differs on Windows and other systems, simulated here: calls that do not exist, console
encodings, waits that Ctrl-C cannot interrupt, and files that cannot be replaced while open."""

from __future__ import annotations

import ast
import errno
import io
import json
import ntpath
import os
import subprocess
import sys
import threading
from ctypes import sizeof
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, config_of, model_on, random_weights

import gpt2c
from gpt2c import files, session
from gpt2c.cli import console
from gpt2c.cli.main import main
from gpt2c.engine.windows import JobLimits, MemoryStatus, ProcessMemory
from gpt2c.formats.raw_file import RawFile
from gpt2c.weights.checkpoint import open_checkpoint
from gpt2c.weights.checkpoint.shared.shards import read_index
from gpt2c.weights.hub import is_hub_name

PACKAGE = Path(gpt2c.__file__).parent

# Names that Python lacks on Windows, according to the documentation of os and signal; without
# sendfile, which shutil looked for when it was imported.
MISSING_IN_OS = """
    chown chroot confstr ctermid fchdir fchown fdatasync fork forkpty fstatvfs getegid
    geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid
    initgroups killpg lchown lockf major mkfifo mknod nice openpty pathconf pipe2
    posix_fadvise posix_fallocate posix_openpt posix_spawn pread preadv pwrite pwritev
    register_at_fork sched_getaffinity sched_setaffinity sched_yield setsid setuid statvfs
    sync sysconf tcgetpgrp ttyname uname wait wait3 wait4 waitid O_CLOEXEC O_DIRECTORY
    O_NOFOLLOW O_NONBLOCK
"""
MISSING_IN_SIGNAL = """
    SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP SIGTSTP
    SIGUSR1 SIGUSR2 alarm getitimer pause pthread_kill pthread_sigmask setitimer
    siginterrupt sigpending sigwait
"""
MISSING_MODULES = ["fcntl", "grp", "pwd", "pty", "resource", "termios", "tty"]

# Other libraries ask for the system's name rather than for each call, so they are imported first.
WITHOUT_POSIX = f"""
import asyncio, os, shutil, signal, subprocess, sys, tempfile
import numpy, safetensors.numpy, tiktoken
for module, names in ((os, {MISSING_IN_OS!r}), (signal, {MISSING_IN_SIGNAL!r})):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in {MISSING_MODULES}:
    sys.modules[name] = None  # importing it now raises ImportError
"""

EVERYTHING = """
import importlib, pkgutil, tempfile
import gpt2c
from gpt2c.cli.main import main
for module in pkgutil.walk_packages(gpt2c.__path__, "gpt2c."):
    if module.name != "gpt2c.__main__":
        try:
            importlib.import_module(module.name)
        except gpt2c.MissingDependencyError:
            pass  # of an extra that is not installed
backend, folder = sys.argv[1:]
model = gpt2c.GPT2.from_pretrained(backend=backend)
text = model.generate("Once upon a time", max_new_tokens=6)
assert list(model.stream("Once upon a time", max_new_tokens=2))
assert gpt2c.Scheduler(model).add("Once", max_new_tokens=2).result().new
model.save_pretrained(folder)
with gpt2c.GPT2.from_pretrained(folder, backend=backend) as again:
    assert again.generate("Once upon a time", max_new_tokens=6) == text
    again.save_pretrained(folder)  # replaces the files
assert main(["score", os.path.join(folder, "few.txt"), "--lines", "--backend", backend,
             "--html", os.path.join(folder, "page.html")]) == 0
print(text)
"""


@pytest.mark.parametrize("backend", sorted({"numpy" if b == "numpy" else "c" for b in BACKENDS}))
def test_everything_works_without_posix_calls(backend, start, tmp_path):
    program = WITHOUT_POSIX + EVERYTHING
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "few.txt").write_text("One day\nTwo days\n")
    arguments = [sys.executable, "-c", program, backend, str(tmp_path / "m")]
    process = start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    with gpt2c.GPT2.from_pretrained(backend=backend) as model:
        assert output == model.generate("Once upon a time", max_new_tokens=6) + "\n"


# ---- reading ----


def test_threads_share_a_file_without_preadv(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    content = np.random.default_rng(0).bytes(1 << 20)
    (tmp_path / "file").write_bytes(content)
    file = RawFile(tmp_path / "file")
    wrong = []

    def read(seed: int) -> None:
        for offset in np.random.default_rng(seed).integers(0, len(content) - 4096, 2000).tolist():
            if file.pread(4096, offset, "bytes") != content[offset : offset + 4096]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    assert not wrong


def test_a_stream_of_a_file_has_its_own_position(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    file = RawFile(tmp_path / "file")
    first, second = file.stream(), file.stream()
    assert (first.read(4), second.read(2), first.read()) == (b"0123", b"01", b"456789")
    assert (second.seek(-3, os.SEEK_END), second.read(9), second.read()) == (7, b"789", b"")
    file.close()


# ---- paths ----


@pytest.mark.parametrize(
    ("path", "expected"),  # from Microsoft's "Maximum Path Length Limitation"
    [
        (r"D:\very\long", r"\\?\D:\very\long"),
        ("D:/very/long", r"\\?\D:\very\long"),
        (r"\\server\share\file", r"\\?\UNC\server\share\file"),
        (r"\\?\D:\very\long", r"\\?\D:\very\long"),
        (r"\\?\UNC\server\share\x", r"\\?\UNC\server\share\x"),
    ],
)
def test_a_long_path_of_windows_begins_verbatim(path, expected):
    assert files.verbatim_windows_path(path) == expected


def test_only_long_paths_of_windows_change(monkeypatch):
    long, short = Path("D:\\" + 99 * r"abc\\" + "x"), Path("D:\\x")
    assert files.long_path(long) == long
    monkeypatch.setattr(files, "IS_WINDOWS", True)
    monkeypatch.setattr(os.path, "abspath", ntpath.normpath)
    assert files.long_path(short) == short
    assert str(files.long_path(long)).startswith("\\\\?\\D:\\abc\\")


@pytest.mark.parametrize("name", [r"user\model", r"C:\model", "C:model", "model:stream", "//h/s"])
def test_paths_of_windows_are_no_names_on_the_hub(name):
    assert not is_hub_name(name)


@pytest.mark.parametrize("name", ["C:model", "model.safetensors:x", r"..\model", r"\\h\s\m"])
def test_an_index_cannot_lead_to_another_folder_of_windows(name, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(gpt2c.CheckpointError, match="expected a name in the same folder"):
        read_index(tmp_path, "index.json")


# ---- replacing ----


def refuse(monkeypatch, n_times: int, name: str | None = None) -> list[Path]:
    """Let os.replace raise PermissionError n times for files of this name; return its targets."""
    replace, targets = os.replace, []

    def refusing_replace(source: Path, target: Path) -> None:
        if (name is None or target.name == name) and targets.count(target) < n_times:
            targets.append(target)
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing_replace)
    return targets


def test_windows_tries_again_to_replace_a_file_that_is_open(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    targets = refuse(monkeypatch, 2)
    with pytest.raises(PermissionError):  # no other system opens files in a way that prevents it
        files.replace_file(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(files, "IS_WINDOWS", True)
    files.replace_file(tmp_path / "new", tmp_path / "old")
    assert len(targets) == 2
    assert (tmp_path / "old").read_text() == "new"


def test_replacing_a_file_that_stays_open_fails(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    monkeypatch.setattr(files, "IS_WINDOWS", True)
    monkeypatch.setattr(files, "_REPLACING_SECONDS", 0.1)
    refuse(monkeypatch, 1_000_000)
    with pytest.raises(PermissionError):
        files.replace_file(tmp_path / "new", tmp_path / "old")


def test_saving_replaces_nothing_if_the_weights_are_open(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    first, second = (config_of(n_layer=n_layer) for n_layer in (1, 2))
    model_on("numpy", first, random_weights(first)).save_pretrained(folder)
    refuse(monkeypatch, 1_000_000, "model.safetensors")
    with pytest.raises(gpt2c.CheckpointError, match="cannot be written"):
        model_on("numpy", second, random_weights(second)).save_pretrained(folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.n_layer == 1


# ---- waiting ----


class WindowsLock:
    """An RLock that fails where Windows would wait for it without an end."""

    def __init__(self) -> None:
        self.lock, self.interrupts_next = threading.RLock(), False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        acquired = self.lock.acquire(blocking, timeout if 0 <= timeout <= 1 else 0)
        if self.interrupts_next:
            raise KeyboardInterrupt
        assert acquired or 0 <= timeout <= 1, "waits without an end"
        return acquired

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def is_free(self) -> bool:
        found = []
        thread = threading.Thread(target=lambda: found.append(self.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return found[0]


def windows_session(monkeypatch) -> tuple[session.Session, WindowsLock]:
    monkeypatch.setattr(session, "IS_WINDOWS", True)
    lock = WindowsLock()
    monkeypatch.setattr(session, "RLock", lambda: lock)
    config = config_of()
    return model_on("numpy", config, random_weights(config)).session(), lock


def test_a_session_waits_for_another_thread_in_slices(monkeypatch):
    shared, lock = windows_session(monkeypatch)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.lock:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    threading.Timer(0.3, release.set).start()
    shared.feed([1])
    holder.join()
    assert shared.ids == [1]


def test_ctrl_c_just_after_waiting_for_a_session_leaves_it_free(monkeypatch):
    shared, lock = windows_session(monkeypatch)
    lock.interrupts_next = True
    with pytest.raises(KeyboardInterrupt):
        shared.feed([1])
    assert lock.is_free


# ---- the command's output ----


def windows_stdout(monkeypatch, **options) -> io.BytesIO:
    """Make standard output what it is on Windows if it is a pipe."""
    raw = io.BytesIO()
    monkeypatch.setattr(console, "IS_WINDOWS", True)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    stream = io.TextIOWrapper(raw, **{"encoding": "cp1252", "newline": "\r\n", **options})
    monkeypatch.setattr(sys, "stdout", stream)
    return raw


def test_files_and_pipes_of_windows_get_utf_8_with_lf(monkeypatch):
    raw = windows_stdout(monkeypatch)
    arguments = ["generate", "Liebe 猫", "-n", "1", "--echo", "--backend", "numpy"]
    assert main(arguments) == 0
    sys.stdout.flush()
    assert raw.getvalue().startswith("Liebe 猫".encode())
    assert raw.getvalue().endswith(b"\n")
    assert not raw.getvalue().endswith(b"\r\n")


def test_a_chosen_encoding_of_windows_stays(monkeypatch):
    raw = windows_stdout(monkeypatch)
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    console.prepare_stdout()
    print("Märchen 猫", flush=True)
    assert raw.getvalue() == b"M\xe4rchen ?\n"


def test_a_pipe_that_its_reader_closed_on_windows(monkeypatch):
    class ClosedPipe(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    windows_stdout(monkeypatch)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(ClosedPipe(), encoding="utf-8"))
    discarded = []
    monkeypatch.setattr(console, "discard_stdout", lambda: discarded.append(True))
    assert main(["info", "--backend", "numpy"]) == 141
    assert discarded


def test_an_error_of_a_file_is_no_closed_pipe(monkeypatch):
    monkeypatch.setattr(console, "IS_WINDOWS", True)
    assert not console.is_closed_pipe(OSError(errno.EINVAL, "Invalid argument", "name"))
    assert not console.is_closed_pipe(OSError(errno.ENOSPC, "No space left on device"))


def test_the_command_runs_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as in pythonw.exe
    assert main(["info", "--backend", "numpy"]) == 0


# ---- what Windows says ----


def test_structures_have_the_layout_of_windows():
    # From the headers of mingw-w64 for x86-64 and AArch64: sizeof and offsetof.
    assert (sizeof(MemoryStatus), MemoryStatus.physical.offset) == (64, 8)
    assert (sizeof(ProcessMemory), ProcessMemory.peak_resident.offset) == (72, 8)
    assert (sizeof(JobLimits), JobLimits.flags.offset) == (144, 16)
    assert (JobLimits.process_memory.offset, JobLimits.job_memory.offset) == (112, 120)


# ---- texts ----


def calls_in(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def writes_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [a.value for a in (*call.args, *(k.value for k in call.keywords))
             if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
    is_open = name in ("open", "fdopen", "NamedTemporaryFile")
    return name == "write_text" or (
        is_open and any(set(m) <= set("rwaxbt+") and set(m) & set("wax+") and "b" not in m
                        for m in modes if m)
    )  # fmt: skip


def test_the_check_of_line_ends_sees_text_that_is_written():
    source = (
        "open(f, 'w'); open(f); open(f, 'wb'); f.open(mode='a'); f.write_text(t); f.read_text()"
    )
    tree = ast.parse(source)
    found = [writes_text(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert sum(found) == 3


def test_files_have_the_same_line_ends_on_every_system():
    """Without newline=, Windows writes CRLF. Ruff checks that an encoding is given."""
    without = [
        f"{path.name}:{call.lineno}"
        for path in PACKAGE.rglob("*.py")
        for call in calls_in(path)
        if writes_text(call) and "newline" not in [keyword.arg for keyword in call.keywords]
    ]
    assert not without
