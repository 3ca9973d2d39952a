"""How a pure function is spread over devices: by `jit`, by `pmap`, or over a mesh.

The loops know only the interface `Parallel`.
"""

from collections.abc import Sequence

import jax

from othink_jax.config import ParallelConfig
from othink_jax.errors import UserError
from othink_jax.training.parallel.interface import Parallel, placed
from othink_jax.training.parallel.mesh import Sharded
from othink_jax.training.parallel.one_device import OneDevice
from othink_jax.training.parallel.replicas import Replicas

__all__ = ["OneDevice", "Parallel", "make_parallel", "placed"]


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
