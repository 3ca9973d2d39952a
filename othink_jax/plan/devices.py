"""Compile-only devices: JAX lowers and compiles for them, but runs nothing on them."""

import importlib.util
import os
from pathlib import Path

import jax
from jax.experimental import topologies

from othink_jax.errors import UserError, first_line
from othink_jax.plan.targets import Target, gpu_description

# Without these, libtpu looks for the machine that it runs on, and complains.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


def compile_only_devices(target: Target) -> tuple[jax.Device, ...]:
    """The devices of a target; none of them has to exist on this machine.

    Raises:
      UserError: the compiler of the target is not installed, or does not start.
    """
    make = _tpu if target.chip.platform == "tpu" else _cuda
    try:
        return tuple(make(target).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        if "already in use" in reason or "lockfile" in reason:
            reason = "another process has loaded libtpu, which only one may: wait for its end"
        raise UserError(f"the compiler for --target {target.name} does not start: {reason}") from (
            error
        )


def _tpu(target: Target) -> topologies.TopologyDescription:
    if not _installed("libtpu"):
        raise _missing(target, "aot-tpu")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    host = target.chip.host.get(target.shape, (2, 2, 1))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=target.name, chips_per_host_bounds=host
    )


def _cuda(target: Target) -> topologies.TopologyDescription:
    if not _installed("jax_plugins.xla_cuda12"):
        raise _missing(target, "aot-cuda")
    nvcc = importlib.util.find_spec("nvidia.cuda_nvcc") if _installed("nvidia") else None
    if nvcc is not None:  # its `ptxas`, which is not on the path of a machine without CUDA
        tools = [str(Path(place) / "bin") for place in nvcc.submodule_search_locations or ()]
        os.environ["PATH"] = os.pathsep.join([*tools, os.environ.get("PATH", "")])
    jax.devices()  # makes JAX look for its plugins
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=gpu_description(target.chip),
        topology=f"1x1x{target.count}",  # slices, machines of a slice, GPUs of a machine
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the parent package
        return False


def _missing(target: Target, extra: str) -> UserError:
    return UserError(
        f"--target {target.name} needs that machine's compiler: pip install 'othink_jax[{extra}]'"
    )
