"""Names files of weights in formats that gpt2c does not read, and how to convert each today."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gpt2c.errors import CheckpointError

# In transformers 4.57, from_pretrained(..., from_tf=True) and from_flax=True fail, because they
# create the model without memory. The functions that they call work.
_OLD_TRANSFORMERS: Final = (
    "transformers 5 no longer reads it, so convert it with transformers 4 (pip install "
    "'transformers<5' torch {packages}): model = GPT2LMHeadModel(GPT2Config.from_pretrained("
    "folder)); transformers.{function}(model, {weights}).save_pretrained(new_folder)"
)
_TENSORFLOW: Final = _OLD_TRANSFORMERS.format(
    packages="tensorflow tf-keras",
    function="modeling_tf_pytorch_utils.load_tf2_model_in_pytorch_model",
    weights="TFGPT2LMHeadModel.from_pretrained(folder), allow_missing_keys=True",
)
_FLAX: Final = _OLD_TRANSFORMERS.format(
    packages="flax",
    function="modeling_flax_pytorch_utils.load_flax_weights_in_pytorch_model",
    weights="FlaxGPT2LMHeadModel.from_pretrained(folder).params",
)
_GGML: Final = (
    "llama.cpp no longer reads it either: convert the model that it was made from, with "
    "convert_hf_to_gguf.py of llama.cpp, or load that model itself"
)
_ONNX: Final = "load the model that it was exported from"
_RUST: Final = (
    "load the model that it was made from (pytorch_model.bin), or convert it with torch: state = "
    "{name.replace('|', '.'): value for name, value in torch.jit.load(path).named_parameters()}, "
    "then torch.save(state, 'pytorch_model.bin') beside a config.json"
)

# The first bytes of a file -> what it is, and what to do.
_BEGINNINGS: Final[Mapping[bytes, tuple[str, str]]] = {
    b"\x89HDF\r\n\x1a\n": ("a file of Keras (HDF5), such as tf_model.h5", _TENSORFLOW),
    b"lmgg": ("a ggml file from before GGUF", _GGML),
    b"fmgg": ("a ggml file from before GGUF (ggmf)", _GGML),
    b"tjgg": ("a ggml file from before GGUF (ggjt)", _GGML),
}
# The end of a file's name -> the same, for formats without a signature.
_ENDINGS: Final[Mapping[str, tuple[str, str]]] = {
    ".h5": ("a file of Keras (HDF5)", _TENSORFLOW),
    ".msgpack": ("a file of Flax", _FLAX),
    ".onnx": ("an ONNX graph", _ONNX),
    ".onnx_data": ("the weights of an ONNX graph", _ONNX),
    ".ot": ("a file of rust-bert (tch)", _RUST),
}
# The value of "format" in the metadata of a safetensors file -> the same.
_FORMATS: Final[Mapping[str, tuple[str, str]]] = {
    "tf": ("weights of TensorFlow in safetensors", _TENSORFLOW),
    "flax": ("weights of Flax in safetensors", _FLAX),
}


def foreign_format(name: str, head: bytes = b"") -> str | None:
    """Return what a file of this name and these first bytes is, and what to do; None if unknown."""
    for beginning, (what, advice) in _BEGINNINGS.items():
        if head.startswith(beginning):
            return f"is {what}, which gpt2c does not read: {advice}"
    for ending, (what, advice) in _ENDINGS.items():
        if name.lower().endswith(ending):
            return f"is {what}, which gpt2c does not read: {advice}"
    return None


def check_format(where: str, metadata: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise CheckpointError for a safetensors file of TensorFlow or Flax.

    transformers wrote both with GPT-2's weights under names of their own. Other tools may write
    "tf" or "flax" beside torch's names, which are read.
    """
    known = _FORMATS.get(metadata.get("format", ""))
    if known is not None and any("/" in name or name.endswith(".kernel") for name in names):
        what, advice = known
        raise CheckpointError(f"{where}: holds {what}, which gpt2c does not read: {advice}")
