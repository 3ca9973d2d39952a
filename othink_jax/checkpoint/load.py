"""`load`: any model, wherever it lies, as one object."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from othink_jax.checkpoint import hf, store
from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from othink_jax.files import new_model_directory
from othink_jax.model.config import Qwen2VLConfig
from othink_jax.model.qwen2_vl import Qwen2VL, split
from othink_jax.model.stack import Remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model with all that is needed to use it."""

    config: Qwen2VLConfig
    graphdef: Any  # static part of the module; `merge(graphdef, params)` is the model
    params: dict[str, Any]  # nested dict of arrays, or of their shapes, see `load`
    processor: Processor
    directory: Path  # where its configuration and tokenizer were read from


def abstract_model(
    config: Qwen2VLConfig,
    dtype: str,
    param_dtype: str | None = None,
    *,
    scan_layers: bool,
    remat: Remat = "none",
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
                remat=remat,
            )
        )
    )


def locate(model: str | Path) -> tuple[Path, Path | None]:
    """Where configuration and tokenizer of a model lie, and the run it is of, if it is of one.

    Raises:
      UserError: there is no such model.
    """
    directory = hf.resolve(model)
    reference = directory / store.RUN_REFERENCE
    return (reference, directory) if reference.is_dir() else (directory, None)


def load(
    model: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str | None = None,
    scan_layers: bool = False,
    remat: Remat = "none",
    abstract: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Checkpoint:
    """Load a model.

    Args:
      model: a Hugging Face directory or hub id, a directory written by `convert`, a run directory
        (its last checkpoint), or `tiny`, the embedded model.
      dtype: of the computation, `float32` or `bfloat16`; norms, rotary positions, softmax and
        logits are float32 always.
      param_dtype: of the parameters; that of the computation if not given. `stored` keeps the one
        that each of them is stored in.
      scan_layers: scan over stacked layers instead of unrolling them.
      remat: what the backward pass of a layer computes again: `none`, `dots` (all but the products
        with weights) or `layer` (everything).
      abstract: read no weights; `params` then holds `jax.ShapeDtypeStruct`s, for planning.
      min_pixels, max_pixels: bounds of an image's size instead of the model's own.

    Raises:
      UserError: there is no such model, or something of it is missing, damaged or does not fit.
    """
    directory, run = locate(model)
    config = hf.load_config(directory)
    params_in = dtype if param_dtype in (None, "stored") else str(param_dtype)
    graphdef, params = abstract_model(
        config, dtype, params_in, scan_layers=scan_layers, remat=remat
    )
    if not abstract:
        params = _read_params(run, directory, config, params_in, as_stored=param_dtype == "stored")
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


def _read_params(
    run: Path | None, directory: Path, config: Qwen2VLConfig, dtype: str, *, as_stored: bool
) -> dict[str, Any]:
    """Parameters of a run or of a model directory, unrolled: so they are stored everywhere."""
    _, unrolled = abstract_model(config, dtype, scan_layers=False)
    if run is not None:
        return store.load_run_params(run, unrolled, as_stored=as_stored)
    if (directory / store.PARAMS).is_dir():
        return store.load_params(directory, unrolled, as_stored=as_stored)
    return hf.load_params(directory, config, dtype=None if as_stored else dtype)


def save_hf(
    checkpoint: Checkpoint,
    directory: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    card: str | None = None,
    force: bool = False,
) -> Path:
    """Write a Hugging Face directory that transformers loads; returns it.

    Configuration, tokenizer, image settings and chat template come along; names and shapes of the
    tensors are the hub's, and their dtype is that of `checkpoint.params`. It appears whole or not
    at all.

    Args:
      checkpoint: from `load`.
      directory: where to write.
      max_shard_size: largest weight file, in bytes or such as `5GB`.
      card: text of the README.md beside the weights.
      force: replace a model that is there.

    Raises:
      UserError: the directory holds something already, cannot be written, or the disk is too full.
    """
    target = Path(directory)
    size = store.nbytes(checkpoint.params)
    with new_model_directory(target, size=size, force=force) as unfinished:
        hf.save(unfinished, checkpoint.config, checkpoint.params, max_shard_size=max_shard_size)
        hf.copy_companions(checkpoint.directory, unfinished)  # with the model's own config.json
        hf.correct_dtype(unfinished, checkpoint.params)
        if card is not None:
            (unfinished / "README.md").write_text(card, encoding="utf-8")
    return target
