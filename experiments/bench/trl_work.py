"""Inputs of both sides of `trl.py`: a model on disk, prompts with images, a reward."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

import othink_jax
from experiments.bench.shapes import Shapes
from othink_jax.checkpoint.load import save_hf
from othink_jax.data.synthetic import generate
from othink_jax.digests import write_sums

QUESTION = "Count"  # with template and image, the 150 tokens of the preset `cpu`
LEARNING_RATE = 1e-6
KL_WEIGHT = 0.04
MAX_GRAD_NORM = 1.0
TOP_K = 50  # R1-V's, and the default of `othink-jax grpo`
# The reference policy is the model times this, because a KL of zero has no gradient.
REFERENCE_SCALE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Model and data for GRPO steps on the same prompts; all files are in one directory."""

    shapes: Shapes
    model: Path  # the embedded model in Hugging Face layout, for images of this size
    images: tuple[Path, ...]  # one per prompt
    table: Path  # JSONL: question and image, one row per prompt
    never_sampled: tuple[int, ...]  # placeholder tokens, which a completion must not hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """The numbers of one update from the embedded model; rows are grouped by prompt."""

    prompts: Int[np.ndarray, "B P"]
    completions: Int[np.ndarray, "BG T"]
    advantages: Float[np.ndarray, " BG"]
    logp: Float[np.ndarray, "BG T"]  # nats, before the update
    ref_logp: Float[np.ndarray, "BG T"]
    loss: float
    adam_mean: Mapping[str, Float[np.ndarray, "..."]]  # after the update, by the hub's names


def make_work(shapes: Shapes, directory: Path) -> Work:
    """Write model and data; the images are those of the counting task, resized."""
    checkpoint = othink_jax.load("tiny")
    model = save_hf(checkpoint, directory / "model")
    vision = shapes.model.vision
    side = vision.patch_size * vision.spatial_merge_size
    height, width = (side * windows for windows in shapes.image)
    file = model / "preprocessor_config.json"
    pixels = {"min_pixels": height * width, "max_pixels": height * width}
    file.write_text(json.dumps(json.loads(file.read_text()) | pixels), encoding="utf-8")
    write_sums(model)

    images = tuple(directory / f"{number}.png" for number in range(shapes.prompts))
    for number, image in enumerate(images):
        picture = generate("counting", "train", number).images[0]
        picture.resize((width, height), Image.Resampling.BICUBIC).save(image)
    table = directory / "prompts.jsonl"
    rows = [
        {"question": QUESTION, "ground_truth": "none", "image_path": image.name} for image in images
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Work(
        shapes=shapes,
        model=model,
        images=images,
        table=table,
        never_sampled=checkpoint.processor.never_sampled,
    )


def reward(completion: str) -> float:
    """A number in [0, 1) that differs from text to text, so that advantages are not zero."""
    return zlib.crc32(completion.encode()) / 2**32
