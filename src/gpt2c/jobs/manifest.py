"""The manifest of a job: what its results depend on, and at the end what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final, TypeAlias

import gpt2c
from gpt2c.checks.untrusted import parse_json, show
from gpt2c.errors import OptionError, TableError
from gpt2c.jobs.folder import Folder
from gpt2c.jobs.task import Task
from gpt2c.model import GPT2
from gpt2c.text.tokenizer import MissingTokenizer

NAME: Final = "manifest.json"
VERSION: Final = 1  # of the form of a job's folder

# A value that JSON holds.
Json: TypeAlias = Any
Facts: TypeAlias = "dict[str, Json]"


def model_facts(model: GPT2, task: Task, name: str | None) -> Facts:
    """Return what a job's results depend on in a model. Reads all weights. Raises ClosedError."""
    facts: Facts = {
        "name": name or "tales",
        "sha256": model.fingerprint,
        "tokenizer_sha256": _tokenizer_hash(model),
        "dtype": model.dtype,
        # All instruction sets give the same bits.
        "backend": "numpy" if model.backend == "numpy" else "c",
        "arithmetic": gpt2c.ARITHMETIC,
    }
    if task.kind == "generate":
        facts["generation_defaults"] = {
            key: value if isinstance(value, str | int | float | bool | list) else repr(value)
            for key, value in sorted(model.generation_defaults.items())
        }
    return facts


def _tokenizer_hash(model: GPT2) -> str | None:
    """Return the SHA-256 of a line for each token: its bytes in hexadecimal digits."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, MissingTokenizer):
        return None
    lines = (tokenizer.token_bytes(id).hex() for id in range(tokenizer.n_vocab))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def task_facts(task: Task) -> Facts:
    """Return a task as JSON holds it."""
    facts = asdict(task)
    facts["options"] = dict(sorted(task.options.items()))
    plain: Facts = json.loads(json.dumps(facts))
    return plain


def read_manifest(folder: Folder) -> Facts | None:
    """Return the manifest of a folder; None if a new job may begin there.

    Raises OptionError if the folder has other files, and TableError if its manifest is damaged.
    """
    raw = folder.read(NAME)
    if raw is None:
        others = folder.names()
        if others:
            raise OptionError(
                f"{folder.name} has files, such as {show(others[0])}, and no {NAME}: it is no "
                "folder of a job; name a new one"
            )
        return None
    try:
        found: Json = parse_json(raw)
    except ValueError as error:
        raise TableError(f"{folder.name}/{NAME} {error}; name a new folder") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise TableError(
            f"{folder.name}/{NAME}: expected a manifest of version {VERSION}, which this gpt2c "
            "writes; name a new folder"
        )
    return found


def write_manifest(folder: Folder, facts: Facts) -> None:
    """Write the manifest. Raises OSError."""
    folder.write(NAME, (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode())


def check_same(folder: Folder, old: Facts, new: Facts) -> None:
    """Raise OptionError, which names each difference, unless a job is the one in the folder."""
    kept = ("gpt2c", "version", "task", "output", "model", "inputs")
    changes = [
        change
        for key in kept
        for change in _differences(_compared(old, key), _compared(new, key), key)
    ]
    if changes:
        more = f", and {len(changes) - 4} more" if len(changes) > 4 else ""
        raise OptionError(
            f"{folder.name} holds another job: {'; '.join(changes[:4])}{more}. Name a new folder, "
            "or give what the job began with"
        )


def _compared(facts: Facts, key: str) -> Json:
    """Return a part of a manifest without what may differ: times, and the model's name."""
    part = facts.get(key)
    if key == "inputs" and isinstance(part, list):
        return {
            str(item["name"]): {
                k: v
                for k, v in item.items()
                if k != "name" and (k != "modified" or item.get("sha256") is None)
            }
            for item in part
        }
    if key == "model" and isinstance(part, dict):
        return {k: v for k, v in part.items() if k != "name"}
    return part


def _differences(old: Json, new: Json, name: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            path = f"{name} {key}" if name == "inputs" else f"{name}.{key}"
            if key not in new:
                yield f"{path} was {show(old[key], 60)}, and is not given now"
            elif key not in old:
                yield f"{path} was not given, and is {show(new[key], 60)}"
            else:
                yield from _differences(old[key], new[key], path)
    elif old != new:
        yield f"{name} was {show(old, 70)}, and is {show(new, 70)}"
