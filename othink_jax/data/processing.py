"""Questions and images to `Prompts`, without torch."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from transformers import AutoTokenizer

from othink_jax.data.images import ImageSettings, patchify
from othink_jax.data.images import open_image as open_image
from othink_jax.errors import UserError
from othink_jax.types import Prompts

_PROMPT_BUCKET = 32  # prompt lengths are padded to a multiple of this
_PATCH_BUCKET = 64  # patches of an image, likewise; a multiple of every merge window


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One prompt as the model reads it, not yet padded."""

    tokens: Int[np.ndarray, " p"]  # int32, image placeholders expanded
    positions: Int[np.ndarray, "3 p"]  # int32 M-RoPE positions
    patches: tuple[Float[np.ndarray, "k C"], ...]  # one array an image
    patch_positions: tuple[Int[np.ndarray, "k 2"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadTo:
    """Shapes that a batch is padded to."""

    prompt_tokens: int  # P
    image_slots: int  # I
    patches: int  # K


def mrope_positions(
    is_image: Bool[np.ndarray, " p"], grids: Sequence[tuple[int, int]]
) -> Int[np.ndarray, "3 p"]:
    """M-RoPE positions (Qwen2-VL, section 2.1): temporal, height and width of each token.

    Text counts on along all three axes. An image's tokens share one temporal position, and their
    rows and columns count from there; text after it goes on past the largest of them.

    Args:
      is_image: true at the placeholders, one a merge window.
      grids: rows and columns of merge windows of each image, in order.

    Returns:
      int32 positions.
    """
    positions = np.zeros((3, len(is_image)), np.int64)
    token, following = 0, 0
    for rows, columns in grids:
        start = token + int(np.argmax(is_image[token:]))
        positions[:, token:start] = following + np.arange(start - token)
        following += start - token
        token = start + rows * columns
        positions[0, start:token] = following
        positions[1, start:token] = following + np.repeat(np.arange(rows), columns)
        positions[2, start:token] = following + np.tile(np.arange(columns), rows)
        following += max(rows, columns)
    positions[:, token:] = following + np.arange(len(is_image) - token)
    return positions.astype(np.int32)


def _read(directory: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory} has no {name}") from None
    except ValueError as error:
        raise UserError(f"{directory / name} is not valid JSON: {error}") from error


def _image_settings(
    config: Mapping[str, Any], min_pixels: int | None, max_pixels: int | None
) -> ImageSettings:
    # Two spellings of the bounds: min_pixels and max_pixels, and transformers 5's edges, which
    # are areas in spite of their name.
    size = config.get("size") or {}
    low: int = config.get("min_pixels") or size["shortest_edge"]
    high: int = config.get("max_pixels") or size["longest_edge"]
    return ImageSettings(
        patch_size=config["patch_size"],
        temporal_patch_size=config["temporal_patch_size"],
        merge_size=config["merge_size"],
        min_pixels=low if min_pixels is None else min_pixels,
        max_pixels=high if max_pixels is None else max_pixels,
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def _eos_token_ids(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end a completion: generation_config.json may name several."""
    named: Any = []
    if (directory / "generation_config.json").is_file():
        named = _read(directory, "generation_config.json").get("eos_token_id") or []
    ids = {named} if isinstance(named, int) else set(named)
    return tuple(sorted(ids | {tokenizer.eos_token_id}))


class Processor:
    """Tokenizer, chat template and image settings of one model."""

    def __init__(
        self, tokenizer: Any, image_settings: ImageSettings, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.tokenizer = tokenizer
        self.image_settings = image_settings
        self.eos_token_ids = eos_token_ids
        self.pad_token_id: int = tokenizer.pad_token_id
        self.image_token_id = self._id("<|image_pad|>")
        vision = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|video_pad|>")
        turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
        # A completion that held one of these would have to have images, or open a turn.
        self.never_sampled = tuple(
            sorted({self.image_token_id, turn, *(self._id(name) for name in vision)})
        )

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UserError(f"the tokenizer lacks {token}: it is not that of a Qwen2-VL")
        return found

    @classmethod
    def from_pretrained(
        cls, directory: Path, *, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> Self:
        """Read tokenizer, chat template and image settings of a model directory.

        Args:
          directory: with tokenizer.json, a chat template and preprocessor_config.json.
          min_pixels, max_pixels: bounds of an image's size instead of the model's own.

        Raises:
          UserError: a file is missing or broken, or the tokenizer lacks a vision token.
        """
        config = _read(directory, "preprocessor_config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise UserError(f"{directory} has no usable tokenizer: {error}") from error
        if tokenizer.chat_template is None and (directory / "chat_template.json").is_file():
            tokenizer.chat_template = _read(directory, "chat_template.json")["chat_template"]
        if tokenizer.chat_template is None:
            raise UserError(f"{directory} has no chat template")
        return cls(
            tokenizer,
            _image_settings(config, min_pixels, max_pixels),
            _eos_token_ids(directory, tokenizer),
        )

    @functools.lru_cache(maxsize=64)  # noqa: B019 (few processors, living as long as the program)
    def _turn(self, images: int) -> str:
        """The rendered user turn with `images` placeholders before the question."""
        content = [*[{"type": "image"}] * images, {"type": "text", "text": "{question}"}]
        return self.render([{"role": "user", "content": content}])

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template over `messages`, ready for the assistant's answer."""
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )

    def encode(self, question: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """One user turn: the images, then the question."""
        before, after = self._turn(len(images)).split("{question}")
        return self._encode(before + question + after, images)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
    ) -> EncodedPrompt:
        """A chat of several turns; `images` are those of its image parts, in order."""
        return self._encode(self.render(messages), images)

    def _encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        short = np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        placeholders = int((short == self.image_token_id).sum())
        if placeholders != len(images):
            raise UserError(
                f"the text has {placeholders} image placeholder(s), but there are {len(images)}"
                " image(s)"
            )
        made = [patchify(image, self.image_settings) for image in images]
        merge = self.image_settings.merge_size
        grids = [tuple((where.max(axis=0) + 1) // merge) for _, where in made]
        counts = np.ones(len(short), np.int64)
        counts[short == self.image_token_id] = [rows * columns for rows, columns in grids]
        tokens = np.repeat(short, counts)
        return EncodedPrompt(
            tokens=tokens,
            positions=mrope_positions(tokens == self.image_token_id, grids),
            patches=tuple(patches for patches, _ in made),
            patch_positions=tuple(where for _, where in made),
        )

    def batch(self, encoded: Sequence[EncodedPrompt], *, pad: PadTo | None = None) -> Prompts:
        """Pad prompts on the right into one batch of numpy arrays.

        Without `pad`, P and K are rounded up to multiples (few shapes, few compilations) and I is
        the largest number of images.

        Raises:
          UserError: a prompt does not fit `pad`.
        """
        pad = pad or self._bucket(encoded)
        settings = self.image_settings
        merged = pad.patches // settings.merge_size**2
        patch_dim = 3 * settings.temporal_patch_size * settings.patch_size**2
        size, slots = len(encoded), pad.image_slots
        tokens = np.full((size, pad.prompt_tokens), self.pad_token_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        positions = np.zeros((size, 3, pad.prompt_tokens), np.int32)
        image_index = np.full(tokens.shape, -1, np.int32)
        patches = np.zeros((size, slots, pad.patches, patch_dim), np.float32)
        patch_positions = np.zeros((size, slots, pad.patches, 2), np.int32)
        patch_mask = np.zeros((size, slots, pad.patches), bool)
        for row, prompt in enumerate(encoded):
            _check_fit(prompt, pad)
            length = len(prompt.tokens)
            tokens[row, :length] = prompt.tokens
            mask[row, :length] = True
            positions[row, :, :length] = prompt.positions
            index = [
                slot * merged + np.arange(len(image) // settings.merge_size**2)
                for slot, image in enumerate(prompt.patches)
            ]
            if index:
                where = prompt.tokens == self.image_token_id
                image_index[row, :length][where] = np.concatenate(index)
            for slot, image in enumerate(prompt.patches):
                patches[row, slot, : len(image)] = image
                patch_positions[row, slot, : len(image)] = prompt.patch_positions[slot]
                patch_mask[row, slot, : len(image)] = True
        return Prompts(
            tokens=tokens,
            mask=mask,
            positions=positions,
            image_index=image_index,
            patches=patches,
            patch_positions=patch_positions,
            patch_mask=patch_mask,
        )

    def _bucket(self, encoded: Sequence[EncodedPrompt]) -> PadTo:
        longest = max(len(prompt.tokens) for prompt in encoded)
        largest = max((len(image) for prompt in encoded for image in prompt.patches), default=0)
        return PadTo(
            prompt_tokens=math.ceil(longest / _PROMPT_BUCKET) * _PROMPT_BUCKET,
            image_slots=max(len(prompt.patches) for prompt in encoded),
            patches=math.ceil(largest / _PATCH_BUCKET) * _PATCH_BUCKET,
        )

    def decode(
        self, tokens: Int[np.ndarray, " T"], mask: Bool[np.ndarray, " T"] | None = None
    ) -> str:
        """The text of a completion; special tokens are left out."""
        kept = tokens if mask is None else tokens[mask]
        return self.tokenizer.decode(kept.tolist(), skip_special_tokens=True)


def _check_fit(prompt: EncodedPrompt, pad: PadTo) -> None:
    largest = max((len(image) for image in prompt.patches), default=0)
    sizes = (len(prompt.tokens), len(prompt.patches), largest)
    if any(size > room for size, room in zip(sizes, dataclasses.astuple(pad), strict=True)):
        raise UserError(
            f"a prompt of {sizes[0]} tokens and {sizes[1]} image(s) of up to {sizes[2]} patches"
            f" does not fit {pad}"
        )
