"""transformers' side of the rollout benchmark: `generate` with the same weights."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from experiments.bench.shapes import Shapes
from experiments.bench.torchvision_shim import make_torchvision_importable
from othink_jax.checkpoint import hf
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.types import Prompts


class Peer:
    """The model in torch, on the GPU if torch has one, and the prompts of a benchmark."""

    def __init__(self, shapes: Shapes, params: Any, prompts: Prompts) -> None:
        self.group = shapes.group
        make_torchvision_importable()
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as directory:
            hf.save(Path(directory), shapes.model, in_memory(shapes.model, params))
            model: Any = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
                directory, dtype=getattr(torch, shapes.dtype)
            )
        self.model = model.to(device)
        tokens = torch.tensor(np.asarray(prompts.tokens)).long()
        patches = torch.tensor(np.asarray(prompts.patches))
        merge = shapes.model.vision.spatial_merge_size
        grid = [1, *(merge * side for side in shapes.image)]
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "mm_token_type_ids": (tokens == shapes.model.image_token_id).int(),
            "pixel_values": patches.reshape(-1, patches.shape[-1]),
            "image_grid_thw": torch.tensor([grid] * shapes.prompts),
        }
        self.inputs = {name: value.to(device) for name, value in inputs.items()}

    def sample(self, tokens: int, **settings: Any) -> Any:
        """Sample G completions of `tokens` tokens per prompt: [B * G, P + tokens], on the host."""
        drawn = self.model.generate(
            **self.inputs,
            do_sample=True,
            top_k=0,
            max_new_tokens=tokens,
            num_return_sequences=self.group,
            eos_token_id=None,
            pad_token_id=0,
            **settings,
        )
        return drawn if settings else drawn.cpu()

    def sample_with_logp(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Completions [B, G, tokens] and the log-probability of each of their tokens."""
        drawn = self.sample(tokens, output_logits=True, return_dict_in_generate=True)
        chosen = drawn.sequences[:, -tokens:]
        logp = torch.stack(drawn.logits, dim=1).float().log_softmax(dim=-1)
        logp = logp.gather(-1, chosen[..., None])[..., 0]
        shape = (-1, self.group, tokens)
        return chosen.cpu().int().numpy().reshape(shape), logp.cpu().numpy().reshape(shape)
