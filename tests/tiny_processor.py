"""A processor directory in the layout of the embedded model, with a tokenizer of a few words."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from experiments.tiny_tokenizer import train_tokenizer, write_processor
from othink_jax.model.config import VLMConfig

WORDS = (
    "system user assistant You are a helpful assistant. How many red circles are there?"
    " Which is larger? Think, then answer. I see it. 0 1 2 3 4 5 6 7 8 9"
)


def write_directory(directory: Path) -> Path:
    """Write tokenizer, chat template, image settings and generation settings into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    write_processor(directory, train_tokenizer([WORDS] * 4))
    return directory


def fitted(config: VLMConfig, directory: Path) -> VLMConfig:
    """The config with the vocabulary and the tokens of the tokenizer in `directory`."""
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, vocab_size=len(ids)),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """An RGB image whose patches are all different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
