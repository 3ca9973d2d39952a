"""`load`: any model, from any place, as one object."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx

from othink_jax.checkpoint import hf, orbax_model
from othink_jax.checkpoint.model_directory import new_model_directory
from othink_jax.checkpoint.tensors import (
    Tensors,
    cast,
    in_memory,
    lazy_params,
    read_params,
    with_stored_tie,
)
from othink_jax.config import DEFAULT_COMPUTE, RUN_REFERENCE, ComputeConfig, run_and_checkpoint
from othink_jax.data.processing import Processor, SpecialTokens
from othink_jax.digests import write_sums
from othink_jax.errors import UserError
from othink_jax.families import family_of
from othink_jax.files import as_path, on_disk
from othink_jax.model.config import VLMConfig
from othink_jax.model.stack import match_layout
from othink_jax.model.vlm import VLM, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model, with all that its programs are compiled from."""

    config: VLMConfig
    compute: ComputeConfig  # settings of the computation
    graphdef: Any  # static part of the module; `merge(graphdef, params)` is the model
    params: dict[str, Any]  # nested dict of arrays, or of their shapes, see `load`
    processor: SpecialTokens

    @property
    def scanned(self) -> bool:
        """Whether the layers of any tower are stacked in `params` (scanned)."""
        depths = self.config.text.num_hidden_layers, self.config.vision.depth
        return any(map(self.compute.scans, depths))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(Model):
    """A model with everything needed to use it."""

    processor: Processor
    directory: Path  # where its configuration and tokenizer were read from


def abstract_model(config: VLMConfig, compute: ComputeConfig = DEFAULT_COMPUTE) -> tuple[Any, Any]:
    """Static part and abstract parameters of a model: shapes and dtypes, no memory."""
    return split(nnx.eval_shape(lambda: VLM(config, rngs=nnx.Rngs(0), compute=compute)))


def locate(model: str | Path) -> tuple[Path, Path | None]:
    """Directory of a model's configuration and tokenizer, and its run or checkpoint, else None.

    The second is a run directory, for its last checkpoint, or the directory of one checkpoint.

    Raises:
      UserError: there is no such model.
    """
    directory = hf.resolve(model)
    run, _ = run_and_checkpoint(directory)
    reference = run / RUN_REFERENCE
    return (reference, directory) if reference.is_dir() else (directory, None)


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    compute: ComputeConfig | None = None,
    abstract: bool = False,
    on_host: bool = False,
    lazy: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Checkpoint:
    """Load a model.

    Args:
      model: a Hugging Face directory or hub id, a directory written by `convert`, a run directory
        (its last checkpoint), `RUN/checkpoints/STEP`, or `tiny`, the embedded model.
      dtype: dtype of the computation and the parameters, `float32` (the default) or `bfloat16`;
        norms, rotary positions, softmax and logits are always float32.
      compute: all settings of the computation, instead of `dtype`.
      on_host: keep the parameters in the host's memory, as numpy arrays.
      lazy: leave the parameters in storage: they are `LazyArray`s. Of several processes, each
        reads its own part.
      abstract: read no weights and check none; `params` then holds `jax.ShapeDtypeStruct`s, for
        planning.
      min_pixels, max_pixels: bounds of an image's size, instead of the model's own.

    Raises:
      UserError: there is no such model, or a part of it is missing, damaged or does not fit.
      ValueError: both `dtype` and `compute` are given.
    """
    if compute is None:
        compute = ComputeConfig(dtype=dtype or "float32")
    elif dtype is not None:
        raise ValueError("load: `compute` has a dtype of its own; give one of the two")
    stored = compute.param_dtype == "stored"
    if stored:
        compute = dataclasses.replace(compute, param_dtype=None)
    directory, run = locate(model)
    if abstract:
        config, tensors = hf.load_config(directory), None
    else:
        config, tensors = stored_model(directory, run)
    graphdef, params = abstract_model(config, compute)
    if tensors is not None:
        tensors = tensors if stored else cast(tensors, compute.param_dtype or compute.dtype)
        read = lazy_params(tensors) if lazy else read_params(tensors, on_host=on_host)
        params = match_layout(read, like=params)
    return Checkpoint(
        config=config,
        compute=compute,
        graphdef=graphdef,
        params=params,
        processor=load_processor(directory, config, min_pixels=min_pixels, max_pixels=max_pixels),
        directory=directory,
    )


