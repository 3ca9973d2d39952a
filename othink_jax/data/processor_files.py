"""Tokenizer, chat template and image settings from the files of a model directory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# Not AutoTokenizer: it imports torch where torch is installed, and takes seconds.
from transformers import PreTrainedTokenizerFast

from othink_jax.data.images import ImageSettings
from othink_jax.errors import UserError, first_line
from othink_jax.files import read_json

# Steps of the image processor that are always applied; only these values are supported.
_FIXED_STEPS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_QUOTED = 300  # characters quoted from a library's error


def read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer and its chat template.

    The template comes from the first of chat_template.json, chat_template.jinja and
    tokenizer_config.json that has one, as in the processor of transformers.

    Raises:
      UserError: tokenizer or template is missing or broken, no padding or end-of-sequence token is
        named, or tokenizer_config.json names a token that tokenizer.json lacks.
    """
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} has no tokenizer.json")
    try:
        own = token_ids(Tokenizer.from_file(str(directory / "tokenizer.json")))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    except Exception as error:  # the parser in Rust raises bare exceptions
        raise UserError(
            f"{directory} has no usable tokenizer: {first_line(error)[:_QUOTED]}"
        ) from error
    if (directory / "chat_template.json").is_file():
        tokenizer.chat_template = read_json(directory / "chat_template.json").get("chat_template")
    if tokenizer.chat_template is None:
        raise UserError(f"{directory} has no chat template")
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"{directory / 'tokenizer_config.json'} names no {name}")
    # transformers would give such a token a new id, which the model has never seen.
    if added := token_ids(tokenizer.backend_tokenizer) - own:
        named = ", ".join(sorted(map(tokenizer.backend_tokenizer.id_to_token, added)))
        raise UserError(
            f"{directory}: tokenizer_config.json names {named}, tokenizer.json does not"
        )
    # A tokenizer may be saved with limits; prompts are never truncated, and `batch` pads them.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def token_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of all tokens, added ones included."""
    return set(tokenizer.get_vocab(with_added_tokens=True).values())


def read_eos_token_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """All tokens that end a completion, sorted: generation_config.json may name several.

    Raises:
      UserError: it names something that is not the id of a token.
    """
    path = directory / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = named if isinstance(named, list) else [] if named is None else [named]
    known = token_ids(tokenizer.backend_tokenizer)
    wrong = [found for found in ids if type(found) is not int or found not in known]
    if wrong:
        raise UserError(f"{path}: eos_token_id {wrong[0]!r} is not the id of a token")
    return tuple(sorted({tokenizer.eos_token_id, *ids}))


def read_image_settings(
    directory: Path, *, min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    """Settings of preprocessor_config.json, or of processor_config.json as transformers 5 saves it.

    Args:
      directory: of the model.
      min_pixels, max_pixels: bounds of an image's size that replace the model's.

    Raises:
      UserError: a setting is missing, contradicts another or differs from Qwen2-VL's fixed steps.
    """
    old, new = directory / "preprocessor_config.json", directory / "processor_config.json"
    nested = read_json(new).get("image_processor") if new.is_file() else None
    if nested is None:
        return _image_settings(old, read_json(old), min_pixels, max_pixels)
    found = _image_settings(new, nested, min_pixels, max_pixels)
    if old.is_file() and found != _image_settings(old, read_json(old), min_pixels, max_pixels):
        raise UserError(f"{old} and {new.name} say different things of images; remove one of them")
    return found


def _image_settings(
    path: Path, config: Any, min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    if not isinstance(config, dict):
        raise UserError(f"{path}: image_processor is no JSON object")
    for name, value in _FIXED_STEPS.items():
        if config.get(name) not in (None, value):
            raise UserError(f"{path}: {name} is {config[name]!r}, but only {value} is supported")
    low, high = _own_bounds(path, config)
    values: dict[str, Any] = {
        **{name: config.get(name) for name in ("patch_size", "temporal_patch_size", "merge_size")},
        "min_pixels": low if min_pixels is None else min_pixels,
        "max_pixels": high if max_pixels is None else max_pixels,
    }
    colours = {name: config.get(name) for name in ("image_mean", "image_std")}
    missing = [name for name, value in {**values, **colours}.items() if value is None]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: {name} must be a positive whole number, got {value!r}")
    mean, std = (_of_each_colour(path, name, value) for name, value in colours.items())
    if not all(std):
        raise UserError(f"{path}: image_std must not be 0, got {colours['image_std']!r}")
    return ImageSettings(**values, mean=mean, std=std)


def _of_each_colour(path: Path, name: str, value: Any) -> tuple[float, float, float]:
    """One number per colour; a single number applies to all three, as in transformers."""
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(is_number(each) for each in values):
        raise UserError(f"{path}: {name} must be a number, or one of each colour, got {value!r}")
    red, green, blue = values
    return red, green, blue


def _own_bounds(path: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Least and greatest number of pixels; None if not given.

    Two spellings exist: min_pixels and max_pixels, and `size`, whose edges are areas despite their
    name. The first takes precedence, as in transformers.
    """
    size = config.get("size") or {}
    if not isinstance(size, dict):
        raise UserError(f"{path}: size must hold shortest_edge and longest_edge, got {size!r}")
    return (
        config.get("min_pixels") or size.get("shortest_edge"),
        config.get("max_pixels") or size.get("longest_edge"),
    )


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
