"""How a model is computed. None of it changes what a checkpoint holds."""

import dataclasses
from typing import Literal

from othink_jax.config.parts import LoRAConfig

# Residuals that each layer keeps for the backward pass; the rest is recomputed. `none`: all of
# them. `dots`: its input and the outputs of its linear layers, so that no product with weights is
# made again. `layer`: its input alone.
Remat = Literal["none", "dots", "layer"]

# Whether a tower scans over stacked layers, which compiles once for any depth, or unrolls them,
# which runs faster. `auto` scans where a tower is deeper than `SCAN_ABOVE`.
ScanLayers = Literal["auto", "on", "off"]

# Kernel of attention. `reference` holds all scores. `chunked`, in plain XLA, holds those of a block
# of queries. `splash` is JAX's kernel for TPUs, `cudnn` that of NVIDIA's library. `auto` takes what
# the platform has, and the reference where scores are few.
Attention = Literal["auto", "reference", "chunked", "splash", "cudnn"]

SCAN_ABOVE = 8  # layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Settings of a model's computation."""

    dtype: str = "float32"  # norms, rotary positions, softmax and logits are float32 always
    # Of the parameters; that of the computation if not given. Of a model that is loaded, `stored`
    # keeps the one that each of them is stored in
    param_dtype: str | None = None
    scan_layers: ScanLayers = "off"
    remat: Remat = "none"
    attention: Attention = "auto"
    platform: str | None = None  # that it is compiled for: cpu, gpu or tpu; JAX's if not given
    lora: LoRAConfig | None = None  # adapters of the text tower's layers

    def scans(self, depth: int) -> bool:
        """Whether a tower of so many layers scans over them."""
        return self.scan_layers == "on" or (self.scan_layers == "auto" and depth > SCAN_ABOVE)


DEFAULT_COMPUTE = ComputeConfig()
