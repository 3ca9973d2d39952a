"""One answer to one prompt."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from PIL import Image

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import SamplingConfig
from othink_jax.data.processing import Processor
from othink_jax.sampling import make_sampler, prompt_keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A completion, its end-of-sequence token included."""

    text: str
    token_ids: list[int]
    logprobs: list[float]  # nats, under the model itself at temperature 1


@functools.lru_cache(maxsize=8)
def _compiled_sampler(graphdef: Any, processor: Processor, sampling: SamplingConfig) -> Any:
    """Cached, so that a second question to a model does not compile again."""
    return jax.jit(make_sampler(graphdef, processor, sampling))


def answer(
    checkpoint: Checkpoint,
    prompt: str,
    images: Sequence[Image.Image] = (),
    *,
    sampling: SamplingConfig,
    seed: int = 0,
) -> Answer:
    """Answer one user turn: the images, then the prompt's text.

    Raises:
      UserError: an image cannot be processed, or the text contains image placeholders.
    """
    processor = checkpoint.processor
    prompts = processor.batch([processor.encode(prompt, images)])
    sampler = _compiled_sampler(checkpoint.graphdef, processor, sampling)
    rollout = jax.device_get(sampler(checkpoint.params, None, prompts, prompt_keys(seed, 0, 1)))
    mask = rollout.mask[0, 0]
    tokens = rollout.tokens[0, 0][mask]
    return Answer(
        text=processor.decode(tokens),
        token_ids=tokens.tolist(),
        logprobs=rollout.logp[0, 0][mask].tolist(),
    )
