"""A model's tensors where they lie: what there is, and a way to read one of them, or a part of it.

Loading, converting and exporting are made of this, so that none of them ever holds a whole model
beside another one, and a process of several no more than its own part of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from othink_jax.checkpoint.keymap import TIED_HEAD
from othink_jax.families import HEAD, Entry, entries
from othink_jax.model.config import VLMConfig

Index = tuple[slice, ...]  # of an array's axes, from the first on; () is all of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
    """All tensors of one model, or of an adapter to one, not yet read."""

    dtypes: Mapping[Entry, np.dtype]  # of every tensor that there is, as `read` gives it
    # One tensor in our layout, or what of it stands at an index.
    read: Callable[[Entry, Index], np.ndarray]

    def nbytes(self, entry: Entry) -> int:
        """Bytes of one tensor."""
        return entry.bytes_in(self.dtypes[entry])

    @property
    def total_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.nbytes, self.dtypes))


class StoredArray:
    """An array that lies elsewhere: what an index or `np.asarray` takes of it is read just then.

    Nothing of it is kept, so what is used twice is read twice.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[Index], np.ndarray]
    ) -> None:
        """Args:
        shape, dtype: of the array.
        read: gives what stands at an index.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._read = read

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        return self._read(index)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)

    def astype(self, dtype: DTypeLike, copy: bool = False) -> "StoredArray":
        """The same in another dtype; not yet read either."""
        wanted = np.dtype(dtype)
        return StoredArray(self.shape, wanted, lambda index: self[index].astype(wanted, copy=False))

    def __array_function__(self, func: Any, _: Any, args: Any, kwargs: Any) -> Any:
        # How numpy asks what `np.stack` is of these: layers that are scanned, and not yet read.
        if func is not np.stack or kwargs:
            return NotImplemented
        (rows,) = args
        shape = (len(rows), *self.shape)

        def read(index: Index) -> np.ndarray:
            chosen = rows[index[0]] if index else rows
            return np.stack([row[index[1:]] for row in chosen])

        return StoredArray(shape, self.dtype, read)


def is_tied(tensors: Tensors) -> bool:
    """Whether a model of these tensors has its embedding as the head."""
    return all(entry.path != HEAD for entry in tensors.dtypes)


def as_stored(config: VLMConfig, tensors: Tensors) -> VLMConfig:
    """The config of a model of these tensors: of the head, they know more than config.json."""
    return dataclasses.replace(config, tie_word_embeddings=is_tied(tensors))


def in_memory(config: VLMConfig, params: Mapping[str, Any]) -> Tensors:
    """Those of a nested dict of arrays, of unrolled or of scanned layers."""

    def find(entry: Entry) -> tuple[Any, int | None]:
        """The leaf, and the row of it where layers are scanned: the layer is its leading axis."""
        node: Any = params
        row = None
        for key in entry.path:
            if isinstance(key, int) and key not in node:
                row = key
            else:
                node = node[key]
        return node, row

    def read(entry: Entry, index: Index) -> np.ndarray:
        leaf, row = find(entry)
        if row is not None:
            return np.asarray(leaf[(slice(row, row + 1), *index)])[0]
        return np.asarray(leaf[index] if index else leaf)

    dtypes = {entry: np.dtype(find(entry)[0].dtype) for entry in entries(config)}
    return Tensors(dtypes=dtypes, read=read)


def cast(tensors: Tensors, dtype: DTypeLike) -> Tensors:
    """The same in another dtype."""
    wanted = np.dtype(dtype)
    return Tensors(
        dtypes=dict.fromkeys(tensors.dtypes, wanted),
        read=lambda entry, index: tensors.read(entry, index).astype(wanted, copy=False),
    )


def overlaid(base: Tensors, over: Tensors) -> Tensors:
    """Those of `over`, and of `base` what `over` lacks."""
    return Tensors(
        dtypes={**base.dtypes, **over.dtypes},
        read=lambda entry, index: (over if entry in over.dtypes else base).read(entry, index),
    )


def adapted(base: Tensors, adapters: Tensors, scale: float) -> Tensors:
    """The model `base` with its adapters multiplied out and added to its kernels; in float32."""
    factors: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in adapters.dtypes:
        *layer, name = entry.path
        factors.setdefault(tuple(layer), {})[name] = entry

    def read(entry: Entry, index: Index) -> np.ndarray:
        tensor = base.read(entry, index).astype(np.float32, copy=False)
        *layer, name = entry.path
        pair = factors.get(tuple(layer))
        if name == "kernel" and pair is not None:
            lora_a, lora_b = (adapters.read(pair[factor], ()) for factor in ("lora_a", "lora_b"))
            # The whole product, whatever part of it is asked for: that of a part rounds otherwise.
            tensor = tensor + (scale * (lora_a @ lora_b))[index]
        return tensor

    return Tensors(dtypes=dict.fromkeys(base.dtypes, np.dtype(np.float32)), read=read)


def watched(tensors: Tensors, on_bytes: Callable[[int], None]) -> Tensors:
    """The same, telling of the size of what was read."""

    def read(entry: Entry, index: Index) -> np.ndarray:
        tensor = tensors.read(entry, index)
        on_bytes(tensor.nbytes)
        return tensor

    return Tensors(dtypes=tensors.dtypes, read=read)


def unread_params(tensors: Tensors) -> dict[str, Any]:
    """The nested dict of an unrolled model's parameters; a copy of a tied head is none."""

    def stored(entry: Entry) -> StoredArray:
        return StoredArray(
            entry.shape, tensors.dtypes[entry], lambda index: tensors.read(entry, index)
        )

    return nested({entry: stored(entry) for entry in tensors.dtypes if entry.path != TIED_HEAD})


def read_params(tensors: Tensors, *, on_host: bool = False) -> dict[str, Any]:
    """The same, read: on the default device, or as numpy arrays."""
    put = np.ascontiguousarray if on_host else jnp.asarray
    return jax.tree.map(put, unread_params(tensors))


def nested(found: Mapping[Entry, Any]) -> dict[str, Any]:
    """A nested dict with each value at the path of its entry."""
    tree: dict[Any, Any] = {}
    for entry, value in found.items():
        *parents, leaf = entry.path
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree
