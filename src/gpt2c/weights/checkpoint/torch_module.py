"""A model that transformers has loaded, as a checkpoint: its parameters are read where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpt2c.checks.untrusted import show
from gpt2c.config import GPT2Config
from gpt2c.errors import CheckpointError
from gpt2c.formats.tensors import check_rows
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, merged
from gpt2c.weights.checkpoint.names import bare_name

_WHERE: Final = "the transformers model"
_DTYPES: Final[Mapping[str, str]] = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}


@dataclass(frozen=True, eq=False)
class ParameterSource:
    """A TensorSource over a parameter of a torch module, on any device."""

    name: str
    parameter: Any  # torch.nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's own."""
        return tuple(self.parameter.shape)

    @property
    def dtype(self) -> str:
        """F64, F32, F16 or BF16; what is none of these keeps torch's name, and is refused by it."""
        return _DTYPES.get(str(self.parameter.dtype), str(self.parameter.dtype))

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        rows = self.parameter.detach()[begin:end].cpu().float().numpy()
        return np.array(rows, dtype=np.float32, order="C")  # numpy() is torch's own memory


def from_module(module: Any) -> Checkpoint:
    """A checkpoint over the parameters of a transformers GPT2LMHeadModel, for ids alone.

    The head is tied where it is the embedding's very parameter, whatever the configuration says.
    There is no end token: what ends a text is an option of generate there.

    Raises ConfigError for a model that gpt2c does not compute; CheckpointError for parameters that
    are not GPT-2's, such as an adapter's, that are no floats, or that were not loaded.
    """
    config = GPT2Config.from_dict(module.config.to_dict(), f"{_WHERE}'s config")
    wanted = []
    # A parameter that is there twice, as a tied head is, comes once.
    for stored, parameter in module.named_parameters():
        if parameter.is_meta:
            raise CheckpointError(
                f"{_WHERE}: {show(stored)} is on the device 'meta', expected its values: load the "
                "model without offloading, or move it to the CPU first"
            )
        name = bare_name(stored)
        wanted.append((stored, ParameterSource(name, parameter)))
    found = merged(wanted, _WHERE)
    config = replace(
        config,
        tie_word_embeddings="lm_head.weight" not in found,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Checkpoint(config, checked_tensors(config, found, _WHERE))
