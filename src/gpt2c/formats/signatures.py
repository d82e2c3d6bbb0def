"""How files of each format begin, or end: by this they are told apart."""

from __future__ import annotations

from typing import Final

ZIP: Final = b"PK\x03\x04"
PICKLE: Final = b"\x80"
# torch.save's magic number from before archives begins like this in protocols 0 and 1.
OLD_PICKLE: Final = b"L11954703"
TORCH: Final = (ZIP, PICKLE, OLD_PICKLE)  # a ZIP archive may be NumPy's instead
GGUF: Final = b"GGUF"
LLMC: Final = (20240326).to_bytes(4, "little")
BUNDLE_END: Final = (0xDB4775248B80FB57).to_bytes(8, "little")  # of TensorFlow's index
SAFETENSORS_NINTH: Final = b"{"  # the first byte of the header, behind its length
