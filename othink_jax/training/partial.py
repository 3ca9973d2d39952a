"""Which parameters are trained and which are frozen; policy and reference share the frozen ones.

train   trained                        frozen             held by the reference alone
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
from othink_jax.model.stack import match_layout
from othink_jax.model.vlm import VLM

Params = dict[str, Any]  # nested dict of arrays

REFERENCE = "reference"  # key of the reference's parameters among an update's frozen ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Trained and frozen parameters; the policy is `merge_params(trained, frozen)`."""

    trained: Params  # float32
    frozen: Params  # in the compute dtype


def split_params(checkpoint: Model, config: TrainingConfig) -> Parts:
    """Trained and frozen parameters of a policy that starts from `checkpoint`."""
    params = checkpoint.params
    if config.train == "all":
        return Parts(trained=params, frozen={})
    if config.train == "lora":
        adapters = fresh_adapters(checkpoint.config, config.lora, seed=config.seed)
        adapters = match_layout(adapters, like={"text": params["text"]})
        return Parts(trained=adapters, frozen=_computed(params, config))
    vision = {"visual": params["visual"]}
    return Parts(trained={"text": params["text"]}, frozen=_computed(vision, config))


def reference_only_params(checkpoint: Model, config: TrainingConfig) -> Params:
    """Parameters that a reference fixed at `checkpoint` needs beside the policy's frozen ones."""
    params = checkpoint.params
    own = {"all": params, "text": {"text": params["text"]}, "lora": {}}
    return _computed(own[config.train], config)


def _computed(params: Params, config: TrainingConfig) -> Params:
    """Cast parameters to the compute dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype, copy=False), params)


def policy_graphdef(checkpoint: Model, config: TrainingConfig) -> Any:
    """Graphdef of the policy: that of `checkpoint`, or with adapters for LoRA."""
    if config.train != "lora":
        return checkpoint.graphdef
    compute = dataclasses.replace(checkpoint.compute, lora=config.lora)
    return abstract_model(checkpoint.config, compute)[0]


def decoding_graphdef(checkpoint: Model, config: TrainingConfig) -> Any:
    """Graphdef of the policy with unrolled layers, for decoding.

    A scan over layers would copy the keys and values of all layers at each sampled token.
    """
    adapters = config.lora if config.train == "lora" else None
    compute = dataclasses.replace(checkpoint.compute, scan_layers="off", lora=adapters)
    return abstract_model(checkpoint.config, compute)[0]


def fresh_adapters(config: VLMConfig, lora: LoRAConfig, *, seed: int) -> Params:
    """Newly initialised float32 adapters, which do not change the model's outputs yet."""

    # Jitted: the model's other weights are unused, so they are never materialised.
    @jax.jit
    def draw() -> Params:
        model = VLM(config, rngs=nnx.Rngs(seed), compute=ComputeConfig(lora=lora))
        return nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))

    return draw()


def merge_params(one: Params, other: Params) -> Params:
    """Merge two nested dicts that share no leaf. No array is copied."""
    common = {key: merge_params(one[key], other[key]) for key in one.keys() & other.keys()}
    return one | other | common
