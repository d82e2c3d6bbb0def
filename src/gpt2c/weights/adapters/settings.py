"""Reads peft's adapter_config.json: what of it gpt2c honours, ignores and refuses."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpt2c.checks.options import is_integer
from gpt2c.checks.untrusted import read_json_object, show, show_list
from gpt2c.errors import CheckpointError
from gpt2c.weights.adapters.patterns import Pattern, PatternError

_log = logging.getLogger(__name__)

ADAPTER_CONFIG: Final = "adapter_config.json"
MERGE_WITH_PEFT: Final = (
    "merge it with peft (PeftModel.from_pretrained(base, folder).merge_and_unload(), then "
    "save_pretrained) and load the result"
)
_MAX_CONFIG: Final = 4 << 20  # bytes
_MAX_RANK: Final = 2**20
_MAX_ALPHA: Final = 1e9
_MAX_STATES: Final = 10_000  # of all patterns together; a name without operators counts as one
_MAX_COST: Final = 4_000_000  # states times modules: matching takes some seconds

# Keys that can be ignored: they concern training, initialisation, or how peft runs an adapter. For
# fan_in_fan_out and bias, the kind of module and the tensors in the file decide, as in peft.
_HARMLESS_KEYS: Final = """
    auto_mapping base_model_name_or_path revision peft_type peft_version task_type inference_mode
    lora_dropout fan_in_fan_out bias eva_config corda_config lora_ga_config loftq_config
    velora_config megatron_core qalora_group_size runtime_config merge_weights
"""
_HONOURED_KEYS: Final = """
    r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules
    layers_to_transform layers_pattern modules_to_save ensure_weight_tying init_lora_weights
"""
# Keys that change what an adapter computes, and what they turn on.
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "lora_bias": "a bias of lora_B",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained rows of the embedding",
    "target_parameters": "LoRA of single parameters",
    "layer_replication": "replicated layers",
    "arrow_config": "Arrow's routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's layers",
    "enable_lora": "LoRA of parts of a matrix",
}
# Initialisations that changed the weights of the base model: the adapter fits only those.
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LINEAR: Final = ("c_attn", "c_proj", "c_fc")  # what peft calls "all-linear" in GPT-2
_DEFAULT_TARGETS: Final = ("c_attn",)  # peft's own for GPT-2
_NAME: Final = re.compile(r"[\w.-]+", re.ASCII)


class NameTest:
    """A regular expression of a file inside one of peft's own, which must match a whole name."""

    def __init__(self, text: str, before: str, after: str) -> None:
        """`text` comes from the file. Raises PatternError."""
        whole = f"{before}{text}{after}"
        if _NAME.fullmatch(text):
            # Python's `re` takes little time here: the only * is in peft's own part.
            self._matches = re.compile(whole).fullmatch
            self.cost = 1
        else:
            Pattern(text)  # it must be a pattern by itself, with balanced parentheses
            pattern = Pattern(whole)
            self._matches = pattern.fullmatch  # type: ignore[assignment]
            self.cost = pattern.n_states

    def __call__(self, name: str) -> bool:
        """Return whether the pattern matches a module's name."""
        return bool(self._matches(name))


