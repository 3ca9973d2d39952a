"""Encoding of questions, images and videos into `Prompts`, without torch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from transformers import PreTrainedTokenizerFast

from othink_jax.data.images import ImageSettings, patchify_video
from othink_jax.data.images import open_image as open_image
from othink_jax.data.positions import mrope_positions
from othink_jax.data.processor_files import (
    read_eos_token_ids,
    read_image_settings,
    read_tokenizer,
    token_ids,
)
from othink_jax.errors import UserError, first_line
from othink_jax.types import Prompts

_PROMPT_BUCKET = 32  # prompt lengths are padded to a multiple of this
_PATCH_BUCKET = 64  # numbers of patches per image, likewise
_FPS = 2.0  # frames per second of a video that does not give its `fps`
_NEVER_SAMPLED = (
    *("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"  # as written by chat templates
_ASKED = "Which?"  # a question to test the chat template with


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One prompt as the model reads it, not yet padded."""

    tokens: Int[np.ndarray, " p"]  # int32, placeholders expanded
    positions: Int[np.ndarray, "3 p"]  # int32 M-RoPE positions
    patches: tuple[Float[np.ndarray, "_ C"], ...]  # float32, one array per image slot
    patch_positions: tuple[Int[np.ndarray, "_ 2"], ...]  # int32
    # Target completion, up to and including the token that ends the turn; None if there is none
    completion: Int[np.ndarray, " t"] | None = None  # int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadTo:
    """Shapes that a batch is padded to."""

    prompt_tokens: int  # P
    image_slots: int  # I
    patches: int  # K, a multiple of the patches of a merge window


class SpecialTokens(Protocol):
    """Special tokens that sampling needs; a `Processor` has them."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Tokens that no completion may hold."""

    @property
    def pad_token_id(self) -> int:
        """Padding after the end of a completion."""


def system_turn(text: str) -> dict[str, Any]:
    """The system's turn of a chat."""
    return {"role": "system", "content": text}


