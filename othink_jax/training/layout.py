"""The one layout of a training state on disk: no layers are stacked, whether a run scans or not."""

import functools

import jax

from othink_jax.model.stack import laid_out, unrolled
from othink_jax.training.parallel import Parallel
from othink_jax.training.state import TrainState


class DiskLayout:
    """From an unreplicated state on the devices to what a checkpoint holds of it, and back.

    Where layers are scanned, their slices are arrays of their own while a checkpoint is begun: on
    each device, the state is held twice for that time.

    Attributes:
      shapes: of the state on disk.
      unstack: the program that `to_disk` runs, compiled when it is first called; None where no
        layers are stacked.
    """

    def __init__(self, parallel: Parallel, like: TrainState) -> None:
        """For states of these shapes (`jax.ShapeDtypeStruct`)."""
        self.shapes: TrainState = jax.eval_shape(unrolled, like)
        self.unstack = self._stack = None
        if str(jax.tree.structure(self.shapes)) != str(jax.tree.structure(like)):
            self.unstack = jax.jit(unrolled, out_shardings=_places(parallel, self.shapes))
            self._stack = jax.jit(
                functools.partial(laid_out, like=like), out_shardings=_places(parallel, like)
            )

    def to_disk(self, state: TrainState) -> TrainState:
        """The same numbers, with a layer an array."""
        return state if self.unstack is None else self.unstack(state)

    def from_disk(self, state: TrainState) -> TrainState:
        """The same numbers, laid out as the run has them."""
        return state if self._stack is None else self._stack(state)


def _places(parallel: Parallel, like: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, parallel.stored(like))
