"""Parallelism strategies for a pure function: `jit` on one device, `pmap`, or a mesh.

The training loops use only the interface `Parallel`.
"""

from collections.abc import Sequence

import jax

from othink_jax.config import ParallelConfig
from othink_jax.errors import UserError
from othink_jax.training.parallel.interface import Parallel, with_shardings
from othink_jax.training.parallel.mesh import Sharded
from othink_jax.training.parallel.one_device import OneDevice
from othink_jax.training.parallel.replicas import Replicas

__all__ = ["OneDevice", "Parallel", "make_parallel", "with_shardings"]


def make_parallel(config: ParallelConfig, visible: Sequence[jax.Device] | None = None) -> Parallel:
    """The implementation of `Parallel` that the settings select.

    Args:
      config: parallelism settings.
      visible: devices to choose from, which may be compile-only; `jax.devices()` if not given.

    Raises:
      UserError: the settings ask for more devices than visible, for several with `jit`, or for a
        number that `tensor` does not divide.
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
    # Devices of a process are adjacent in the mesh, so a tensor-parallel group is in one process.
    local = len(visible) // processes
    if count % config.tensor or local % config.tensor:
        raise UserError(
            f"{count} devices, {local} a process, do not divide by --tensor {config.tensor}"
        )
    return Sharded(devices, tensor=config.tensor)