@dataclass(frozen=True)
class Settings:
    """The settings of a LoRA adapter. Modules have peft's names: "transformer.h.0.attn.c_attn"."""

    path: Path  # of adapter_config.json
    base: str | None  # the base model's name, which only messages use
    rank: int
    alpha: float
    uses_rslora: bool
    ranks: tuple[tuple[NameTest, int], ...]  # the first test that matches counts
    alphas: tuple[tuple[NameTest, float], ...]
    targets: tuple[str, ...] | NameTest
    excluded: tuple[str, ...] | NameTest
    layers: frozenset[int]  # empty: all
    layer_tests: tuple[NameTest, ...]
    saved: tuple[str, ...]  # modules_to_save
    ensures_tying: bool

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return next((rank for matches, rank in self.ranks if matches(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of B A: alpha / r, or alpha / sqrt(r) if rank-stabilised."""
        alpha = next((alpha for matches, alpha in self.alphas if matches(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.uses_rslora else rank)

    def is_target(self, module: str) -> bool:
        """Return whether peft adds LoRA to a module, which must be a matrix."""
        if _is_in(self.excluded, module) or self._is_part_of_saved(module):
            return False
        if isinstance(self.targets, NameTest) or module in self.targets:
            return _is_in(self.targets, module)
        return _is_in(self.targets, module) and self._is_in_layers(module)

    def is_saved(self, module: str) -> bool:
        """Return whether the file has a whole copy of a module, made by modules_to_save."""
        return any(module.endswith(name) for name in self.saved)

    def check_cost(self, n_modules: int) -> None:
        """Raise CheckpointError if to match this many modules could take over some seconds."""
        tests = [test for test, _ in (*self.ranks, *self.alphas)] + [*self.layer_tests]
        cost = sum(test.cost for test in tests) + len(self.saved)
        for which in (self.targets, self.excluded):
            cost += which.cost if isinstance(which, NameTest) else len(which)
        if cost * n_modules > _MAX_COST:
            raise CheckpointError(
                f"{self.path}: found {len(tests)} patterns for {n_modules} modules, which are too "
                "many or too long to match"
            )

    def _is_part_of_saved(self, module: str) -> bool:
        return any(f".{name}." in f".{module}." for name in self.saved)

    def _is_in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        parts = module.split(".")
        # Without a pattern, peft looks for the number of a layer after two parts of the name.
        first = 0 if self.layer_tests else 2
        index = next((int(part) for part in parts[first:-1] if part.isdigit()), None)
        if self.layer_tests and not any(matches(module) for matches in self.layer_tests):
            index = None
        return index in self.layers


def _is_in(names: tuple[str, ...] | NameTest, module: str) -> bool:
    if isinstance(names, NameTest):
        return names(module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_settings(path: Path) -> Settings:
    """Read an adapter_config.json.

    Unknown keys that seem not to matter are ignored with a warning in the log.

    Raises CheckpointNotFoundError, or CheckpointError for another kind of adapter, an unsupported
    option, and wrong values.
    """
    values = read_json_object(path, limit=_MAX_CONFIG, error=CheckpointError)
    _check_kind(values, path)
    reader = _Reader(values, path)
    layers = values.get("layers_to_transform")
    base = values.get("base_model_name_or_path")
    return Settings(
        path=path,
        base=base if isinstance(base, str) else None,
        rank=reader.rank("r", values.get("r", 8)),
        alpha=reader.number("lora_alpha", values.get("lora_alpha", 8)),
        uses_rslora=reader.flag("use_rslora"),
        ranks=tuple(
            (test, reader.rank(key, v)) for test, key, v in reader.patterns("rank_pattern")
        ),
        alphas=tuple(
            (test, reader.number(key, v)) for test, key, v in reader.patterns("alpha_pattern")
        ),
        targets=reader.modules("target_modules", _DEFAULT_TARGETS),
        excluded=reader.modules("exclude_modules", ()),
        layers=reader.layers(layers if isinstance(layers, list) else [layers]),
        layer_tests=reader.layer_tests(),
        saved=reader.names("modules_to_save"),
        ensures_tying=reader.flag("ensure_weight_tying"),
    )


def _check_kind(values: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for settings of other kinds of adapters than plain LoRA."""
    kind = values.get("peft_type")
    if kind != "LORA":
        found = f"the peft_type {show(kind)}" if kind is not None else "no peft_type"
        raise CheckpointError(
            f"{path}: found {found}, expected 'LORA', the only kind of adapter that gpt2c merges; "
            f"{MERGE_WITH_PEFT}"
        )
    for key, what in _UNSUPPORTED.items():
        if values.get(key):
            raise CheckpointError(
                f"{path}: {key} is {show(values[key], 60)}: {what} is not supported; "
                f"{MERGE_WITH_PEFT}"
            )
    initialisation = values.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {show(initialisation)}, which changed the base model's "
            "own weights before the training, so the adapter does not fit the original: save it "
            "with peft's path_initial_model_for_weight_conversion, or merge it with peft"
        )
    known = {*_HARMLESS_KEYS.split(), *_HONOURED_KEYS.split(), *_UNSUPPORTED}
    unknown = [key for key in values if key not in known and values[key]]
    for key in unknown:
        value = values[key]
        if (key.startswith("use_") and value is True) or isinstance(value, dict):
            raise CheckpointError(
                f"{path}: found the unknown option {show(key)}, which is {show(value, 60)} and may "
                f"change what the adapter computes; {MERGE_WITH_PEFT}"
            )
    if unknown:
        _log.warning("%s: unknown keys are ignored: %s", path, show_list(sorted(unknown)))


@dataclass
class _Reader:
    """Checks values of an adapter_config.json."""

    values: Mapping[str, Any]
    path: Path
    cost: int = 0  # of the patterns so far

    def wrong(self, key: str, found: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key} is {show(found)}, expected {expected}")

    def rank(self, key: str, value: object) -> int:
        if not is_integer(value) or not 1 <= value <= _MAX_RANK:  # type: ignore[operator]
            raise self.wrong(key, value, f"an integer from 1 to {_MAX_RANK}")
        return int(value)  # type: ignore[call-overload, no-any-return]

    def number(self, key: str, value: object) -> float:
        is_number = is_integer(value) or isinstance(value, float)
        if not is_number or not abs(value) <= _MAX_ALPHA:  # type: ignore[arg-type]
            raise self.wrong(key, value, f"a number of at most {_MAX_ALPHA:g}")
        return float(value)  # type: ignore[arg-type]

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return bool(value)

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names of modules; empty if the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, value, "a list of names of modules")
        for name in value:
            if not _NAME.fullmatch(name):
                raise self.wrong(key, value, "names of modules, without other characters")
        return tuple(value)

    def modules(self, key: str, default: tuple[str, ...]) -> tuple[str, ...] | NameTest:
        """Return a list of names, or the test of a pattern."""
        value = self.values.get(key)
        if value is None:
            return default
        if value == "all-linear":
            return _LINEAR
        return self.test(key, value, "", "") if isinstance(value, str) else self.names(key)

    def test(self, key: str, text: str, before: str, after: str) -> NameTest:
        try:
            test = NameTest(text, before, after)
        except PatternError as reason:
            raise CheckpointError(
                f"{self.path}: {key}: the pattern {show(text)} {reason}"
            ) from None
        self.cost += test.cost
        if self.cost > _MAX_STATES:
            raise CheckpointError(f"{self.path}: {key}: found too many or too long patterns")
        return test

    def patterns(self, key: str) -> list[tuple[NameTest, str, object]]:
        """Return a test, a name for messages and the value of each pattern of a dict."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object from patterns to numbers")
        return [
            (self.test(key, text, r"(.*\.)?(", ")$"), f"{key}[{show(text, 60)}]", number)
            for text, number in value.items()
        ]

    def layers(self, found: list[Any]) -> frozenset[int]:
        key = "layers_to_transform"
        if found == [None]:
            return frozenset()
        if not all(is_integer(index) for index in found):
            raise self.wrong(key, self.values.get(key), "an integer or a list of integers")
        return frozenset(map(int, found))

    def layer_tests(self) -> tuple[NameTest, ...]:
        key = "layers_pattern"
        value = self.values.get(key) or []
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.wrong(key, value, "a pattern or a list of patterns")
        if any("|" in text for text in texts):  # peft puts no group around the pattern
            raise self.wrong(key, value, "a pattern without |")
        return tuple(self.test(key, text, r"(?:^|.*\.)", r"\.\d+\..*") for text in texts)
