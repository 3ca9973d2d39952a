"""Lazily read tensors of a model: their dtypes, and a function that reads one or a part of it.

Loading, converting and exporting are built on this. None of them ever holds two whole models at
once, and of several processes each holds no more than its own part.
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

Index = tuple[slice, ...]  # slices of an array's leading axes; () is the whole array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
    """All tensors of one model, or of an adapter to one, not yet read."""

    dtypes: Mapping[Entry, np.dtype]  # of every tensor, as `read` returns it
    # Reads one tensor in our layout, or an index of it.
    read: Callable[[Entry, Index], np.ndarray]

    def nbytes(self, entry: Entry) -> int:
        """Bytes of one tensor."""
        return entry.bytes_in(self.dtypes[entry])

    @property
    def total_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.nbytes, self.dtypes))


class LazyArray:
    """An array in storage: indexing or `np.asarray` reads what it needs at that moment.

    Nothing is cached, so what is used twice is read twice.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[Index], np.ndarray]
    ) -> None:
        """Args:
        shape, dtype: of the array.
        read: returns the part of the array at an index.
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

    def astype(self, dtype: DTypeLike, copy: bool = False) -> "LazyArray":
        """The same array in another dtype, still unread."""
        wanted = np.dtype(dtype)
        return LazyArray(self.shape, wanted, lambda index: self[index].astype(wanted, copy=False))

    def __array_function__(self, func: Any, _: Any, args: Any, kwargs: Any) -> Any:
        # numpy calls this for `np.stack` of scanned layers: the stack stays unread, too.
        if func is not np.stack or kwargs:
            return NotImplemented
        (rows,) = args
        shape = (len(rows), *self.shape)

        def read(index: Index) -> np.ndarray:
            chosen = rows[index[0]] if index else rows
            return np.stack([row[index[1:]] for row in chosen])

        return LazyArray(shape, self.dtype, read)


def is_tied(tensors: Tensors) -> bool:
    """Whether these tensors have no head of their own: it is tied to the embedding."""
    return all(entry.path != HEAD for entry in tensors.dtypes)


def with_stored_tie(config: VLMConfig, tensors: Tensors) -> VLMConfig:
    """The config with `tie_word_embeddings` by these tensors, as config.json may be wrong."""
    return dataclasses.replace(config, tie_word_embeddings=is_tied(tensors))


def in_memory(config: VLMConfig, params: Mapping[str, Any]) -> Tensors:
    """Tensors of a nested dict of arrays, with unrolled or scanned layers."""

    def find(entry: Entry) -> tuple[Any, int | None]:
        """The leaf, and if layers are scanned the layer's index on its leading axis, else None."""
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
    """The same tensors in another dtype."""
    wanted = np.dtype(dtype)
    return Tensors(
        dtypes=dict.fromkeys(tensors.dtypes, wanted),
        read=lambda entry, index: tensors.read(entry, index).astype(wanted, copy=False),
    )


def overlaid(base: Tensors, over: Tensors) -> Tensors:
    """The tensors of `over`, and those of `base` that `over` lacks."""
    return Tensors(
        dtypes={**base.dtypes, **over.dtypes},
        read=lambda entry, index: (over if entry in over.dtypes else base).read(entry, index),
    )


def adapted(base: Tensors, adapters: Tensors, scale: float) -> Tensors:
    """The model `base` with its LoRA adapters merged into its kernels, in float32."""
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
            # The whole product, whatever the index: the product of a part rounds differently.
            tensor = tensor + (scale * (lora_a @ lora_b))[index]
        return tensor

    return Tensors(dtypes=dict.fromkeys(base.dtypes, np.dtype(np.float32)), read=read)


def watched(tensors: Tensors, on_bytes: Callable[[int], None]) -> Tensors:
    """The same tensors; `on_bytes` is given the size of each read."""

    def read(entry: Entry, index: Index) -> np.ndarray:
        tensor = tensors.read(entry, index)
        on_bytes(tensor.nbytes)
        return tensor

    return Tensors(dtypes=tensors.dtypes, read=read)


def lazy_params(tensors: Tensors) -> dict[str, Any]:
    """Nested dict of an unrolled model's parameters, unread; a copy of a tied head is left out."""

    def stored(entry: Entry) -> LazyArray:
        return LazyArray(
            entry.shape, tensors.dtypes[entry], lambda index: tensors.read(entry, index)
        )

    return nested({entry: stored(entry) for entry in tensors.dtypes if entry.path != TIED_HEAD})


def read_params(tensors: Tensors, *, on_host: bool = False) -> dict[str, Any]:
    """As `lazy_params`, but read: on the default device, or as numpy arrays."""
    put = np.ascontiguousarray if on_host else jnp.asarray
    return jax.tree.map(put, lazy_params(tensors))


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