class Processor:
    """Tokenizer, chat template and image settings of one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_settings: ImageSettings,
        eos_token_ids: tuple[int, ...],
        tokens_per_second: float | None = None,
        vocab_size: int | None = None,
        timestamps: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_settings = image_settings
        self.eos_token_ids = eos_token_ids
        self.tokens_per_second = tokens_per_second
        self.timestamps = timestamps
        self.pad_token_id = self._id(tokenizer.pad_token)
        self.image_token_id = self._id("<|image_pad|>")
        self.video_token_id = self._id("<|video_pad|>")
        self.vision_start_token_id = self._id("<|vision_start|>")
        self.vision_end_token_id = self._id("<|vision_end|>")
        # In a completion, one of these would need an image or open a turn.
        forbidden = {self._id(token) for token in _NEVER_SAMPLED} | self._without_token(vocab_size)
        self.never_sampled = tuple(sorted(forbidden - set(eos_token_ids)))

    def _without_token(self, vocab_size: int | None) -> set[int]:
        """Ids without a token: a model's vocabulary may be larger than the tokenizer's.

        The embedded model has none, Qwen2-VL-2B has 279. Raises UserError if the model's
        vocabulary is smaller.
        """
        if vocab_size is None:
            return set()
        known = token_ids(self.tokenizer.backend_tokenizer)
        if max(known) >= vocab_size:
            raise UserError(
                f"the tokenizer has ids up to {max(known)}, but config.json has a vocab_size of"
                f" {vocab_size}: they are not of the same model"
            )
        return set(range(vocab_size)) - known

    def _id(self, token: str) -> int:
        found = self.tokenizer.backend_tokenizer.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer lacks {token}: it is not that of a Qwen-VL")
        return found

    @classmethod
    def from_pretrained(
        cls,
        directory: Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        tokens_per_second: float | None = None,
        vocab_size: int | None = None,
        timestamps: bool = False,
    ) -> Self:
        """Read tokenizer, chat template and image settings of a model directory.

        Args:
          directory: with tokenizer.json, a chat template and preprocessor_config.json.
          min_pixels, max_pixels: bounds of an image's size that replace the model's.
          tokens_per_second: temporal positions per second of a video (Qwen2.5-VL); None gives one
            per time step (Qwen2-VL).
          vocab_size: number of the model's logits; those without a token are never sampled. None
            if each has a token.
          timestamps: whether each time step of a video has its own placeholder, after its time as
            text (Qwen3-VL).

        Raises:
          UserError: a file is missing or broken, the tokenizer lacks a vision token, or the chat
            template does not show images or text.
        """
        tokenizer = read_tokenizer(directory)
        settings = read_image_settings(directory, min_pixels=min_pixels, max_pixels=max_pixels)
        eos_token_ids = read_eos_token_ids(directory, tokenizer)
        try:
            made = cls(
                tokenizer, settings, eos_token_ids, tokens_per_second, vocab_size, timestamps
            )
            made._check_template()
        except UserError as error:
            raise UserError(f"{directory}: {error}") from error
        return made

    def _check_template(self) -> None:
        """Raise UserError unless the chat template shows text and images.

        Otherwise every prompt would be refused, or the model would get no question.
        """
        content = [{"type": "image"}, {"type": "text", "text": _ASKED}, {"type": "image"}]
        text = self._render([{"role": "user", "content": content}], asking=True)
        found = int((self._tokens(text) == self.image_token_id).sum())
        if found != 2 or _ASKED not in text:
            raise UserError(
                f"the chat template shows {found} of 2 images, and"
                f" {'the' if _ASKED in text else 'no'} text: it is not that of a Qwen-VL"
            )

    def check_system_prompt(self, text: str) -> None:
        """Raise UserError unless the chat template shows this text as the system's turn."""
        asked = [system_turn(text), {"role": "user", "content": _ASKED}]
        if text.strip() not in self._render(asked, asking=True):
            raise UserError("--system-prompt: the model's chat template does not show it")

    def encode(self, question: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """One user turn: the images, then the question. Raises as `encode_chat` does."""
        shown = [{"type": "image", "image": image} for image in images]
        content = [*shown, {"type": "text", "text": question}]
        return self.encode_chat([{"role": "user", "content": content}])

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> EncodedPrompt:
        """Encode a chat of one or more turns, up to the assistant's answer.

        Args:
          messages: one dict per turn, with `role` and `content`: a string, or a list of
            `{"type": "text", "text": ...}`, `{"type": "image", "image": <PIL image>}` and
            `{"type": "video", "video": [<PIL image>, ...]}` with the frames to show. A video may
            give its `fps`, frames per second, 2 by default; Qwen2-VL does not use it.

        Raises:
          UserError: the text holds placeholders of its own, an image is too narrow, or a video has
            no frames or frames of different sizes.
        """
        text = self._render(messages, asking=True)
        visuals = _visuals(messages)
        short = self._tokens(text)
        self._check_placeholders(short, [part["type"] for part in visuals])
        made = [patchify_video(_frames(part), self.image_settings) for part in visuals]
        merge = self.image_settings.merge_size
        # The last patch of a frame lies in its last row and last column.
        grids = [(len(steps), *((where[-1] + 1) // merge).tolist()) for steps, where in made]
        intervals = [self._interval(part) for part in visuals]
        if self.timestamps and any(part["type"] == "video" for part in visuals):
            short = self._tokens(self._with_times(text, visuals))
            grids = [(1, *grid[1:]) for grid in grids for _ in range(grid[0])]
            intervals = [1.0] * len(grids)
        counts = np.ones(len(short), np.int64)
        counts[self._is_visual(short)] = [math.prod(grid) for grid in grids]
        tokens = np.repeat(short, counts)
        return EncodedPrompt(
            tokens=tokens,
            positions=mrope_positions(self._is_visual(tokens), grids, intervals),
            patches=tuple(step for steps, _ in made for step in steps),
            patch_positions=tuple(where for steps, where in made for _ in steps),
        )

    def encode_answer(self, answer: str) -> Int[np.ndarray, " t"]:
        """Encode an answer of the assistant as the tokens that follow a prompt, int32.

        The last token ends the turn, as in the chat template. Text that the template adds after it
        is dropped: a model stops there.

        Raises:
          UserError: the answer holds an end-of-sequence or never sampled token, or the chat
            template does not continue its generation prompt to an end-of-sequence token.
        """
        asked = [{"role": "user", "content": ""}]
        answered = [*asked, {"role": "assistant", "content": answer}]
        prompt, text = self._render(asked, asking=True), self._render(answered, asking=False)
        if not text.startswith(prompt):
            raise UserError("the chat template begins an answer otherwise than it prompts for one")
        tokens = self._tokens(text[len(prompt) :])
        if set(self._tokens(answer)) & {*self.eos_token_ids, *self.never_sampled}:
            raise UserError(
                "the answer holds a special token, and so would end early or show an image"
            )
        ends = np.flatnonzero(np.isin(tokens, self.eos_token_ids))
        if not len(ends):
            raise UserError("the chat template ends an answer without an end-of-sequence token")
        return tokens[: ends[0] + 1]

    def shown_sizes(self, prompt: EncodedPrompt) -> tuple[tuple[int, int], ...]:
        """Width and height of each image after resizing for the model, pixels."""
        size = self.image_settings.patch_size
        # The last patch of an image lies in its last row and last column.
        ends = (where[-1] + 1 for where in prompt.patch_positions)
        return tuple((int(columns) * size, int(rows) * size) for rows, columns in ends)

    def _render(self, messages: Sequence[Mapping[str, Any]], *, asking: bool) -> str:
        """Render a chat as text; `asking` appends the generation prompt."""
        render: Any = self.tokenizer.apply_chat_template
        try:
            return render(list(messages), tokenize=False, add_generation_prompt=asking)
        except Exception as error:  # a template is a program and can raise anything
            raise UserError(f"the chat template fails: {first_line(error)}") from error

    def _tokens(self, text: str) -> Int[np.ndarray, " t"]:
        # The Rust tokenizer itself: its encode has no side effects, so threads may share it.
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32)

    def _is_visual(self, tokens: Int[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
        """Mask of the image and video placeholders."""
        return (tokens == self.image_token_id) | (tokens == self.video_token_id)

    def _interval(self, part: Mapping[str, Any]) -> float:
        """Temporal positions between consecutive time steps of an image or video."""
        if part["type"] == "image" or self.tokens_per_second is None:
            return 1
        frames_per_second = part.get("fps", _FPS)
        return self.tokens_per_second * self.image_settings.temporal_patch_size / frames_per_second

    def _with_times(self, text: str, visuals: Sequence[Mapping[str, Any]]) -> str:
        """A text with one placeholder per time step of a video, each after its time.

        The time is the mean of the step's first and last frame, in seconds.

        Raises:
          UserError: the chat template does not write videos as `_VIDEO`.
        """
        videos = [part for part in visuals if part["type"] == "video"]
        before, *rest = text.split(_VIDEO)
        if len(rest) != len(videos):
            raise UserError(f"the chat template shows a video otherwise than as {_VIDEO}")
        for part, after in zip(videos, rest, strict=True):
            steps = _times(len(part["video"]), part.get("fps", _FPS), self.image_settings)
            before += "".join(f"<{time:.1f} seconds>{_VIDEO}" for time in steps) + after
        return before

    def _check_placeholders(self, tokens: Int[np.ndarray, " p"], kinds: list[str]) -> None:
        ids = {"image": self.image_token_id, "video": self.video_token_id}
        for kind, token in ids.items():
            found, wanted = int((tokens == token).sum()), kinds.count(kind)
            if found != wanted:
                raise UserError(
                    f"the text has {found} {kind} placeholder(s), but there are {wanted} {kind}(s)"
                )

    def batch(self, encoded: Sequence[EncodedPrompt], *, pad: PadTo | None = None) -> Prompts:
        """Pad prompts on the right into one batch of numpy arrays.

        Without `pad`, P and K are rounded up to multiples (few shapes, few compilations) and I is
        the largest number of images.

        Raises:
          UserError: a prompt does not fit `pad`, or `pad.patches` splits a merge window.
        """
        pad = pad or self.bucket(encoded)
        if pad.patches % self.image_settings.merge_size**2:
            raise UserError(f"{pad}: patches must be a multiple of a merge window's")
        prompts = self._empty(len(encoded), pad)
        for row, prompt in enumerate(encoded):
            _check_fit(prompt, pad)
            self._write_row(prompts, row, prompt)
        return prompts

    def bucket(self, encoded: Sequence[EncodedPrompt]) -> PadTo:
        """The bucket that these prompts need, to which `batch` pads them by default."""
        return self.multiples(
            prompt_tokens=max(len(prompt.tokens) for prompt in encoded),
            image_slots=max(len(prompt.patches) for prompt in encoded),
            patches=max((len(image) for prompt in encoded for image in prompt.patches), default=0),
        )

    def multiples(self, *, prompt_tokens: int, image_slots: int, patches: int) -> PadTo:
        """The smallest bucket for these sizes: P and K rounded up to multiples."""
        unit = math.lcm(_PATCH_BUCKET, self.image_settings.merge_size**2)
        return PadTo(
            prompt_tokens=math.ceil(prompt_tokens / _PROMPT_BUCKET) * _PROMPT_BUCKET,
            image_slots=image_slots,
            patches=math.ceil(patches / unit) * unit,
        )

    def batch_completions(
        self, completions: Sequence[Int[np.ndarray, " t"]], length: int
    ) -> tuple[Int[np.ndarray, "B 1 T"], Bool[np.ndarray, "B 1 T"]]:
        """One completion per prompt, padded on the right to `length`, and the mask of tokens."""
        tokens = np.full((len(completions), 1, length), self.pad_token_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, completion in enumerate(completions):
            tokens[row, 0, : len(completion)] = completion
            mask[row, 0, : len(completion)] = True
        return tokens, mask

    def _empty(self, size: int, pad: PadTo) -> Prompts:
        """`size` rows of padding."""
        tokens, images = (size, pad.prompt_tokens), (size, pad.image_slots, pad.patches)
        return Prompts(
            tokens=np.full(tokens, self.pad_token_id, np.int32),
            mask=np.zeros(tokens, bool),
            positions=np.zeros((size, 3, pad.prompt_tokens), np.int32),
            image_index=np.full(tokens, -1, np.int32),
            patches=np.zeros((*images, self.image_settings.patch_dim), np.float32),
            patch_positions=np.zeros((*images, 2), np.int32),
            patch_mask=np.zeros(images, bool),
        )

    def _write_row(self, prompts: Prompts, row: int, prompt: EncodedPrompt) -> None:
        length = len(prompt.tokens)
        prompts.tokens[row, :length] = prompt.tokens
        prompts.mask[row, :length] = True
        prompts.positions[row, :, :length] = prompt.positions
        for slot, image in enumerate(prompt.patches):
            prompts.patches[row, slot, : len(image)] = image
            prompts.patch_positions[row, slot, : len(image)] = prompt.patch_positions[slot]
            prompts.patch_mask[row, slot, : len(image)] = True
        # Placeholders and real merged patches are in the same order, so they pair up one by one.
        windows = prompts.patch_mask[row].reshape(-1, self.image_settings.merge_size**2)[:, 0]
        where = np.flatnonzero(self._is_visual(prompt.tokens))
        prompts.image_index[row, where] = np.flatnonzero(windows)

    def decode(
        self, tokens: Int[np.ndarray, " T"], mask: Bool[np.ndarray, " T"] | None = None
    ) -> str:
        """The text of a completion; special tokens are left out."""
        kept = tokens if mask is None else tokens[mask]
        return self.tokenizer.backend_tokenizer.decode(kept.tolist(), skip_special_tokens=True)


def _visuals(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The images and videos of a chat, in order."""
    return [
        part
        for turn in messages
        if not isinstance(turn["content"], str)
        for part in turn["content"]
        if part["type"] in ("image", "video")
    ]


def _times(frames: int, fps: float, settings: ImageSettings) -> list[float]:
    """Seconds from the beginning of a video to the middle of each of its time steps.

    The last frame is repeated to fill the last step.
    """
    size = settings.temporal_patch_size
    ends = ((first, min(first + size - 1, frames - 1)) for first in range(0, frames, size))
    return [(first / fps + last / fps) / 2 for first, last in ends]


def _frames(part: Mapping[str, Any]) -> Sequence[Image.Image]:
    """Frames of a video; an image has one."""
    return [part["image"]] if part["type"] == "image" else part["video"]


def _check_fit(prompt: EncodedPrompt, pad: PadTo) -> None:
    largest = max((len(image) for image in prompt.patches), default=0)
    sizes = (len(prompt.tokens), len(prompt.patches), largest)
    if any(size > room for size, room in zip(sizes, dataclasses.astuple(pad), strict=True)):
        raise UserError(
            f"a prompt of {sizes[0]} tokens and {sizes[1]} image(s) of up to {sizes[2]} patches"
            f" does not fit {pad}"
        )
