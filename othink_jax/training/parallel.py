"""How a pure function is spread over devices. The loops know only the interface `Parallel`.

Arrays stand in one of three places: on the host (numpy, leading B), on the devices as a batch
(`shard`, leading axes as the implementation likes), or on the devices as a state (`replicate`).
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from othink_jax.config import ParallelConfig
from othink_jax.errors import UserError
from othink_jax.model.collectives import over, per_device
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.sharding import FSDP, TENSOR, check_tensor, cut, gathered, shardings
from othink_jax.training.state import TrainState

AXIS = "batch"  # name of the axis over which `pmap` averages

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

    def check_model(self, config: Qwen2VLConfig) -> None:
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
    def apply(self, fn: Callable[..., Any], *, decoding: bool = False) -> Callable[..., Any]:
        """Compile fn(params, *batches) -> batch, each row of the result from its rows alone.

        The compiled function takes replicated parameters and sharded batches. On each device fn
        sees that device's rows only: randomness must come with the rows, as one key a row. On a
        mesh it sees parameters that are cut, which the model's layers put together.

        Args:
            fn: pure.
            decoding: its parameters lie as `decoding` says.
        """


def make_parallel(config: ParallelConfig, visible: Sequence[jax.Device] | None = None) -> Parallel:
    """The implementation that the settings ask for.

    Args:
        config: the settings.
        visible: devices to choose from, such as those that programs can only be compiled for;
            those of JAX if not given.

    Raises:
        UserError: more devices are asked for than there are, several with `jit`, or so many that
            they do not divide by `tensor`.
    """
    visible = jax.devices() if visible is None else visible
    processes = len({device.process_index for device in visible})
    if processes > 1 and config.strategy != "mesh":
        raise UserError(f"a run of {processes} processes needs --strategy mesh")
    if config.strategy == "jit":
        if config.devices not in (None, 1):
            raise UserError(
                f"--strategy jit uses one device, but --devices is {config.devices}:"
                " use --strategy pmap or mesh"
            )
        return OneDevice(visible[0])
    count = len(visible) if config.devices is None else config.devices
    if count > len(visible):
        raise UserError(
            f"--devices is {count}, but only {len(visible)} {visible[0].platform} device(s)"
            " are visible"
        )
    devices = tuple(visible[:count])
    if config.strategy == "pmap":
        return Replicas(devices)
    if processes > 1 and count != len(visible):
        raise UserError(f"a run of {processes} processes uses all of their devices")
    # Devices of one process stand side by side, so that the pieces of a layer do too.
    local = len(visible) // processes
    if count % config.tensor or local % config.tensor:
        raise UserError(
            f"{count} devices, {local} a process, do not divide by --tensor {config.tensor}"
        )
    return Sharded(devices, tensor=config.tensor)


def placed(shapes: _T, sharding: Any) -> _T:
    """Shapes with one sharding for all leaves, or with a tree of them."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )


