"""What of a policy is trained, and what stands still: kept once, for policy and reference alike.

train   trained                        frozen             the reference's own
all     everything                     nothing            everything
text    the text tower                 the vision tower   the text tower
lora    adapters of the text tower     everything         nothing
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from othink_jax.checkpoint.load import Checkpoint, abstract_model
from othink_jax.config import GRPOConfig, LoRAConfig
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.qwen2_vl import Qwen2VL

Params = dict[str, Any]  # nested; of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The policy is `join(trained, frozen)`, the reference `join(reference, frozen)`."""

    trained: Params  # float32
    frozen: Params  # in the dtype of the computation
    reference: Params  # in the dtype of the computation


def divide(checkpoint: Checkpoint, config: GRPOConfig) -> Parts:
    """The parts of a policy and a reference that begin as `checkpoint`."""

    def computed(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(config.dtype, copy=False), params)

    params = checkpoint.params
    if config.train == "all":
        return Parts(trained=params, frozen={}, reference=computed(params))
    if config.train == "lora":
        adapters = fresh_adapters(checkpoint.config, config.lora, seed=config.seed)
        return Parts(trained=adapters, frozen=computed(params), reference={})
    text, vision = {"text": params["text"]}, {"visual": params["visual"]}
    return Parts(trained=text, frozen=computed(vision), reference=computed(text))


def loaded_dtype(config: GRPOConfig) -> str:
    """That the model is to be loaded in: float32 for what is trained, unless only adapters are."""
    return config.dtype if config.train == "lora" else "float32"


def policy_graphdef(checkpoint: Checkpoint, config: GRPOConfig) -> Any:
    """Static part of the policy: that of `checkpoint`, but for adapters."""
    if config.train != "lora":
        return checkpoint.graphdef
    settings: dict[str, Any] = {"scan_layers": False, "remat": config.remat, "lora": config.lora}
    return abstract_model(checkpoint.config, config.dtype, **settings)[0]


def fresh_adapters(config: Qwen2VLConfig, lora: LoRAConfig, *, seed: int) -> Params:
    """Adapters that change nothing yet; float32."""

    # Compiled, so that the model's other weights, which nobody asks for, are not made.
    @jax.jit
    def draw() -> Params:
        model = Qwen2VL(config, rngs=nnx.Rngs(seed), lora=lora)
        return nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))

    return draw()


def join(one: Params, other: Params) -> Params:
    """Two nested dicts without a common leaf as one. No array is copied."""
    common = {key: join(one[key], other[key]) for key in one.keys() & other.keys()}
    return one | other | common
