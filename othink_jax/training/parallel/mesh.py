"""Sharding over a mesh of devices."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from othink_jax.model.collectives import over, per_device
from othink_jax.model.sharding import FSDP, TENSOR, decoding_shardings, place_shards, shardings
from othink_jax.training.parallel.interface import Parallel, with_shardings
from othink_jax.training.state import TrainState

_T = TypeVar("_T")


class Sharded(Parallel):
    """`jit` over a mesh: states sharded over all devices, batches over the mesh's first axis.

    The numbers are those of one device. `model.sharding` defines the shardings of arrays,
    `model.collectives` the communication between devices.
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
        # Through the host, shard by shard: a full array may not fit on any device.
        return jax.tree.map(place_shards, tree, shardings(tree, self._mesh))

    def _create(self, params: PyTree, create: Callable[[PyTree], TrainState]) -> TrainState:
        placed = shardings(jax.eval_shape(create, params), self._mesh)
        return jax.jit(create, out_shardings=placed, donate_argnums=0)(params)

    def unreplicate(self, tree: _T) -> _T:
        return tree

    def checkpoint_shapes(self, state: _T) -> _T:
        return with_shardings(state, shardings(state, self._mesh))

    def place_restored(self, state: _T) -> _T:
        return state

    def shard(self, batch: _T) -> _T:
        def cut(x: Any) -> jax.Array:
            self.check_batch(x.shape[0] * jax.process_count())
            return jax.make_array_from_process_local_data(self.batch_sharding, np.asarray(x))

        return jax.tree.map(cut, batch)

    def gather(self, batch: PyTree) -> PyTree:
        def concat(x: jax.Array) -> np.ndarray:
            # Devices along the second axis of the mesh hold the same rows.
            pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
            return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])

        return jax.tree.map(concat, batch)

    def compile_update(self, fn: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
        def update(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            with over(self._mesh):
                state, metrics = fn(state, batch, axis_name=None)
            # Keep the sharding of the input: a donated buffer is only reused if it is the same.
            return jax.lax.with_sharding_constraint(state, shardings(state, self._mesh)), metrics

        return jax.jit(update, donate_argnums=0)

    def decoding_shardings(self, params: PyTree) -> PyTree:
        return decoding_shardings(params, self._mesh)

    def reshard_for_decoding(self, params: _T) -> _T:
        return jax.tree.map(
            lambda moved, x: x if moved is None else moved,
            self._moved(self._moving(params)),
            params,
            is_leaf=lambda x: x is None,
        )

    def lower_reshard_for_decoding(self, params: PyTree) -> jax.stages.Lowered:
        return self._moved.lower(self._moving(params))

    def _moving(self, params: _T) -> _T:
        """Parameters, or shapes, that do not have their decoding sharding; None for the others."""

        def moving(x: Any, place: jax.sharding.Sharding) -> Any:
            return None if x.sharding.is_equivalent_to(place, x.ndim) else x

        return jax.tree.map(moving, params, self.decoding_shardings(params))

    @functools.cached_property
    def _moved(self) -> jax.stages.Wrapped:
        # One program for all arrays. `jax.device_put` runs one per array, and processes that run
        # them in different orders deadlock.
        return jax.jit(
            lambda params: jax.lax.with_sharding_constraint(params, self.decoding_shardings(params))
        )

    def compile_relayout(self, fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        def relayout(params: PyTree) -> PyTree:
            made = fn(params)
            return jax.lax.with_sharding_constraint(made, shardings(made, self._mesh))

        return jax.jit(relayout)

    def compile_apply(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return self._of_rows(per_device(fn))

    def compile_sampler(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return self._of_rows(per_device(fn, rules=(decoding_shardings, shardings)))

    def _of_rows(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: PyTree) -> Any:
            with over(self._mesh):
                return fn(*given)

        return jax.jit(run, out_shardings=self.batch_sharding)
