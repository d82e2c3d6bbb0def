"""Checkpoints over the parameters of a model that transformers has loaded."""

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
from gpt2c.weights.checkpoint.checkpoint import Checkpoint, checked_tensors, sources_by_name
from gpt2c.weights.checkpoint.shared.names import bare_name

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
        """The parameter's shape."""
        return tuple(self.parameter.shape)

    @property
    def dtype(self) -> str:
        """F64, F32, F16 or BF16; any other keeps torch's name, which later checks reject."""
        return _DTYPES.get(str(self.parameter.dtype), str(self.parameter.dtype))

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """See TensorSource."""
        check_rows(self, begin, end)
        rows = self.parameter.detach()[begin:end].cpu().float().numpy()
        return np.array(rows, dtype=np.float32, order="C")  # numpy() shares torch's memory


def from_module(module: Any) -> Checkpoint:
    """Return a checkpoint over the parameters of a transformers GPT2LMHeadModel.

    The head is tied if it is the same parameter as the embedding, whatever the configuration says.
    The checkpoint has no EOS token, because in transformers EOS is an option of ``generate``.

    Raises ConfigError for a model that gpt2c does not support; CheckpointError for parameters that
    are not GPT-2's (such as an adapter's), not floats, or not loaded.
    """
    config = GPT2Config.from_dict(module.config.to_dict(), f"{_WHERE}'s config")
    parameters = []
    # named_parameters lists a parameter with two names, such as a tied head, only once.
    for stored, parameter in module.named_parameters():
        if parameter.is_meta:
            raise CheckpointError(
                f"{_WHERE}: {show(stored)} is on the device 'meta', which has no values: load the "
                "model without offloading, or move it to the CPU first"
            )
        parameters.append((stored, ParameterSource(bare_name(stored), parameter)))
    found = sources_by_name(parameters, _WHERE)
    config = replace(
        config,
        tie_word_embeddings="lm_head.weight" not in found,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Checkpoint(config, checked_tensors(config, found, _WHERE))
