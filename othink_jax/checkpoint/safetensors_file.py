"""Writing a safetensors file tensor by tensor.

The library's own writer takes all tensors of a file at once, up to 5 GB of them. The format
(https://github.com/huggingface/safetensors#format) is a length, a JSON header, and the bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from othink_jax.checkpoint.keymap import Entry
from othink_jax.checkpoint.tensors import Tensors

# The dtypes that weights may have, by their names in a header.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes, of the first tensor


def write(file: Path, entries: Sequence[Entry], tensors: Tensors) -> None:
    """Write these tensors, in the hub's names and layout, each as soon as it is read."""
    # The widest first, so that each is aligned to its own size whatever precedes it.
    ordered = sorted(entries, key=lambda entry: -tensors.dtypes[entry].itemsize)
    header = _header(ordered, tensors)
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little"))
        out.write(header)
        for entry, tensor in zip(ordered, tensors.read(ordered), strict=True):
            out.write(np.ascontiguousarray(entry.to_hub(tensor)).view(np.uint8).data)


def _header(entries: Sequence[Entry], tensors: Tensors) -> bytes:
    # transformers wants to know which framework's layout the file has: torch's.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + tensors.nbytes(entry)
        header[entry.name] = {
            "dtype": _NAMES[tensors.dtypes[entry]],
            "shape": entry.hub_shape,
            "data_offsets": (begin, end),
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)
