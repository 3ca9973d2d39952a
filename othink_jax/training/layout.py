"""The one layout of a training state on disk: no layers are stacked, whether a run scans or not."""

import functools
from collections.abc import Callable

import jax

from othink_jax.model.stack import laid_out, unrolled
from othink_jax.training.parallel import Parallel
from othink_jax.training.state import TrainState


class DiskLayout:
    """From an unreplicated state on the devices to what a checkpoint holds of it, and back.

    Where layers are scanned, their slices are arrays of their own while a checkpoint is begun: on
    each device, the state is held twice for that time.
    """

    def __init__(self, parallel: Parallel, like: TrainState) -> None:
        """For states of these shapes (`jax.ShapeDtypeStruct`)."""
        self.shapes: TrainState = jax.eval_shape(unrolled, like)
        self.to_disk = _conversion(parallel, unrolled, like)
        self.from_disk = _conversion(parallel, functools.partial(laid_out, like=like), self.shapes)


def _conversion(
    parallel: Parallel, convert: Callable[[TrainState], TrainState], given: TrainState
) -> Callable[[TrainState], TrainState]:
    made = jax.eval_shape(convert, given)
    before, after = (str(jax.tree.structure(tree)) for tree in (given, made))
    if before == after:
        return lambda state: state
    return jax.jit(
        convert, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, parallel.stored(made))
    )
