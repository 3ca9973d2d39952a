"""`load`: any model, wherever it lies, as one object."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from othink_jax.checkpoint import hf, store
from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.qwen2_vl import Qwen2VL, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model with all that is needed to use it."""

    config: Qwen2VLConfig
    graphdef: Any  # static part of the module; `merge(graphdef, params)` is the model
    params: dict[str, Any]  # nested dict of arrays
    processor: Processor
    directory: Path  # where its configuration and tokenizer were read from


def abstract_model(
    config: Qwen2VLConfig, dtype: str, param_dtype: str | None = None, *, scan_layers: bool
) -> tuple[Any, Any]:
    """Static part and abstract parameters of a model: shapes and dtypes, no memory."""
    return split(
        nnx.eval_shape(
            lambda: Qwen2VL(
                config,
                rngs=nnx.Rngs(0),
                dtype=jnp.dtype(dtype),
                param_dtype=jnp.dtype(param_dtype or dtype),
                scan_layers=scan_layers,
            )
        )
    )


def load(
    model: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str | None = None,
    scan_layers: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Checkpoint:
    """Load a model.

    Args:
      model: a Hugging Face directory or hub id, a directory written by `convert`, a run directory
        (its last checkpoint), or `tiny`, the embedded model.
      dtype: of the computation, `float32` or `bfloat16`; norms, rotary positions, softmax and
        logits are float32 always.
      param_dtype: of the parameters; that of the computation if not given.
      scan_layers: scan over stacked layers instead of unrolling them.
      min_pixels, max_pixels: bounds of an image's size instead of the model's own.

    Raises:
      UserError: there is no such model, or something of it is missing, damaged or does not fit.
    """
    directory = hf.resolve(model)
    run = directory if (directory / store.RUN_REFERENCE).is_dir() else None
    if run is not None:
        directory = run / store.RUN_REFERENCE
    config = hf.load_config(directory)
    graphdef, _ = abstract_model(config, dtype, param_dtype, scan_layers=scan_layers)
    # What is stored is unrolled, in every kind of directory.
    _, unrolled = abstract_model(config, dtype, param_dtype, scan_layers=False)
    if run is not None:
        params = store.load_run_params(run, unrolled)
    elif (directory / store.PARAMS).is_dir():
        params = store.load_params(directory, unrolled)
    else:
        params = hf.load_params(directory, config, dtype=jnp.dtype(param_dtype or dtype))
    if scan_layers:
        params = hf.scanned(params)
    processor = Processor.from_pretrained(directory, min_pixels=min_pixels, max_pixels=max_pixels)
    if processor.image_token_id != config.image_token_id:
        raise UserError(
            f"{directory}: the tokenizer's image placeholder is {processor.image_token_id}, but"
            f" config.json says {config.image_token_id}"
        )
    return Checkpoint(
        config=config, graphdef=graphdef, params=params, processor=processor, directory=directory
    )


def save_hf(checkpoint: Checkpoint, directory: str | Path) -> Path:
    """Write a Hugging Face directory that transformers loads; returns it.

    Configuration, tokenizer, image settings and chat template come along; names and shapes of the
    tensors are the hub's, and their dtype is that of `checkpoint.params`.

    Raises:
      UserError: the directory exists and is not empty.
    """
    target = Path(directory)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; give another place or remove it first")
    target.mkdir(parents=True, exist_ok=True)
    hf.save(target, checkpoint.config, checkpoint.params)
    hf.copy_companions(checkpoint.directory, target)  # with the model's own config.json
    return target
