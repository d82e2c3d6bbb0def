"""The models that the options of ``gpt2c serve`` name."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from gpt2c.cli.options import weighted_adapters
from gpt2c.errors import OptionError

if TYPE_CHECKING:
    from gpt2c.serve.models import ModelSource


def model_sources(options: argparse.Namespace) -> list[ModelSource]:
    """Return the models of --model, --alias, --dtype and others. Raises OptionError."""
    from gpt2c.serve.models import ModelSource, default_name

    paths: dict[str, str | None] = {}
    for given in options.model or [None]:
        name, path = _named(given, default_name)
        if name in paths:
            raise OptionError(f"two models have the name {name!r}; use --model NAME=MODEL")
        paths[name] = path
    aliases = [_pair("alias", given, paths) for given in options.alias]
    dtypes = dict.fromkeys(paths, "auto")
    for given in options.dtype:
        if "=" in given:
            dtype, name = _pair("dtype", "=".join(reversed(given.split("=", 1))), paths)
            dtypes[name] = dtype
        else:
            dtypes.update(dict.fromkeys(paths, given))
    common: dict[str, Any] = {
        "threads": options.threads, "backend": options.backend, "tokenizer": options.tokenizer,
        "kv_cache_bytes": _cache_bytes(options.kv_cache_bytes, len(paths)),
        "activation": options.activation, "hparams": options.hparams, "shared": options.shared,
    }  # fmt: skip
    if options.prefix_cache_bytes is not None:
        common["prefix_cache_bytes"] = options.prefix_cache_bytes
    return [
        ModelSource(
            name, path, tuple(alias for alias, of in aliases if of == name),
            {**common, "dtype": dtypes[name], "adapter": _adapters(options, name, paths)},
            None if options.draft == "none" else options.draft,
        )
        for name, path in paths.items()
    ]  # fmt: skip


def _named(given: str | None, default_name: Any) -> tuple[str, str | None]:
    """Return the name and the path of --model; a path that exists may have a = in it."""
    if given is not None and "=" in given and not os.path.exists(given):
        name, _, path = given.partition("=")
        return name, path
    return default_name(given), given


def _adapters(
    options: argparse.Namespace, model: str, models: Any
) -> list[tuple[str, float]] | None:
    """Return the adapters of --adapter for a model: those that name it or no model."""
    texts = []
    for given in options.adapter or ():
        name, separator, rest = given.partition("=")
        is_named = separator and name in models and not os.path.lexists(given)
        if not is_named or name == model:
            texts.append(rest if is_named else given)
    return weighted_adapters(texts)


def _pair(option: str, given: str, models: Any) -> tuple[str, str]:
    """Return the parts of X=NAME, where NAME must be a model's name."""
    first, separator, name = given.partition("=")
    if not separator or not first or name not in models:
        known = ", ".join(models)
        raise OptionError(f"{option}: {given!r} names no model; the models are {known}")
    return first, name


def _cache_bytes(given: int | None, n_models: int) -> int | None:
    """Return the limit of each model's KV cache; None is the default for one model."""
    if given is not None or n_models == 1:
        return given
    from gpt2c.engine.memory import usable_memory

    usable = usable_memory()
    return None if usable is None else usable // (2 * n_models)