def load_processor(
    directory: Path,
    config: VLMConfig,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Processor:
    """Tokenizer and image settings of a model; raises UserError if they are another model's."""
    with on_disk(directory, hf.COMPANIONS) as place:
        processor = Processor.from_pretrained(
            place,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            tokens_per_second=config.tokens_per_second,
            timestamps=family_of(config).timestamps,
            vocab_size=config.text.vocab_size,
        )
    _check_agreement(directory, processor, config)
    return processor


def _check_agreement(directory: Path, processor: Processor, config: VLMConfig) -> None:
    """Raise UserError if the model's files contradict each other.

    Patches that are cut differently from how the vision tower merges them give nan, not an error.
    """
    images, vision = processor.image_settings, config.vision
    both = {
        # Name in the processor's file or the tokenizer, name in config.json.
        ("patch_size", "patch_size"): (images.patch_size, vision.patch_size),
        ("temporal_patch_size",) * 2: (images.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", "spatial_merge_size"): (images.merge_size, vision.spatial_merge_size),
        ("number of colours", "in_channels"): (3, vision.in_channels),
        ("<|image_pad|>", "image_token_id"): (processor.image_token_id, config.image_token_id),
        ("<|video_pad|>", "video_token_id"): (processor.video_token_id, config.video_token_id),
        ("<|vision_start|>", "vision_start_token_id"): (
            processor.vision_start_token_id,
            config.vision_start_token_id,
        ),
        ("<|vision_end|>", "vision_end_token_id"): (
            processor.vision_end_token_id,
            config.vision_end_token_id,
        ),
    }
    faults = [
        f"{theirs} is {found}, but {ours} of config.json is {wanted}"
        for (theirs, ours), (found, wanted) in both.items()
        if found != wanted
    ]
    if faults:
        raise UserError(
            f"{directory}: tokenizer or image settings (preprocessor_config.json,"
            f" processor_config.json) are another model's: {'; '.join(faults)}"
        )


def stored_model(directory: Path, run: Path | None) -> tuple[VLMConfig, Tensors]:
    """Config and tensors of a model at the places that `locate` gives; no tensor is read yet.

    Raises:
      UserError: they are missing or damaged, or do not fit each other.
    """
    hf.check_integrity(directory)
    config = hf.load_config(directory)
    tensors = _stored_tensors(directory, run, config)
    return with_stored_tie(config, tensors), tensors


def _stored_tensors(directory: Path, run: Path | None, config: VLMConfig) -> Tensors:
    if run is not None:
        return orbax_model.run_tensors(run, config)
    if (directory / orbax_model.PARAMS).is_dir():
        if any(directory.glob("*.safetensors")):
            raise UserError(
                f"{directory} holds weights twice: {orbax_model.PARAMS}/ and safetensors; remove"
                " what is not the model's"
            )
        return orbax_model.stored_tensors(directory, config)
    return hf.stored_tensors(directory, config)


def save_hf(
    checkpoint: Checkpoint,
    directory: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    card: str | None = None,
    force: bool = False,
) -> Path:
    """Write a Hugging Face directory that transformers loads; returns it.

    Configuration, tokenizer, image settings and chat template are written too. Names and shapes of
    the tensors are the hub's; their dtype is that of `checkpoint.params`. The directory is written
    atomically.

    Args:
      checkpoint: from `load`.
      directory: the directory to write.
      max_shard_size: largest weight file, in bytes or such as `5GB`.
      card: text of the README.md beside the weights.
      force: replace an existing model.

    Raises:
      UserError: the directory is not empty, cannot be written, or the disk is too full.
    """
    return write_hf(
        as_path(directory),
        checkpoint.config,
        in_memory(checkpoint.config, checkpoint.params),
        companions=checkpoint.directory,
        max_shard_size=max_shard_size,
        card=card,
        force=force,
    )


def write_hf(
    target: Path,
    config: VLMConfig,
    tensors: Tensors,
    *,
    companions: Path,
    max_shard_size: int | str,
    card: str | None,
    force: bool,
) -> Path:
    """As `save_hf`, for tensors from any source."""
    with new_model_directory(target, size=tensors.total_nbytes, force=force) as unfinished:
        hf.save(unfinished, config, tensors, companions=companions, max_shard_size=max_shard_size)
        write_sums(unfinished)  # all but the card, which is meant to be edited
        if card is not None:
            (unfinished / "README.md").write_text(card, encoding="utf-8")
    return target