def _in_memory(x: Any) -> Any:
    """An array that JAX takes."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


class OneDevice(Parallel):
    """`jit` on one device: placing is all there is to do."""

    def __init__(self, device: jax.Device) -> None:
        self.devices = (device,)
        self.batch_sharding = SingleDeviceSharding(device)

    def replicate(self, tree: _T) -> _T:
        def copy(x: Any) -> jax.Array:
            # Waited for, so that the host holds one array at a time.
            copied = jax.device_put(_in_memory(x), self.devices[0], may_alias=False)
            return copied.block_until_ready()

        return jax.tree.map(copy, tree)

    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        return jax.jit(create, out_shardings=self.batch_sharding, donate_argnums=0)(params)

    def unreplicate(self, tree: _T) -> _T:
        return tree

    def stored(self, state: _T) -> _T:
        return placed(state, self.batch_sharding)

    def adopt(self, state: _T) -> _T:
        return state

    def shard(self, batch: _T) -> _T:
        return jax.device_put(batch, self.devices[0])

    def gather(self, batch: PyTree) -> PyTree:
        return jax.device_get(batch)

    def update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        return jax.jit(functools.partial(fn, axis_name=None), donate_argnums=0)

    def relay(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        return jax.jit(fn)

    def apply(self, fn: Callable[..., Any], *, decoding: bool = False) -> Callable[..., Any]:
        return jax.jit(fn)


class Replicas(Parallel):
    """`pmap`: a copy of the state on each device, the prompts of a batch divided among them.

    With D devices a state's leaves are [D, ...] and a batch's [D, B/D, ...], cut along D.
    """

    def __init__(self, devices: tuple[jax.Device, ...]) -> None:
        self.devices = devices
        self.batch_sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def replicate(self, tree: _T) -> _T:
        # One copy a device. Stacking first, as flax.jax_utils.replicate does, would need room for
        # all D copies on one device.
        def copy(x: Any) -> jax.Array:
            x = _in_memory(x)
            shape = (len(self.devices), *np.shape(x))
            copies = [jax.device_put(x, device, may_alias=False)[None] for device in self.devices]
            whole = jax.make_array_from_single_device_arrays(shape, self.batch_sharding, copies)
            return whole.block_until_ready()

        return jax.tree.map(copy, tree)

    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        return jax.pmap(create, axis_name=AXIS, donate_argnums=0, devices=self.devices)(params)

    def unreplicate(self, tree: _T) -> _T:
        # Not x[0], which gathers from all devices.
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)

    def stored(self, state: _T) -> _T:
        return placed(state, SingleDeviceSharding(self.devices[0]))

    def replicated(self, state: _T) -> _T:
        def copies(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((len(self.devices), *x.shape), x.dtype)

        return placed(jax.tree.map(copies, state), self.batch_sharding)

    def sharded(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.ShapeDtypeStruct:
            count = len(self.devices)
            return jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)

        return placed(jax.tree.map(cut, batch), self.batch_sharding)

    def adopt(self, state: _T) -> _T:
        return self.replicate(state)

    def shard(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.Array:
            self.check_batch(x.shape[0])
            count, size = len(self.devices), x.shape[0]
            # Spelt out: -1 cannot be inferred for the patches of a batch without images.
            return jax.device_put(
                x.reshape(count, size // count, *x.shape[1:]), self.batch_sharding
            )

        return jax.tree.map(cut, batch)

    def gather(self, batch: PyTree) -> PyTree:
        def join(x: np.ndarray) -> np.ndarray:
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        return jax.tree.map(join, jax.device_get(batch))

    def update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        return jax.pmap(
            functools.partial(fn, axis_name=AXIS),
            axis_name=AXIS,
            out_axes=(0, None),
            donate_argnums=0,
            devices=self.devices,
        )

    def relay(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        return jax.pmap(fn, devices=self.devices)

    def apply(self, fn: Callable[..., Any], *, decoding: bool = False) -> Callable[..., Any]:
        return jax.pmap(fn, axis_name=AXIS, devices=self.devices)


class Sharded(Parallel):
    """`jit` over a mesh: states cut over all devices, the prompts of a batch over its first axis.

    The numbers are those of one device. How arrays are cut is written in `model.sharding`, and what
    devices tell each other in `model.collectives`.
    """

    def __init__(self, devices: tuple[jax.Device, ...], *, tensor: int) -> None:
        self.devices = devices
        self._mesh = Mesh(np.array(devices).reshape(-1, tensor), (FSDP, TENSOR))
        self.batch_sharding = NamedSharding(self._mesh, PartitionSpec(FSDP))

    @property
    def batch_shards(self) -> int:
        return self._mesh.shape[FSDP]

    @property
    def tensor_shards(self) -> int:
        return self._mesh.shape[TENSOR]

    def replicate(self, tree: _T) -> _T:
        # By way of the host, piece by piece: a whole array may have no room on any device.
        return jax.tree.map(cut, tree, shardings(tree, self._mesh))

    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        placed = shardings(jax.eval_shape(create, params), self._mesh)
        return jax.jit(create, out_shardings=placed, donate_argnums=0)(params)

    def unreplicate(self, tree: _T) -> _T:
        return tree

    def stored(self, state: _T) -> _T:
        return placed(state, shardings(state, self._mesh))

    def adopt(self, state: _T) -> _T:
        return state

    def shard(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.Array:
            self.check_batch(x.shape[0] * jax.process_count())
            return jax.make_array_from_process_local_data(self.batch_sharding, np.asarray(x))

        return jax.tree.map(cut, batch)

    def gather(self, batch: PyTree) -> PyTree:
        def join(x: jax.Array) -> np.ndarray:
            # Devices along the second axis of the mesh hold the same rows.
            pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
            return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])

        return jax.tree.map(join, batch)

    def update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        def update(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            with over(self._mesh):
                state, metrics = fn(state, batch, axis_name=None)
            # Cut as it came: only then is it overwritten in place.
            return jax.lax.with_sharding_constraint(state, shardings(state, self._mesh)), metrics

        return jax.jit(update, donate_argnums=0)

    def decoding(self, params: PyTree) -> PyTree:
        return gathered(params, self._mesh)

    def whole(self, params: _T) -> _T:
        return jax.tree.map(
            lambda moved, x: x if moved is None else moved,
            self._moved(self._moving(params)),
            params,
            is_leaf=lambda x: x is None,
        )

    def lower_whole(self, params: PyTree) -> jax.stages.Lowered:
        return self._moved.lower(self._moving(params))

    def _moving(self, params: _T) -> _T:
        """Parameters, or their shapes, that do not lie as `decoding` says; None for others."""

        def moving(x: Any, place: jax.sharding.Sharding) -> Any:
            return None if x.sharding.is_equivalent_to(place, x.ndim) else x

        return jax.tree.map(moving, params, self.decoding(params))

    @functools.cached_property
    def _moved(self) -> jax.stages.Wrapped:
        # One program for all arrays. `jax.device_put` has one for each, and processes that run them
        # in different orders wait for each other for ever.
        return jax.jit(
            lambda params: jax.lax.with_sharding_constraint(params, self.decoding(params))
        )

    def relay(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        def relay(params: PyTree) -> PyTree:
            made = fn(params)
            return jax.lax.with_sharding_constraint(made, shardings(made, self._mesh))

        return jax.jit(relay)

    def apply(self, fn: Callable[..., Any], *, decoding: bool = False) -> Callable[..., Any]:
        def apply(params: PyTree, *batches: PyTree) -> Any:
            with over(self._mesh):
                return per_device(fn, whole=decoding)(params, *batches)

        return jax.jit(apply, out_shardings=self.batch_sharding)
