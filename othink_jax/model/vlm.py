"""The complete model: from images and tokens to hidden states, in two passes.

    prefill(prompts)            a prompt and its images, once          -> states and a Prefix
    extend(completions, prefix) G completions of each prompt           -> states

See Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631);
numerically equal to the implementations in transformers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike, Float, Int, PyTree

from othink_jax.config import DEFAULT_COMPUTE, ComputeConfig
from othink_jax.model.collectives import gather_vocabulary, local_heads
from othink_jax.model.config import VLMConfig
from othink_jax.model.text import TextTower
from othink_jax.model.vision import VisionTower
from othink_jax.types import Array, Cache, Prefix, Prompts

_MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


class VLM(nnx.Module):
    """The model. Call `split` once after loading; from then on, parameters are a plain dict."""

    def __init__(
        self,
        config: VLMConfig,
        *,
        rngs: nnx.Rngs,
        compute: ComputeConfig = DEFAULT_COMPUTE,
    ) -> None:
        """Initialise random weights.

        Args:
          config: architecture of the model.
          rngs: random keys of the weights.
          compute: computation settings. All but `dtype` leave the numbers unchanged.
        """
        self.config = config
        self.dtype = jnp.dtype(compute.dtype)
        self.visual = VisionTower(config.vision, rngs=rngs, compute=compute)
        tied = config.tie_word_embeddings
        self.text = TextTower(config.text, tied=tied, rngs=rngs, compute=compute)

    def encode_images(self, prompts: Prompts) -> Float[Array, "B M F"]:
        """Merged features of each prompt's images, slot by slot (M = I * K / merge^2).

        F is D for the embeddings, plus D for each of the first text layers that have features of
        their own (DeepStack).
        """
        batch, slots = prompts.patches.shape[:2]

        def per_image(x: Array) -> Array:
            return x.reshape(batch * slots, *x.shape[2:])

        features = self.visual(
            per_image(prompts.patches),
            per_image(prompts.patch_positions),
            per_image(prompts.patch_mask),
        )
        return features.reshape(batch, -1, features.shape[-1])

    def embed(
        self, prompts: Prompts
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B J P D"] | None]:
        """Token embeddings with image features in place of placeholders, and DeepStack features.

        The DeepStack features are added to the placeholders' states after the first J layers. They
        are 0 at other tokens, and None in a model without DeepStack or a batch without images.
        """
        x = self.text.embed(prompts.tokens)
        if prompts.patches.shape[1] == 0:
            return x, None
        features = prompts.features
        if features is None:
            features = self.encode_images(prompts)
        index = prompts.image_index[..., None]
        features = jnp.take_along_axis(features, jnp.maximum(index, 0), axis=1)
        count = len(self.config.vision.deepstack)
        if count == 0:
            return jnp.where(index >= 0, features, x), None
        first, *deep = jnp.split(features, 1 + count, axis=-1)
        shown = [jnp.where(index >= 0, each, 0) for each in deep]
        return jnp.where(index >= 0, first, x), jnp.stack(shown, axis=1)

    def prefill(self, prompts: Prompts) -> tuple[Float[Array, "B P D"], Prefix]:
        """Final states of the prompt tokens, and the prefix that completions need."""
        x, deep = self.embed(prompts)
        hidden, kept = self.text.prefill(x, prompts.positions, prompts.mask, deep)
        return hidden, Prefix(
            keys=tuple(key for key, _ in kept),
            values=tuple(value for _, value in kept),
            mask=prompts.mask,
            last_hidden=_last_of_prompt(hidden, prompts),
            next_position=prompts.next_position,
        )

    def extend(
        self, tokens: Int[Array, "B G T"], prefix: Prefix, cache: Cache | None = None
    ) -> tuple[Float[Array, "B G T D"], Cache | None]:
        """Final states of completion tokens.

        Token t of a completion sees the whole prompt and the completion up to itself, so padding on
        the right changes nothing. Positions continue from the prompt's, equal on the three axes.

        Args:
          tokens: completion tokens; with a cache, the T tokens that follow those in it.
          prefix: from `prefill`.
          cache: keys and values of the completion so far, from `init_cache`; None for complete
            completions.

        Returns:
          The states and, with a cache, the cache extended by these tokens.
        """
        start: Any = 0 if cache is None else cache.length
        own = None if cache is None else tuple(zip(cache.keys, cache.values, strict=True))
        hidden, kept = self.text.extend(
            self.text.embed(tokens),
            _completion_positions(prefix.next_position, start, tokens.shape[2]),
            tuple(zip(prefix.keys, prefix.values, strict=True)),
            prefix.mask,
            own,
            start,
        )
        if cache is None:
            return hidden, None
        return hidden, Cache(
            keys=tuple(key for key, _ in kept),
            values=tuple(value for _, value in kept),
            length=cache.length + tokens.shape[2],
        )

    def states(
        self, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B G T D"]]:
        """Final states of each prompt's last token and of complete completions.

        Equal to `prefill` followed by `extend`; see `TextTower.prefill_and_extend`.
        """
        x, deep = self.embed(prompts)
        hidden, later = self.text.prefill_and_extend(
            x,
            prompts.positions,
            prompts.mask,
            self.text.embed(completions),
            _completion_positions(prompts.next_position, 0, completions.shape[2]),
            deep,
        )
        return _last_of_prompt(hidden, prompts), later

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Next-token logits in f32; not differentiable on a mesh."""
        logits = self.text.logits(hidden, self.text.head_matrix())
        return gather_vocabulary(logits, self.config.text.vocab_size)


def _last_of_prompt(hidden: Float[Array, "B P D"], prompts: Prompts) -> Float[Array, "B D"]:
    last = prompts.mask.sum(axis=1) - 1
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _completion_positions(first: Int[Array, " B"], start: Any, count: int) -> Int[Array, "B 1 3 T"]:
    """Positions that continue from the prompt's, equal on the three axes."""
    positions = first[:, None] + start + jnp.arange(count)
    return jnp.broadcast_to(positions[:, None, None], (len(positions), 1, 3, count))


def init_cache(config: VLMConfig, batch: int, group: int, capacity: int, dtype: DTypeLike) -> Cache:
    """An empty KV cache for `group` completions of up to `capacity` tokens per prompt."""
    text = config.text
    shape = (batch, group, capacity, local_heads(text.num_key_value_heads), text.head_dim)
    layers = range(text.num_hidden_layers)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        length=jnp.int32(0),
    )


def split(model: VLM) -> tuple[Any, dict[str, Any]]:
    """The static part of a model and its parameters as a nested plain dict."""
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def cast_matrices(params: PyTree, dtype: DTypeLike) -> PyTree:
    """Parameters with all matrices cast to the dtype of the computation.

    Layers cast their matrices at each call. Decoding reads them at each token, so it casts them
    once instead; the numbers are the same.
    """

    def computed(path: Sequence[Any], leaf: Array) -> Array:
        return leaf.astype(dtype) if path[-1].key in _MATRICES else leaf

    return jax.tree.map_with_path(computed, params)


def merge(graphdef: Any, params: PyTree) -> VLM:
    """The inverse of `split`; cheap, and meant to be called inside jit."""
    return nnx.merge(graphdef, params)
