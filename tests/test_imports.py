"""Imports point only downwards, as CONTRIBUTING.md draws them.

Imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

import gpt2c

ROOT = Path(gpt2c.__file__).parent

# Every folder may import these, because they import nothing above themselves.
BELOW_ALL = {
    "_version",
    "errors",
    "forks",
    "closable",
    "files",
    "living",
    "progress",
    "checks",
    "tables",
}
LOWEST = {"errors", "forks", "files"}  # of which `files` imports `forks`
PROTOCOL = {"config", "engine.protocol"}
CONTINUED = {"generate", "measure", "look"}

# folder or module -> what it may import, besides itself and BELOW_ALL
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "forks": set(),
    "closable": set(),
    "files": set(),
    "living": set(),
    "progress": set(),
    "checks": set(),
    "tables": {"checks"},
    "config": set(),
    "formats": {"config"},
    "oracle": PROTOCOL,
    "engine": {"config", "oracle"},
    "text": {"config", "formats"},
    "weights": {*PROTOCOL, "engine.select", "formats", "text"},
    "schedule": PROTOCOL,
    "generate": {*PROTOCOL, "schedule", "text"},
    "measure": {*PROTOCOL, "generate", "text"},
    "look": PROTOCOL,
    "session": {*PROTOCOL, "generate"},
    "model": {
        *PROTOCOL,
        *CONTINUED,
        "engine.threads",
        "schedule.dispatcher",
        "schedule.prefix_cache",
        "session",
        "text",
        "weights",
    },
    "scheduler": {*PROTOCOL, "generate", "model", "schedule"},
    "gen_text": {"model"},
    "word_surprisal": {*PROTOCOL, "measure", "model"},
    "pico": {"config", "generate", "model", "text", "weights"},
    "coloring": {"measure"},
    "published": {"config", "measure", "model", "oracle", "text"},
    "compat": {*PROTOCOL, "generate", "measure", "model", "schedule", "text", "weights"},
    "jobs": {"generate", "measure", "model", "text", ""},
    "serve": {"generate", "measure", "model", "scheduler", "text", ""},
    "cli": {
        *PROTOCOL,
        *CONTINUED,
        "coloring",
        "compat",
        "engine",
        "formats",
        "jobs",
        "model",
        "published",
        "serve",
        "text",
        "weights",
        "",
    },
    "__main__": {"cli"},
    # __init__.py, the public interface.
    "": {
        *CONTINUED,
        "compat",
        "config",
        "gen_text",
        "model",
        "pico",
        "scheduler",
        "session",
        "text",
        "word_surprisal",
    },
}
# Single imports that the rule would forbid, each with its reason.
EXCEPTIONS = {
    # transformers returns processed logits, which only the oracle keeps for each token.
    ("compat.transformers.hooks", "oracle.sampling"),
}
MAX_MODULES = 18  # in a folder


def modules() -> dict[str, Path]:
    """Return the file of each module, by its name without "gpt2c."."""
    found = {}
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".pyi", ".pyx"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.setdefault(".".join(p for p in parts if p != "__init__"), path)
    return found


MODULES = modules()


def python_of(path: Path) -> str:
    """Return the source of a Python file, or the Python imports of a Cython file."""
    source = path.read_text()
    if path.suffix != ".pyx":
        return source
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(("import ", "from gpt2c"))]
    taken = []
    for start in starts:
        if " cimport " in lines[start]:
            continue
        end = start
        while "(" in lines[start] and ")" not in lines[end]:
            end += 1
        taken += lines[start : end + 1]
    return "\n".join(taken)


def imports_of(path: Path) -> set[str]:
    """Return the modules of gpt2c that a file imports, without "gpt2c."."""
    found = set()
    for node in ast.walk(ast.parse(python_of(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix("gpt2c.") in MODULES else base for n in names]
        else:
            continue
        found |= {n.removeprefix("gpt2c").removeprefix(".") for n in names if n.startswith("gpt2c")}
    return found


def is_within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places if place) or (
        module == "" and "" in places
    )


def test_imports_point_downwards() -> None:
    wrong = []
    for module, path in MODULES.items():
        folder = module.split(".")[0]
        assert folder in ALLOWED, f"{module}: say in this test what it may import"
        for imported in imports_of(path):
            allowed = {folder, *BELOW_ALL, *ALLOWED[folder]} if folder else BELOW_ALL | ALLOWED[""]
            if folder in BELOW_ALL:
                allowed = {folder, *LOWEST, *ALLOWED[folder]}
            if not is_within(imported, allowed) and (module, imported) not in EXCEPTIONS:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_exceptions_are_needed() -> None:
    for module, imported in EXCEPTIONS:
        assert imported in imports_of(MODULES[module])


def test_imports_have_no_cycle() -> None:
    arrows = defaultdict(set)
    for module, path in MODULES.items():
        for imported in imports_of(path):
            # A module may import its own package: that does not count as a cycle.
            if imported in MODULES and not module.startswith(f"{imported}."):
                arrows[module].add(imported)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for imported in arrows[module]:
                visit(imported, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_folder_is_crowded() -> None:
    names = [p for p in ROOT.rglob("*.py") if p.name != "__init__.py"]
    counts = Counter(path.parent for path in names)
    assert {str(folder): n for folder, n in counts.items() if n > MAX_MODULES} == {}
