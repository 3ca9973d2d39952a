"""What of a policy is trained, and what stands still: kept once, for policy and reference alike.

train   trained                        frozen             a reference's own
all     everything                     nothing            everything
text    the text tower                 the vision tower   the text tower
lora    adapters of the text tower     everything         nothing
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from othink_jax.checkpoint.load import Model, abstract_model
from othink_jax.config import ComputeConfig, LoRAConfig, TrainingConfig
from othink_jax.model.config import VLMConfig
from othink_jax.model.stack import laid_out
from othink_jax.model.vlm import VLM

Params = dict[str, Any]  # nested; of arrays

REFERENCE = "reference"  # where an update finds one, beside the frozen parameters of the policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The policy is `join(trained, frozen)`."""

    trained: Params  # float32
    frozen: Params  # in the dtype of the computation


def divide(checkpoint: Model, config: TrainingConfig) -> Parts:
    """The parts of a policy that begins as `checkpoint`."""
    params = checkpoint.params
    if config.train == "all":
        return Parts(trained=params, frozen={})
    if config.train == "lora":
        adapters = fresh_adapters(checkpoint.config, config.lora, seed=config.seed)
        adapters = laid_out(adapters, like={"text": params["text"]})
        return Parts(trained=adapters, frozen=_computed(params, config))
    vision = {"visual": params["visual"]}
    return Parts(trained={"text": params["text"]}, frozen=_computed(vision, config))


def own_of_reference(checkpoint: Model, config: TrainingConfig) -> Params:
    """What a reference that stays `checkpoint` has beside the frozen part of the policy."""
    params = checkpoint.params
    own = {"all": params, "text": {"text": params["text"]}, "lora": {}}
    return _computed(own[config.train], config)


def _computed(params: Params, config: TrainingConfig) -> Params:
    """In the dtype of the computation."""
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype, copy=False), params)


def policy_graphdef(checkpoint: Model, config: TrainingConfig) -> Any:
    """Static part of the policy: that of `checkpoint`, but for adapters."""
    if config.train != "lora":
        return checkpoint.graphdef
    compute = dataclasses.replace(checkpoint.compute, lora=config.lora)
    return abstract_model(checkpoint.config, compute)[0]


def decoding_graphdef(checkpoint: Model, config: TrainingConfig) -> Any:
    """Static part of the policy with no layers scanned.

    A scan would copy the keys and values of all layers at each token that is drawn.
    """
    adapters = config.lora if config.train == "lora" else None
    compute = dataclasses.replace(checkpoint.compute, scan_layers="off", lora=adapters)
    return abstract_model(checkpoint.config, compute)[0]


def fresh_adapters(config: VLMConfig, lora: LoRAConfig, *, seed: int) -> Params:
    """Adapters that change nothing yet; float32."""

    # Compiled, so that the model's other weights, which nobody asks for, are not made.
    @jax.jit
    def draw() -> Params:
        model = VLM(config, rngs=nnx.Rngs(seed), compute=ComputeConfig(lora=lora))
        return nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))

    return draw()


def join(one: Params, other: Params) -> Params:
    """Two nested dicts without a common leaf as one. No array is copied."""
    common = {key: join(one[key], other[key]) for key in one.keys() & other.keys()}
    return one | other | common
