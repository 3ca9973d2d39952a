"""transformers' side of a comparison: its model, its image processor, its chat template."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from othink_jax.families import to_hf

# transformers' classes of each family.
KINDS = {
    "qwen2_vl": (Qwen2VLForConditionalGeneration, Qwen2VLConfig),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLConfig),
}


def load_peer(directory: Path) -> PreTrainedModel:
    """transformers' model of a directory, in float32."""
    kind, _ = KINDS[AutoConfig.from_pretrained(directory).model_type]
    return kind.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)


def make_peer(config, *, seed=0):
    """transformers' model with random weights that give logits of order one."""
    torch.manual_seed(seed)
    kind, kind_config = KINDS[config.model_type]
    peer = kind(kind_config(**to_hf(config), attn_implementation="eager")).eval()
    for parameter in peer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.6, std=0.3)
    return peer.requires_grad_(False)


def scale_weights(peer: PreTrainedModel, factors: Mapping[str, float]) -> None:
    """Multiply the parameters whose names end so, in place."""
    for name, parameter in peer.named_parameters():
        for ending, factor in factors.items():
            parameter.data *= factor if name.endswith(ending) else 1


def run_peer(peer, config, case, completion=()):
    """transformers' output for one prompt, with a completion after it."""
    tokens = torch.tensor([[*case.tokens.tolist(), *completion]])
    images = {}
    if case.grids:
        merge = config.vision.spatial_merge_size
        images["pixel_values"] = torch.tensor(np.concatenate(case.pixels))
        images["image_grid_thw"] = torch.tensor(
            [[1, rows * merge, columns * merge] for rows, columns in case.grids]
        )
    return peer(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == config.image_token_id).int(),
        use_cache=True,
        **images,
    )


@contextlib.contextmanager
def recorded_layers(peer: PreTrainedModel) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What each layer of a tower puts out while the model runs, by tower."""
    states: dict[str, list[torch.Tensor]] = {"vision": [], "text": []}
    towers = {"vision": peer.model.visual.blocks, "text": peer.model.language_model.layers}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, kept=states[tower]: kept.append(out))
        for tower, layers in towers.items()
        for layer in layers
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


Chat = Sequence[Mapping[str, Any]]


class PeerProcessor:
    """Chats to the inputs of transformers' model, by its tokenizer and its PIL image processor.

    Its own processor of videos needs torchvision. A frame is what the image processor makes of it,
    and two frames in a row make a step: they are the two frames of a patch.
    """

    def __init__(self, directory: Path, **bounds: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(directory, **bounds)
        config = directory / "config.json"  # a processor may stand without a model
        self.timestamps = config.is_file() and "qwen3_vl" in config.read_text()

    def __call__(self, messages: Chat) -> dict[str, torch.Tensor]:
        """Inputs of the model for one chat."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        inputs: dict[str, torch.Tensor] = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            made = [
                (pixels, grid) for found, pixels, grid in self.visuals(messages) if found == kind
            ]
            alone = kind == "video" and self.timestamps  # each time step
            text = self.with_times(text, messages) if alone else text
            for _, grid in made:
                count = int(grid.prod()) // self.image_processor.merge_size**2
                for _ in range(steps := int(grid[0]) if alone else 1):
                    text = text.replace(f"<|{kind}_pad|>", "<|place|>" * (count // steps), 1)
            text = text.replace("<|place|>", f"<|{kind}_pad|>")
            if made:
                inputs[f"pixel_values{suffix}"] = torch.cat([pixels for pixels, _ in made])
                inputs[f"{kind}_grid_thw"] = torch.stack([grid for _, grid in made])
        tokens = self.tokenizer(text, return_tensors="pt")["input_ids"]
        image, video = self.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
        return inputs | {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == image).int() + 2 * (tokens == video).int(),
        }

    def with_times(self, text: str, messages: Chat) -> str:
        """A text whose videos are the time steps that transformers writes, two frames a second."""
        turns = [turn["content"] for turn in messages if isinstance(turn["content"], list)]
        for part in (part for content in turns for part in content if part["type"] == "video"):
            frames = list(range(len(part["video"])))
            fps = part.get("fps", 2.0)
            times = Qwen3VLProcessor._calculate_timestamps(None, frames, fps, 2)
            one = "<|vision_start|><|video_pad|><|vision_end|>"
            text = text.replace(one, "".join(f"<{time:.1f} seconds>@" for time in times), 1)
        return text.replace("@", "<|vision_start|><|video_pad|><|vision_end|>")

    def visuals(self, messages: Chat) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Kind, patches and grid of each image and video, in the order of the chat."""
        turns = [turn["content"] for turn in messages if isinstance(turn["content"], list)]
        process = {"image": self.process_image, "video": self.process_video}
        return [
            (kind, *process[kind](part[kind]))
            for content in turns
            for part in content
            if (kind := part["type"]) in process
        ]

    def process_image(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and grid of an image."""
        made = self.image_processor(image, return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"][0]

    def process_video(self, frames: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and grid of a video; the last frame is repeated if their number is odd."""
        frames = [*frames, frames[-1]] if len(frames) % 2 else list(frames)
        size = self.image_processor.patch_size
        images = [self.process_image(frame) for frame in frames]
        cut = [pixels.reshape(-1, 3, 2, size**2)[:, :, 0] for pixels, _ in images]
        steps = [torch.stack(pair, dim=2) for pair in zip(cut[::2], cut[1::2], strict=True)]
        _, rows, columns = images[0][1]
        pixels = torch.cat(steps).reshape(-1, 6 * size**2)
        return pixels, torch.tensor([len(steps), rows, columns])


def pad_left(rows: Sequence[Mapping[str, torch.Tensor]], pad: int) -> dict[str, torch.Tensor]:
    """Prompts as one batch, padded on the left as `generate` wants it."""
    width = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    fillings = {"input_ids": pad, "attention_mask": 0, "mm_token_type_ids": 0}
    for name, filling in fillings.items():
        padded = [
            torch.nn.functional.pad(row[name], (width - row[name].shape[1], 0), value=filling)
            for row in rows
        ]
        batch[name] = torch.cat(padded)
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if held := [row[name] for row in rows if name in row]:
            batch[name] = torch.cat(held)
    return batch
