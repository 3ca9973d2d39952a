"""What a model directory says about tokens, chat turns and images, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Not AutoTokenizer: it imports torch where torch is installed, and takes seconds.
from transformers import PreTrainedTokenizerFast

from othink_jax.data.images import ImageSettings
from othink_jax.errors import UserError
from othink_jax.files import read_json

# Steps of the image processor that are always made, and made in this way only.
_FIXED_STEPS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Tokenizer and chat template.

    The template stands in tokenizer_config.json, chat_template.jinja or chat_template.json.

    Raises:
      UserError: one of them is missing or broken, or no padding or end-of-sequence token is named.
    """
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} has no tokenizer.json")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    except Exception as error:  # the parser in Rust raises bare exceptions
        raise UserError(f"{directory} has no usable tokenizer: {error}") from error
    if tokenizer.chat_template is None and (directory / "chat_template.json").is_file():
        tokenizer.chat_template = read_json(directory / "chat_template.json").get("chat_template")
    if tokenizer.chat_template is None:
        raise UserError(f"{directory} has no chat template")
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"{directory / 'tokenizer_config.json'} names no {name}")
    # A tokenizer may have been saved with limits; a prompt is never cut, and padded by us alone.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def read_eos_token_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """All tokens that end a completion, sorted: generation_config.json may name several."""
    named: Any = []
    if (directory / "generation_config.json").is_file():
        named = read_json(directory / "generation_config.json").get("eos_token_id") or []
    ids: list[int] = [named] if isinstance(named, int) else named
    return tuple(sorted({tokenizer.eos_token_id, *ids}))


def read_image_settings(
    directory: Path, *, min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    """Settings of preprocessor_config.json, or of processor_config.json as transformers 5 saves it.

    Args:
      directory: of the model.
      min_pixels, max_pixels: bounds of an image's size instead of the model's own.

    Raises:
      UserError: a setting is missing, contradicts another or is not what Qwen2-VL does.
    """
    path = directory / "processor_config.json"
    config = read_json(path).get("image_processor") if path.is_file() else None
    if config is None:
        path = directory / "preprocessor_config.json"
        config = read_json(path)
    for name, value in _FIXED_STEPS.items():
        if config.get(name) not in (None, value):
            raise UserError(f"{path}: {name} is {config[name]}, but only {value} is supported")
    low, high = _own_bounds(config)
    values: dict[str, Any] = {
        **{name: config.get(name) for name in ("patch_size", "temporal_patch_size", "merge_size")},
        "min_pixels": low if min_pixels is None else min_pixels,
        "max_pixels": high if max_pixels is None else max_pixels,
        "image_mean": config.get("image_mean"),
        "image_std": config.get("image_std"),
    }
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    mean, std = values.pop("image_mean"), values.pop("image_std")
    return ImageSettings(**values, mean=tuple(mean), std=tuple(std))


def _own_bounds(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Least and greatest number of pixels; None where they are not given.

    Two spellings: min_pixels and max_pixels, and `size`, whose edges are areas in spite of their
    name. Where both stand, transformers lets the first go before.
    """
    size = config.get("size") or {}
    return (
        config.get("min_pixels") or size.get("shortest_edge"),
        config.get("max_pixels") or size.get("longest_edge"),
    )
