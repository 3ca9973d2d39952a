"""A model from its config alone: no weights, no tokenizer, and no hub for the shipped configs."""

import dataclasses
from pathlib import Path

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import Model, abstract_model, locate
from othink_jax.config import GRPOConfig
from othink_jax.families import from_hf
from othink_jax.files import read_json
from othink_jax.model.config import VLMConfig

# Configs of models of the hub, by id: the part of config.json that determines shapes.
SHIPPED = hf.TINY.parent / "shapes"


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Stand-ins for special tokens: their ids do not change what a program takes."""

    eos_token_ids: tuple[int, ...]
    never_sampled: tuple[int, ...]
    pad_token_id: int = 0


def model_config(model: str) -> VLMConfig:
    """The config of a model: a directory, a run, an embedded one, an id of `SHIPPED` or the hub.

    Raises:
      UserError: there is no such model, or its config.json is damaged.
    """
    shipped = SHIPPED / f"{model}.json"
    if not Path(model).exists() and shipped.is_file():
        return from_hf(read_json(shipped))
    return hf.load_config(locate(model)[0])


def model_of(config: GRPOConfig, platform: str = "cpu") -> Model:
    """The model of a run on this platform, with shapes instead of parameters."""
    shape, compute = model_config(config.model), config.compute(platform)
    graphdef, params = abstract_model(shape, compute)
    images = (
        *(shape.image_token_id, shape.video_token_id),
        *(shape.vision_start_token_id, shape.vision_end_token_id),
    )
    tokens = _Tokens(eos_token_ids=(1,), never_sampled=images)
    return Model(config=shape, compute=compute, graphdef=graphdef, params=params, processor=tokens)
