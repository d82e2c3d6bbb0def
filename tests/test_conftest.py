"""The test suite itself: it runs with SIGINT ignored, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INNER = """
import os, signal, subprocess, sys, time
from pathlib import Path

def test_that_fails(start):
    program = "print('up', flush=True); import time; time.sleep(600)"
    process = start([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\\n"
    Path("pid").write_text(str(process.pid))
    assert False

def test_ctrl_c_arrives(start):
    process = start([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]

def test_with_a_terminal(terminal):
    assert os.isatty(terminal[1])

def test_without_terminals(monkeypatch, request):
    def refuses():
        raise OSError("out of pty devices")
    monkeypatch.setattr("pty.openpty", refuses)
    request.getfixturevalue("terminal")
"""


def ignore_and_block_sigint() -> list[str]:
    """Return a command prefix that ignores and blocks SIGINT; a shell cannot block signals."""
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT});"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program]


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers delay signals")
def test_tests_run_where_sigint_is_ignored_and_leave_no_process(tmp_path):
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('ours', {str(TESTS / 'conftest.py')!r})\n"
        "ours = importlib.util.module_from_spec(spec); spec.loader.exec_module(ours)\n"
        "start, terminal = ours.start, ours.terminal\n"
    )
    (tmp_path / "test_inner.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_inner.py"]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    done = subprocess.run(
        [*ignore_and_block_sigint(), *command], cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=300, env=environment,
    )  # fmt: skip
    has_terminals = "1 failed, 2 passed, 1 skipped" in done.stdout
    assert has_terminals or "1 failed, 1 passed, 2 skipped" in done.stdout, done.stdout
    assert "no pseudo-terminals here: out of pty devices" in done.stdout
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
