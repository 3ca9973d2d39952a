"""Machines that a run can be compiled for without having them, and their published peaks."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from othink_jax.errors import UserError

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A TPU chip or a GPU. Rates are peaks per second."""

    platform: Literal["tpu", "cuda"]
    flops: float  # of dense bfloat16 matrix products
    memory: int  # bytes that programs and their arrays may take
    bandwidth: float  # bytes from and to that memory
    link: float  # bytes sent to other chips of the slice or machine; as many are received
    shapes: tuple[str, ...]  # topologies of slices; for GPUs, the number in a machine
    # Chips of a host by shape of the slice, for slices whose hosts do not have 2x2 chips
    host: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    gpu: Mapping[str, Any] | None = None  # description of a GPU that XLA needs to compile for it

    @property
    def backend(self) -> str:
        """JAX's name for the platform of a real device."""
        return "gpu" if self.platform == "cuda" else self.platform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Chips of one kind, in one slice or machine."""

    name: str  # such as v5e:2x4
    chip: Chip
    shape: str  # such as 2x4
    count: int  # devices


# Slices of one host: all 8 chips of a v5e or v6e, or one.
_HOSTS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_MACHINE = ("1", "2", "4", "8")  # GPUs that NVLink joins

# TPUs: from cloud.google.com/tpu/docs/v5e, /v5p and /v6e. Memory is what the compiler grants, from
# its out-of-memory message. The documents give links in both directions together.
# GPUs: from NVIDIA's data sheets of H100 SXM, H200 SXM and A100 SXM 80GB (products without
# sparsity; NVLink in both directions together, halved here), and their descriptions in XLA's
# sources, xla/backends/gpu/target_config/specs.
CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(
        platform="tpu",
        flops=197e12,
        memory=int(15.75 * _GIB),
        bandwidth=819e9,
        link=200e9,
        shapes=_FLAT,
        host=_HOSTS,
    ),
    "v5p": Chip(
        platform="tpu",
        flops=459e12,
        memory=int(95.74 * _GIB),
        bandwidth=2765e9,
        link=600e9,
        shapes=("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    ),
    "v6e": Chip(
        platform="tpu",
        flops=918e12,
        memory=int(31.25 * _GIB),
        bandwidth=1638e9,
        link=400e9,
        shapes=_FLAT,
        host=_HOSTS,
    ),
    "a100": Chip(
        platform="cuda",
        flops=312e12,
        memory=85_100_068_864,
        bandwidth=2039e9,
        link=300e9,
        shapes=_MACHINE,
        gpu={
            **{"name": "NVIDIA A100-SXM4-80GB", "capability": 8, "cores": 108, "fpus": 64},
            **{"clock": 1.41, "l2_cache": 41_943_040},
            **{"shared_memory": 167_936, "shared_memory_of_block": 166_912},
        },
    ),
    "h100": Chip(
        platform="cuda",
        flops=989e12,
        memory=84_942_979_072,
        bandwidth=3352e9,
        link=450e9,
        shapes=_MACHINE,
        gpu={
            **{"name": "NVIDIA H100 80GB HBM3", "capability": 9, "cores": 132, "fpus": 128},
            **{"clock": 1.98, "l2_cache": 52_428_800},
            **{"shared_memory": 233_472, "shared_memory_of_block": 232_448},
        },
    ),
    "h200": Chip(
        platform="cuda",
        flops=989e12,
        memory=151_397_597_184,
        bandwidth=4800e9,
        link=450e9,
        shapes=_MACHINE,
        gpu={
            **{"name": "NVIDIA H200 141GB HBM3e", "capability": 9, "cores": 132, "fpus": 128},
            **{"clock": 1.98, "l2_cache": 52_428_800},
            **{"shared_memory": 233_472, "shared_memory_of_block": 232_448},
        },
    ),
}


def parse_target(name: str) -> Target:
    """The target of a name such as `v5e:2x4` or `h100:8`.

    Raises:
      UserError: there is no such target; the message lists all targets.
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or shape not in chip.shapes:
        known = "; ".join(f"{kind}:{', '.join(chip.shapes)}" for kind, chip in CHIPS.items())
        raise UserError(f"there is no --target {name}; those that there are: {known}")
    return Target(
        name=name, chip=chip, shape=shape, count=math.prod(int(side) for side in shape.split("x"))
    )


def gpu_description(chip: Chip) -> str:
    """An XLA `GpuTargetConfigProto`, as text."""
    gpu = chip.gpu
    assert gpu is not None
    return f"""
gpu_device_info {{
  name: "{gpu["name"]}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {gpu["capability"]} }}
  platform_version: "Compute Capability {gpu["capability"]}.0{"a" if gpu["capability"] > 8 else ""}"
  core_count: {gpu["cores"]}
  fpus_per_core: {gpu["fpus"]}
  clock_rate_ghz: {gpu["clock"]}
  device_memory_size: {chip.memory}
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {gpu["l2_cache"]}
  shared_memory_per_core: {gpu["shared_memory"]}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu["shared_memory_of_block"]}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu["name"]}"
"""
