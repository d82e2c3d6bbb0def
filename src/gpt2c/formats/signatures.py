"""Magic numbers: the bytes that identify a file's format."""

from __future__ import annotations

from typing import Final

# At the beginning of a file.
ZIP: Final = b"PK\x03\x04"
PICKLE: Final = b"\x80"
OLD_PICKLE: Final = b"L11954703"  # torch.save's magic number, pickled with protocol 0 or 1
TORCH: Final = (ZIP, PICKLE, OLD_PICKLE)  # a ZIP archive may also be a .npz file of NumPy
GGUF: Final = b"GGUF"
LLMC: Final = (20240326).to_bytes(4, "little")
SAFETENSORS_NINTH: Final = b"{"  # only the ninth byte, where the JSON header begins
# At the end of a TensorFlow checkpoint's index.
BUNDLE_END: Final = (0xDB4775248B80FB57).to_bytes(8, "little")
