"""How a model is computed. None of these settings changes what a checkpoint holds."""

import dataclasses
from typing import Literal

from othink_jax.config.parts import LoRAConfig

# Residuals that each layer keeps for the backward pass; the rest is recomputed. `none`: all of
# them. `dots`: its input and the outputs of its linear layers, so that no product with weights is
# recomputed. `layer`: its input alone.
Remat = Literal["none", "dots", "layer"]

# Whether a tower scans over stacked layers, which compiles once for any depth, or unrolls them,
# which runs faster. `auto` scans where a tower is deeper than `SCAN_ABOVE`.
ScanLayers = Literal["auto", "on", "off"]

# Attention kernel. `reference` materialises all scores. `chunked`, in plain XLA, materialises those
# of a block of queries. `splash` is JAX's kernel for TPUs, `cudnn` that of NVIDIA's library. `auto`
# takes what the platform has, and the reference for few scores.
Attention = Literal["auto", "reference", "chunked", "splash", "cudnn"]

SCAN_ABOVE = 8  # layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Settings of a model's computation."""

    dtype: str = "float32"  # norms, rotary positions, softmax and logits are float32 always
    # Dtype of the parameters; that of the computation if not given. `stored` keeps the dtype in
    # which each parameter of a loaded model is stored
    param_dtype: str | None = None
    scan_layers: ScanLayers = "off"
    remat: Remat = "none"
    attention: Attention = "auto"
    platform: str | None = None  # platform to compile for: cpu, gpu or tpu; JAX's if not given
    lora: LoRAConfig | None = None  # adapters of the text tower's layers

    def scans(self, depth: int) -> bool:
        """Whether a tower of `depth` layers scans over them."""
        return self.scan_layers == "on" or (self.scan_layers == "auto" and depth > SCAN_ABOVE)


DEFAULT_COMPUTE = ComputeConfig()
