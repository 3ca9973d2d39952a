"""The pytrees that the modules exchange, and the legend of dimension letters.

Dimension letters, used as suffixes of arrays and in shape strings everywhere:

    B  prompts of a batch            I  image slots of a prompt (a video takes one per frame pair)
    G  completions of a prompt       N  images of a batch, N = B * I
    P  prompt tokens                 K  patches of an image
    T  completion tokens             C  values per patch (channels * frames * height * width)
    V  vocabulary                    D  width of the hidden state
    L  layers                        H  width of an attention head
    M  merge windows of a prompt     F  width of a merge window's features

The first axis of every exchanged array is B. So a batch is sharded over devices along its first
axis, and no index points out of its own row. Padding is on the right, and a mask says what is real;
nothing is ever inferred from a token's value.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

_T = TypeVar("_T")

# Arrays are made on the host (numpy) and live on devices (JAX). Both kinds are used alike; a type
# checker that told them apart would ask for casts at every interface.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen, keyword-only dataclass whose fields are the children of a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@pytree
class Prompts:
    """A padded batch of prompts with their images, as the model takes it.

    Image slots without an image have an all-false row in `patch_mask`; a batch without any image
    has I = 0, and the vision tower is left out of the compiled program.
    """

    tokens: Int[Array, "B P"]  # int32; placeholders are already expanded, one per merged patch
    mask: Bool[Array, "B P"]  # true where a token is real
    positions: Int[Array, "B 3 P"]  # int32 M-RoPE positions: temporal, height, width
    image_index: Int[Array, "B P"]  # int32; merged patch of this row (I * K/merge^2), -1 for text
    patches: Float[Array, "B I K C"]  # float32, normalised pixels, in merge-window order
    patch_positions: Int[Array, "B I K 2"]  # int32 row and column of a patch in its image
    patch_mask: Bool[Array, "B I K"]  # true where a patch is real
    # Merged features of the images (`VLM.encode_images`), if they are computed already: the model
    # then takes them and ignores the patches. M = I * K / merge^2.
    features: Float[Array, "B M F"] | None = None

    @property
    def next_position(self) -> Int[Array, " B"]:
        """Position of the first completion token on all three axes.

        It is one past the largest position in use, not the prompt's length: an image of n merged
        patches advances the positions by its longer side only.
        """
        used = jnp.where(self.mask[:, None, :], self.positions, -1)
        return used.max(axis=(1, 2)) + 1


@pytree
class Rollout:
    """Completions sampled from a policy, with the sampler's statistics."""

    tokens: Int[Array, "B G T"]  # int32; tokens outside `mask` are padding
    mask: Bool[Array, "B G T"]  # true up to and including the end-of-sequence token
    logp: Float[Array, "B G T"]  # float32 nats under the model itself (temperature 1, untruncated)
    entropy: Float[Array, "B G T"]  # float32 nats, of the model's own next-token distribution
    finished: Bool[Array, "B G"]  # false where the length limit cut the completion


@pytree
class TokenStats:
    """Statistics of completion tokens under a policy. Values at padding mean nothing."""

    logp: Float[Array, "*n"]  # float32 nats
    entropy: Float[Array, "*n"] | None = None  # float32 nats, of the next-token distribution
    kl: Float[Array, "*n"] | None = None  # float32 nats, from the reference's distribution


@pytree
class GRPOBatch:
    """Inputs of one GRPO update."""

    prompts: Prompts
    completions: Int[Array, "B G T"]  # int32
    mask: Bool[Array, "B G T"]
    advantages: Float[Array, "B G"]  # float32
    ref_logp: Float[Array, "B G T"] | None  # float32 nats; None for a loss without a KL
    # float32 nats under the policy that sampled; None for a strictly on-policy update, whose ratio
    # is one by definition: the update then takes its own log-probabilities, gradient stopped.
    old_logp: Float[Array, "B G T"] | None = None
    kept: Bool[Array, "B G"] | None = None  # completions included in the loss; None: all
    weights: Float[Array, "B G T"] | None = None  # weights of the objective's values; None: one
    sampler_logp: Float[Array, "B G T"] | None = None  # float32 nats, as the sampler reported


@pytree
class SFTBatch:
    """Inputs of one update of supervised fine-tuning: prompts, and one answer to each."""

    prompts: Prompts
    completions: Int[Array, "B 1 T"]  # int32
    mask: Bool[Array, "B 1 T"]  # true up to and including the token that ends the turn


@pytree
class Prefix:
    """Prefilled prompts: all that completions need of them. One entry per layer in each tuple."""

    keys: tuple[Float[Array, "B P KV H"], ...]  # after rotary positions
    values: tuple[Float[Array, "B P KV H"], ...]
    mask: Bool[Array, "B P"]  # true where a prompt token is real
    last_hidden: Float[Array, "B D"]  # final, normalised state of the last real token
    next_position: Int[Array, " B"]  # int32; see `Prompts.next_position`


@pytree
class Cache:
    """KV cache of the completion tokens decoded so far. One entry per layer in each tuple."""

    keys: tuple[Float[Array, "B G T KV H"], ...]  # after rotary positions; T is the capacity
    values: tuple[Float[Array, "B G T KV H"], ...]
    length: Int[Array, ""]  # int32; tokens written so far
