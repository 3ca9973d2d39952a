"""On-disk layout of a training state: layers are unstacked, whether a run scans them or not."""

import functools

import jax

from othink_jax.model.stack import match_layout, unrolled
from othink_jax.training.parallel import Parallel
from othink_jax.training.state import TrainState


class DiskLayout:
    """Converts an unreplicated state on the devices to its on-disk layout, and back.

    If layers are scanned, starting a checkpoint copies each layer into arrays of its own. During
    that time each device holds the state twice.

    Attributes:
      shapes: shapes of the state on disk.
      unstack: the program of `to_disk`, compiled at its first call; None if no layers are stacked.
    """

    def __init__(self, parallel: Parallel, like: TrainState) -> None:
        """Build the conversion for states shaped `like` this (`jax.ShapeDtypeStruct`)."""
        self.shapes: TrainState = jax.eval_shape(unrolled, like)
        self.unstack = self._stack = None
        if str(jax.tree.structure(self.shapes)) != str(jax.tree.structure(like)):
            self.unstack = jax.jit(unrolled, out_shardings=_places(parallel, self.shapes))
            self._stack = jax.jit(
                functools.partial(match_layout, like=like), out_shardings=_places(parallel, like)
            )

    def to_disk(self, state: TrainState) -> TrainState:
        """The same numbers, with separate arrays for each layer."""
        return state if self.unstack is None else self.unstack(state)

    def from_disk(self, state: TrainState) -> TrainState:
        """The same numbers, in the layout of the run."""
        return state if self._stack is None else self._stack(state)


def _places(parallel: Parallel, like: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, parallel.checkpoint_shapes(like))
