"""Reading and writing a safetensors file tensor by tensor, and parts of tensors.

The safetensors library reads only from disk, and its writer takes all tensors of a file at once, up
to 5 GB. The format (https://github.com/huggingface/safetensors#format) is a length, a JSON header,
and the bytes.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from othink_jax.checkpoint.keymap import plain_name
from othink_jax.checkpoint.tensors import Index, Tensors
from othink_jax.errors import UserError
from othink_jax.families import Entry

# The dtypes that weights may have, by their names in a header.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes, of the first tensor
_LENGTH = 8  # bytes of the field that holds the header's length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file."""

    file: Path
    stored_name: str  # name in the file
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it
    begin: int  # offset of its first byte in the file

    @property
    def name(self) -> str:
        """See `plain_name`."""
        return plain_name(self.stored_name)


def read_header(file: Path) -> list[Stored]:
    """The tensors of a file, in the order of their bytes.

    Raises:
      UserError: it is no safetensors file, or it is truncated.
    """
    try:
        with file.open("rb") as content:
            size = content.seek(0, os.SEEK_END)
            content.seek(0)
            length = int.from_bytes(content.read(_LENGTH), "little")
            begin = _LENGTH + length
            if begin > size:
                raise ValueError(f"its header is {length} bytes long, and the file {size}")
            header = json.loads(content.read(length))
            header.pop("__metadata__", None)
            spans = sorted((_span(about), name) for name, about in header.items())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    found = []
    for (first, last), name in spans:
        # Tensors are contiguous, up to the end of the file.
        if first + _LENGTH + length != begin:
            raise UserError(f"{file} is damaged: the bytes of {name} overlap, or have a gap")
        about = header[name]
        found.append(
            Stored(
                file=file,
                stored_name=name,
                shape=tuple(about["shape"]),
                dtype=about["dtype"],
                begin=begin,
            )
        )
        begin += last - first
    if begin != size:
        raise UserError(f"{file} is damaged: it has {size} bytes, and its header tells of {begin}")
    return found


def _span(about: Any) -> tuple[int, int]:
    """Begin and end offset of a tensor; raises one of several errors for a broken header."""
    first, last = about["data_offsets"]
    counts = (first, last, *about["shape"])
    if not all(type(count) is int and count >= 0 for count in counts) or last < first:
        raise ValueError("its header is no header")
    dtype = DTYPES.get(about["dtype"])
    if dtype is not None and last - first != math.prod(about["shape"]) * dtype.itemsize:
        raise ValueError("a tensor's bytes do not fit its shape")
    return first, last


def read(tensor: Stored, shape: tuple[int, ...], index: Index) -> Shaped[np.ndarray, "..."]:
    """Read an index of a tensor, viewed as an array of `shape` with as many elements.

    Only the rows that the index selects are read from the file.

    Raises:
      UserError: the file was truncated after its header was read.
    """
    rows, *rest = index or (slice(None),)
    start, stop, _ = rows.indices(shape[0])
    found = np.empty((stop - start, *shape[1:]), DTYPES[tensor.dtype])
    row = math.prod(shape[1:]) * found.itemsize
    with tensor.file.open("rb") as content:
        content.seek(tensor.begin + start * row)
        if content.readinto(found.reshape(-1).view(np.uint8).data) != found.nbytes:
            raise UserError(f"{tensor.file} is damaged: it ends within {tensor.stored_name}")
    return found[(slice(None), *rest)]


def write(file: Path, entries: Sequence[Entry], tensors: Tensors) -> None:
    """Write tensors with the hub's names and layout, each as soon as it is read."""
    # Widest dtype first, so that each tensor is aligned to its item size.
    ordered = sorted(entries, key=lambda entry: -tensors.dtypes[entry].itemsize)
    header = _header(ordered, tensors)
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little"))
        out.write(header)
        for entry in ordered:
            tensor = entry.to_hub(tensors.read(entry, ()))
            out.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _header(entries: Sequence[Entry], tensors: Tensors) -> bytes:
    # transformers requires the name of the framework whose layout the file has: torch.
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
