"""Data parallelism by `pmap`: a copy of the state on each device."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from othink_jax.training.parallel.interface import Parallel, in_memory, with_shardings
from othink_jax.training.state import TrainState

AXIS = "batch"  # name of the axis over which `pmap` averages

_T = TypeVar("_T")


class Replicas(Parallel):
    """`pmap`: a copy of the state on each device, the prompts of a batch divided among them.

    With D devices a state's leaves are [D, ...] and a batch's [D, B/D, ...], sharded along D.
    """

    def __init__(self, devices: tuple[jax.Device, ...]) -> None:
        self.devices = devices
        self.batch_sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def replicate(self, tree: _T) -> _T:
        # One copy per device. Stacking first, as flax.jax_utils.replicate does, would need room for
        # all D copies on one device.
        def copy(x: Any) -> jax.Array:
            x = in_memory(x)
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

    def checkpoint_shapes(self, state: _T) -> _T:
        return with_shardings(state, SingleDeviceSharding(self.devices[0]))

    def state_shapes(self, state: _T) -> _T:
        def copies(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((len(self.devices), *x.shape), x.dtype)

        return with_shardings(jax.tree.map(copies, state), self.batch_sharding)

    def batch_shapes(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.ShapeDtypeStruct:
            count = len(self.devices)
            return jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)

        return with_shardings(jax.tree.map(cut, batch), self.batch_sharding)

    def place_restored(self, state: _T) -> _T:
        return self.replicate(state)

    def shard(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.Array:
            self.check_batch(x.shape[0])
            count, size = len(self.devices), x.shape[0]
            # Explicit size: -1 cannot be inferred for the patches of a batch without images.
            return jax.device_put(
                x.reshape(count, size // count, *x.shape[1:]), self.batch_sharding
            )

        return jax.tree.map(cut, batch)

    def gather(self, batch: PyTree) -> PyTree:
        def concat(x: np.ndarray) -> np.ndarray:
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        return jax.tree.map(concat, jax.device_get(batch))

    def compile_update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        return jax.pmap(
            functools.partial(fn, axis_name=AXIS),
            axis_name=AXIS,
            out_axes=(0, None),
            donate_argnums=0,
            devices=self.devices,
        )

    def compile_relayout(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        return jax.pmap(fn, devices=self.devices)

    def compile_apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(fn, axis_name=AXIS, devices=self.devices)

    def compile_sampler(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.pmap(fn, axis_name=AXIS, devices=self.devices)
