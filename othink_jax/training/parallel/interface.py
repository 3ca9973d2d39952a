"""The interface `Parallel`, which is all that the loops know of devices.

Arrays stand in one of three places: on the host (numpy, leading B), on the devices as a batch
(`shard`, leading axes as the implementation likes), or on the devices as a state (`replicate`).
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

    devices: tuple[jax.Device, ...]  # those in use
    batch_sharding: jax.sharding.Sharding  # of the arrays that `shard` gives

    @abc.abstractmethod
    def replicate(self, tree: _T) -> _T:
        """A copy of a state or of parameters on every device. The argument stays valid.

        It never shares memory with the argument, so the policy that `update` overwrites in place
        and the frozen reference may start from the same arrays.

        Args:
            tree: of arrays. Of one that is not yet read (`checkpoint.tensors.StoredArray`) a
                process reads what its devices hold, array by array.
        """

    def begin(self, params: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """The state before the first update, on the devices. The argument stays valid."""
        # The moments are made where they are to stand.
        return self._create(self.replicate(params), functools.partial(TrainState.create, tx=tx))

    @abc.abstractmethod
    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        """The state of replicated parameters, whose life it ends."""

    @abc.abstractmethod
    def unreplicate(self, tree: _T) -> _T:
        """What a checkpoint is to hold of a state: of copies, the first device's.

        On one device and on a mesh it is the argument itself, so `update` ends its life too.
        """

    @abc.abstractmethod
    def stored(self, state: _T) -> _T:
        """Of the shapes of an unreplicated state: with the places that a checkpoint is read to."""

    def replicated(self, state: _T) -> _T:
        """Of the same shapes: as compiled functions take what `replicate` or `adopt` gives."""
        return self.stored(state)

    def sharded(self, batch: _T) -> _T:
        """Of the shapes of a batch on the host: as compiled functions take what `shard` gives."""
        return placed(batch, self.batch_sharding)

    @abc.abstractmethod
    def adopt(self, state: _T) -> _T:
        """Put back on the devices what was read to the places of `stored`. Use the result alone."""

    @property
    def batch_shards(self) -> int:
        """How many pieces a batch is cut into."""
        return len(self.devices)

    def check_batch(self, size: int, micro_batches: int = 1) -> None:
        """Refuse a number of prompts (B) that cannot be cut evenly.

        Raises:
            UserError: it does not divide over the devices, or a device's share not into
                `micro_batches`.
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
        """How many pieces a block of layers is cut into."""
        return 1

    def check_model(self, config: VLMConfig) -> None:
        """Raise UserError if a model cannot be cut into `tensor_shards`."""
        check_tensor(config, self.tensor_shards)

    @abc.abstractmethod
    def shard(self, batch: _T) -> _T:
        """Put a batch (leaves of numpy or jax, all with a leading B) on the devices, cut along B.

        Of several processes, each gives its own rows.

        Raises:
            UserError: B does not divide over the devices.
        """

    @abc.abstractmethod
    def gather(self, batch: PyTree) -> PyTree:
        """A sharded batch back on the host: numpy leaves, leading B, in the order it was cut.

        Of several processes, each gets its own rows.
        """

    @abc.abstractmethod
    def update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        """Compile fn(state, batch, *, axis_name) -> (state, metrics), such as `grpo_update`.

        The compiled function takes a replicated state and a sharded batch. On a mesh, fn takes
        gradients by `collectives.mean_gradient`, as the updates here do. It overwrites the
        state it is given (donation): only the returned one may be used from there on. Metrics are
        scalars, the same on every device.
        """

    def decoding(self, params: PyTree) -> PyTree:
        """Where replicated parameters are to lie while they are read at each token.

        On a mesh they are put together: a device would have to ask the others at each token.
        """
        return jax.tree.map(lambda x: x.sharding, params)

    def whole(self, params: _T) -> _T:
        """Replicated parameters, laid as `decoding` says. What lies so is not copied."""
        return params

    def lower_whole(self, params: PyTree) -> jax.stages.Lowered | None:
        """What `whole` runs, lowered for such shapes; None if nothing is copied."""
        return None

    @abc.abstractmethod
    def relay(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        """Compile fn(params) -> params, which brings parameters into other arrays.

        The compiled function takes replicated parameters and gives such.
        """

    @abc.abstractmethod
    def apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile fn(params, *batches) -> batch, each row of the result from its rows alone.

        The compiled function takes replicated parameters and sharded batches. On each device fn
        sees that device's rows only: randomness must come with the rows, as one key a row. On a
        mesh it sees parameters that are cut, which the model's layers put together.
        """

    @abc.abstractmethod
    def sampler(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile fn(weights, params, *batches) -> batch, as `apply` does.

        The compiled function takes weights that lie as `decoding` says, and replicated parameters
        or None.
        """


def placed(shapes: _T, sharding: Any) -> _T:
    """Shapes with one sharding for all leaves, or with a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )


def in_memory(x: Any) -> Any:
    """An array that JAX takes."""
    return x if isinstance(x, jax.Array) else np.asarray(x)
