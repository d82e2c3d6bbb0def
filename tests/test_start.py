"""What a fresh process imports, so that its first token comes early."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import gpt2c

# Modules that `import gpt2c` and a first text must not import -> who needs them.
NOT_AT_START = {
    "asyncio": "only event loops and the scheduler",
    "difflib": "only messages about unknown names",
    "importlib.metadata": "nothing: the version is in _version.py",
    "shutil": "only saving",
    "ssl": "only asyncio and the hub",
    "subprocess": "only asyncio",
    "tempfile": "only saving",
    "tqdm": "only progress bars",
    "tokenizers": "only tokenizers that are not byte-level BPE",
    "safetensors": "only saving: gpt2c reads the format itself",
    "huggingface_hub": "only names on the hub",
    "torch": "only from_transformers",
    "transformers": "only from_transformers",
    "gpt2c.cli": "only the command line",
    "gpt2c.coloring": "only coloured texts",
    "gpt2c.compat": "only from_transformers",
    "gpt2c.look": "only probing",
    "gpt2c.measure": "only scores",
    "gpt2c.oracle": "only the NumPy backend",
    "gpt2c.engine.numpy_engine": "only the NumPy backend",
    "gpt2c.schedule.beams": "only beam search",
    "gpt2c.schedule.searching": "only beam search",
    "gpt2c.schedule.runner": "only the scheduler",
    "gpt2c.scheduler": "only the scheduler",
    "gpt2c.tables": "only the command line and results as tables",
    "gpt2c.weights.checkpoint.gguf": "only GGUF files, like the other loaders",
    "gpt2c.weights.checkpoint.openai": "only OpenAI's files",
}
# A first text by ids must not import these either; a prompt that is a text may.
NOT_FOR_IDS = {
    "tiktoken": "only encoding texts",
    "concurrent.futures": "only tiktoken and asyncio",
}

LOAD = "model = gpt2c.GPT2.from_pretrained(backend='c')\n"
PROGRAMS = {  # what follows `import gpt2c`
    "import": "",
    "stream ids": LOAD + "next(model.stream([1, 2]))",
    "generate ids": LOAD + "model.generate([1, 2], max_new_tokens=1)",
    "generate a text": LOAD + "model.generate('A', max_new_tokens=1)",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_first_text_imports_nothing_that_it_does_not_need(program: str) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import numpy; before = set(sys.modules)\n"  # gpt2c cannot choose what NumPy imports
        f"import gpt2c\n{PROGRAMS[program]}\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forbidden = NOT_AT_START if "text" in program else NOT_AT_START | NOT_FOR_IDS
    imported = done.stdout.split()
    assert [name for name in forbidden if name in imported] == []
    assert ("gpt2c.engine._engine" in imported) == (program != "import")


@pytest.mark.parametrize("option", ["--version", "--help", "generate --help", "completion zsh"])
def test_help_version_and_completion_need_no_other_package(option: str) -> None:
    """The build makes the man page in an environment without them."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "sys.modules.update(dict.fromkeys(('numpy', 'tiktoken', 'safetensors')))\n"
        "from gpt2c.cli.main import main\n"
        f"main({option.split()!r})\n"
    )
    if option.startswith("completion"):
        pytest.importorskip("shtab")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_are_imported_lazily_are_public() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import gpt2c\n"
        "assert set(gpt2c.__all__) <= set(dir(gpt2c))\n"
        "before = set(sys.modules)\n"
        "assert gpt2c.scheduler.Token and 'gpt2c.scheduler' not in before\n"
        "from gpt2c import *\n"
        "from gpt2c import coloring, pico\n"
        "assert Scheduler is gpt2c.Scheduler is gpt2c.scheduler.Scheduler\n"
        "assert coloring.spans and pico.gpt2 and 'gpt2c.pico' not in before\n"
        "assert Score is gpt2c.Score is gpt2c.measure.scores.Score\n"
        "assert from_transformers is gpt2c.compat.transformers.from_transformers\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "call", ["model.generate('A', max_new_tokens=1)", "model.score([1, 2])", "gpt2c.Scheduler"]
)
def test_a_fork_waits_for_an_import_at_first_use(call: str) -> None:
    """A child forked while another thread imports could never import that module."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import builtins, gpt2c, os, threading, time\n"
        "model = gpt2c.GPT2.from_pretrained()\n"
        "original, begun = builtins.__import__, threading.Event()\n"
        "def slow(name, *args, **kwargs):\n"
        "    if threading.current_thread() is not threading.main_thread():\n"
        "        begun.set()\n"
        "        time.sleep(0.02)\n"
        "    return original(name, *args, **kwargs)\n"
        "builtins.__import__ = slow\n"
        f"threading.Thread(target=lambda: {call}).start()\n"
        "assert begun.wait(60)\n"
        "if os.fork() == 0:\n"
        f"    {call}\n"
        "    os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gpt2c' has no attribute 'Sceduler'"):
        gpt2c.Sceduler  # type: ignore[attr-defined]  # noqa: B018
