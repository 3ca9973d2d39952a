"""One device."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from othink_jax.training.parallel.interface import Parallel, in_memory, with_shardings
from othink_jax.training.state import TrainState

_T = TypeVar("_T")


class OneDevice(Parallel):
    """`jit` on one device; arrays only have to be put there."""

    def __init__(self, device: jax.Device) -> None:
        self.devices = (device,)
        self.batch_sharding = SingleDeviceSharding(device)

    def replicate(self, tree: _T) -> _T:
        def copy(x: Any) -> jax.Array:
            # Blocks, so that the host holds one array at a time.
            copied = jax.device_put(in_memory(x), self.devices[0], may_alias=False)
            return copied.block_until_ready()

        return jax.tree.map(copy, tree)

    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        return jax.jit(create, out_shardings=self.batch_sharding, donate_argnums=0)(params)

    def unreplicate(self, tree: _T) -> _T:
        return tree

    def checkpoint_shapes(self, state: _T) -> _T:
        return with_shardings(state, self.batch_sharding)

    def place_restored(self, state: _T) -> _T:
        return state

    def shard(self, batch: _T) -> _T:
        return jax.device_put(batch, self.devices[0])

    def gather(self, batch: PyTree) -> PyTree:
        return jax.device_get(batch)

    def compile_update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        return jax.jit(functools.partial(fn, axis_name=None), donate_argnums=0)

    def compile_relayout(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        return jax.jit(fn)

    def compile_apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(fn)

    def compile_sampler(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(fn)
