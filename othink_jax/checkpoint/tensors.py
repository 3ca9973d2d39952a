"""A model's tensors where they lie: what there is, and a way to read one after the other.

Loading, converting and exporting are made of this, so that none of them ever holds a whole model
beside another one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from othink_jax.checkpoint.keymap import HEAD, TIED_HEAD, Entry, entries
from othink_jax.model.config import Qwen2VLConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensors:
    """All tensors of one model, or of an adapter to one, not yet read."""

    dtypes: Mapping[Entry, np.dtype]  # of every tensor that there is, as `read` gives it
    # The tensors asked for, one after the other and in that order, in our layout.
    read: Callable[[Sequence[Entry]], Iterator[np.ndarray]]

    def nbytes(self, entry: Entry) -> int:
        """Bytes of one tensor."""
        return entry.bytes_in(self.dtypes[entry])

    @property
    def total_nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.nbytes, self.dtypes))


def is_tied(tensors: Tensors) -> bool:
    """Whether a model of these tensors has its embedding as the head."""
    return all(entry.path != HEAD for entry in tensors.dtypes)


def as_stored(config: Qwen2VLConfig, tensors: Tensors) -> Qwen2VLConfig:
    """The config of a model of these tensors: of the head, they know more than config.json."""
    return dataclasses.replace(config, tie_word_embeddings=is_tied(tensors))


def in_memory(config: Qwen2VLConfig, params: Mapping[str, Any]) -> Tensors:
    """Those of a nested dict of arrays, of unrolled or of scanned layers."""

    def find(entry: Entry) -> jax.Array:
        node: Any = params
        rows: list[int] = []
        for key in entry.path:
            if isinstance(key, int) and key not in node:
                rows.append(key)  # scanned: the layer is the leading axis of the leaf
            else:
                node = node[key]
        return node[rows[0]] if rows else node

    return Tensors(
        dtypes={entry: np.dtype(find(entry).dtype) for entry in entries(config)},
        read=lambda chosen: (np.asarray(find(entry)) for entry in chosen),
    )


def cast(tensors: Tensors, dtype: DTypeLike) -> Tensors:
    """The same in another dtype."""
    wanted = np.dtype(dtype)
    return Tensors(
        dtypes=dict.fromkeys(tensors.dtypes, wanted),
        read=lambda chosen: (tensor.astype(wanted, copy=False) for tensor in tensors.read(chosen)),
    )


def overlaid(base: Tensors, over: Tensors) -> Tensors:
    """Those of `over`, and of `base` what `over` lacks."""

    def read(chosen: Sequence[Entry]) -> Iterator[np.ndarray]:
        # One stream of each, so that each reads ahead as it likes.
        upper = over.read([entry for entry in chosen if entry in over.dtypes])
        lower = base.read([entry for entry in chosen if entry not in over.dtypes])
        for entry in chosen:
            yield next(upper if entry in over.dtypes else lower)

    return Tensors(dtypes={**base.dtypes, **over.dtypes}, read=read)


def adapted(base: Tensors, adapters: Tensors, scale: float) -> Tensors:
    """The model `base` with its adapters multiplied out and added to its kernels; in float32."""
    factors: dict[tuple[Any, ...], dict[str, Entry]] = {}
    for entry in adapters.dtypes:
        *layer, name = entry.path
        factors.setdefault(tuple(layer), {})[name] = entry

    def read(chosen: Sequence[Entry]) -> Iterator[np.ndarray]:
        for entry, tensor in zip(chosen, cast(base, np.float32).read(chosen), strict=True):
            *layer, name = entry.path
            pair = factors.get(tuple(layer))
            if name == "kernel" and pair is not None:
                lora_a, lora_b = adapters.read([pair["lora_a"], pair["lora_b"]])
                tensor = tensor + scale * (lora_a @ lora_b)
            yield tensor

    return Tensors(dtypes=dict.fromkeys(base.dtypes, np.dtype(np.float32)), read=read)


def watched(tensors: Tensors, on_bytes: Callable[[int], None]) -> Tensors:
    """The same, telling of the size of each tensor after it was used."""

    def read(chosen: Sequence[Entry]) -> Iterator[np.ndarray]:
        for tensor in tensors.read(chosen):
            yield tensor
            on_bytes(tensor.nbytes)

    return Tensors(dtypes=tensors.dtypes, read=read)


def read_params(tensors: Tensors, *, on_host: bool = False) -> dict[str, Any]:
    """The nested dict of an unrolled model's parameters; a copy of a tied head is none.

    They are on the default device, or numpy arrays.
    """
    chosen = [entry for entry in tensors.dtypes if entry.path != TIED_HEAD]
    put = np.ascontiguousarray if on_host else jnp.asarray
    arrays = map(put, tensors.read(chosen))
    return nested(dict(zip(chosen, arrays, strict=True)))


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
