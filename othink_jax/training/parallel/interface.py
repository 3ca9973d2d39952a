"""The interface `Parallel`, through which the training loops use devices.

An array is in one of three places: on the host (numpy, leading B), on the devices as a batch
(`shard`; the implementation chooses the leading axes), or on the devices as a state (`replicate`).
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from othink_jax.errors import UserError
from othink_jax.model.config import VLMConfig
from othink_jax.model.sharding import check_tensor
from othink_jax.training.state import TrainState

_T = TypeVar("_T")


class Parallel(abc.ABC):
    """Puts arrays on devices, compiles functions for them, brings results back."""

    devices: tuple[jax.Device, ...]  # devices in use
    batch_sharding: jax.sharding.Sharding  # sharding of the arrays that `shard` returns

    @abc.abstractmethod
    def replicate(self, tree: _T) -> _T:
        """Put a state or parameters on all devices: copied, or sharded on a mesh.

        The argument stays valid. The result never shares memory with it, so the policy, which
        updates overwrite in place, and the frozen reference may start from the same arrays.

        Args:
          tree: tree of arrays. Of an array not yet read (`checkpoint.tensors.LazyArray`), a
            process reads only what its devices hold, array by array.
        """

    def create_state(self, params: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """Create the state before the first update, on the devices. The argument stays valid."""
        # The optimizer moments are created directly on their devices.
        return self._create(self.replicate(params), functools.partial(TrainState.create, tx=tx))

    @abc.abstractmethod
    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        """Create the state of replicated parameters, which are donated."""

    @abc.abstractmethod
    def unreplicate(self, tree: _T) -> _T:
        """The state as a checkpoint holds it: the first device's copy if there are copies.

        On one device and on a mesh this is the argument itself, so `compile_update` donates it too.
        """

    @abc.abstractmethod
    def checkpoint_shapes(self, state: _T) -> _T:
        """Shapes of an unreplicated state, with the shardings that a checkpoint is restored to."""

    def state_shapes(self, state: _T) -> _T:
        """Shapes of a state on the devices, with shardings."""
        return self.checkpoint_shapes(state)

    def batch_shapes(self, batch: _T) -> _T:
        """Shapes of a host batch as those of the batch that `shard` returns, with shardings."""
        return with_shardings(batch, self.batch_sharding)

    @abc.abstractmethod
    def place_restored(self, state: _T) -> _T:
        """Put a state restored as `checkpoint_shapes` on all devices. Use only the result."""

    @property
    def batch_shards(self) -> int:
        """Number of shards of a batch."""
        return len(self.devices)

    def check_batch(self, size: int, micro_batches: int = 1) -> None:
        """Refuse a number of prompts (B) that cannot be divided evenly.

        Raises:
          UserError: B does not divide over the devices, or the prompts of a device do not divide
            into `micro_batches`.
        """
        count = self.batch_shards
        if size % count:
            raise UserError(
                f"{size} prompts do not divide over {count} devices: make it a multiple of {count}"
            )
        if (size // count) % micro_batches:
            raise UserError(
                f"--micro-batches is {micro_batches}, but the {size // count} prompts of each of"
                f" {count} device(s) do not divide into so many"
            )

    @property
    def tensor_shards(self) -> int:
        """Number of tensor-parallel shards of a block of layers."""
        return 1

    def check_model(self, config: VLMConfig) -> None:
        """Raise UserError if a model cannot be split into `tensor_shards`."""
        check_tensor(config, self.tensor_shards)

    @abc.abstractmethod
    def shard(self, batch: _T) -> _T:
        """Put a batch (numpy or jax leaves with a leading B) on the devices, sharded along B.

        With several processes, each passes its own rows.

        Raises:
          UserError: B does not divide over the devices.
        """

    @abc.abstractmethod
    def gather(self, batch: PyTree) -> PyTree:
        """Bring a sharded batch back to the host: numpy leaves, leading B, rows in their order.

        With several processes, each gets its own rows.
        """

    @abc.abstractmethod
    def compile_update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        """Compile fn(state, batch, *, axis_name) -> (state, metrics), such as `grpo_update`.

        The compiled function takes a replicated state and a sharded batch. It donates the state:
        only the returned one may be used afterwards. Metrics are scalars, the same on every device.
        On a mesh, fn must take gradients by `collectives.mean_gradient`, as the updates here do.
        """

    def decoding_shardings(self, params: PyTree) -> PyTree:
        """Sharding of replicated parameters during decoding.

        On a mesh they are all-gathered along `fsdp` once, instead of at each token.
        """
        return jax.tree.map(lambda x: x.sharding, params)

    def reshard_for_decoding(self, params: _T) -> _T:
        """Reshard replicated parameters to `decoding_shardings`; arrays that have it stay."""
        return params

    def lower_reshard_for_decoding(self, params: PyTree) -> jax.stages.Lowered | None:
        """Lower the program of `reshard_for_decoding`; None if it copies nothing."""
        return None

    @abc.abstractmethod
    def compile_relayout(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        """Compile fn(params) -> params, which rearranges parameters, such as unstacking layers.

        The compiled function takes and returns replicated parameters.
        """

    @abc.abstractmethod
    def compile_apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile fn(params, *batches) -> batch, each result row from its own input rows alone.

        The compiled function takes replicated parameters and sharded batches. On each device fn
        sees only that device's rows: randomness must come with the rows, as one key per row. On a
        mesh it sees sharded parameters, which the model's layers all-gather.
        """

    @abc.abstractmethod
    def compile_sampler(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile fn(weights, params, *batches) -> batch, as `compile_apply` does.

        The compiled function takes weights with `decoding_shardings`, and replicated parameters or
        None.
        """


def with_shardings(shapes: _T, sharding: Any) -> _T:
    """Attach shardings to shapes: one for all leaves, or a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )


def in_memory(x: Any) -> Any:
    """The array in a form that JAX takes: a `jax.Array` as it is, anything else as numpy."""
    return x if isinstance(x, jax.Array) else np.asarray(x)
