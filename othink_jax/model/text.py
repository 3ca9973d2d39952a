"""The language model, with two passes: prefill and extend."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from othink_jax.config import ComputeConfig
from othink_jax.model.attention import (
    SelfMask,
    attention,
    reference,
    shared_prefix_attention,
)
from othink_jax.model.collectives import embed_tokens, enter, gather_matrix, local_vocabulary
from othink_jax.model.config import TextConfig
from othink_jax.model.linear import Linear, for_uses
from othink_jax.model.precision import at_least_f32, dtypes_of, wide_einsum
from othink_jax.model.rope import rotate, text_angles
from othink_jax.model.stack import make_stack, run_stack
from othink_jax.types import Array

# Keys and values of a layer, see `model.attention`.
KeyValue = tuple[Float[Array, "..."], Float[Array, "..."]]


class Embed(nnx.Embed):
    """`nnx.Embed` that casts the looked-up rows, not the table.

    The gradients of a token's occurrences are then summed in the dtype of the parameters. In
    bfloat16, the sum for a token that occurs hundreds of times stops growing.
    """

    def __call__(self, inputs: Int[Array, "*b"], out_sharding: Any = None) -> Float[Array, "*b D"]:
        return embed_tokens(
            self.embedding[...], inputs, (self.num_embeddings, self.features), self.dtype
        )


class HeadNorm(nnx.Module):
    """RMSNorm of each head, in f32; on a mesh, of the device's own heads."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: Any) -> None:
        self.scale = nnx.Param(jnp.ones(width, param_dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b heads H"]) -> Float[Array, "*b heads H"]:
        wide = x.astype(at_least_f32(x.dtype))
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        # `enter`: the gradient is the sum over all heads, and a device has only some of them.
        return (wide * inverse * enter(self.scale[...])).astype(x.dtype)


class TextBlock(nnx.Module):
    """Pre-norm layer: grouped-query attention, then SwiGLU."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, compute: ComputeConfig) -> None:
        width, kv_heads = config.hidden_size, config.num_key_value_heads
        dtypes = dtypes_of(compute)
        linear: Callable[..., Linear] = functools.partial(
            Linear, rngs=rngs, lora=compute.lora, **dtypes
        )
        norm: Callable[..., nnx.RMSNorm] = functools.partial(
            nnx.RMSNorm, epsilon=config.rms_norm_eps, rngs=rngs, **dtypes
        )
        self.compute = compute
        self.head_dim = config.head_dim
        self.norm1 = norm(width)
        self.norm2 = norm(width)
        bias = config.qkv_bias
        self.q = linear(width, config.num_attention_heads * config.head_dim, use_bias=bias)
        self.k, self.v = (
            linear(width, kv_heads * config.head_dim, use_bias=bias, cut="heads", heads=kv_heads)
            for _ in range(2)
        )
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm, self.k_norm = (
                HeadNorm(
                    config.head_dim,
                    epsilon=config.rms_norm_eps,
                    param_dtype=dtypes["param_dtype"],
                )
                for _ in range(2)
            )
        self.o = linear(
            config.num_attention_heads * config.head_dim, width, use_bias=False, cut="inputs"
        )
        self.gate = linear(width, config.intermediate_size, use_bias=False)
        self.up = linear(width, config.intermediate_size, use_bias=False)
        self.down = linear(config.intermediate_size, width, use_bias=False, cut="inputs")

    def _project(
        self, x: Float[Array, "*b S D"], angles: Float[Array, "*#b S half"]
    ) -> tuple[Array, Array, Array]:
        x = enter(self.norm1(x))
        query, key, value = (
            linear(x).reshape(*x.shape[:-1], -1, self.head_dim)
            for linear in (self.q, self.k, self.v)
        )
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query, angles)
        query = query.reshape(*key.shape[:-1], -1, self.head_dim)
        return query, rotate(key, angles), value

    def _finish(
        self, x: Float[Array, "*b S D"], mixed: Float[Array, "*b S KV R H"]
    ) -> Float[Array, "*b S D"]:
        x = x + self.o(mixed.reshape(*x.shape[:-1], -1))
        y = enter(self.norm2(x))
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))

    def prefill(
        self, x: Float[Array, "B P D"], angles: Float[Array, "B P half"], mask: SelfMask
    ) -> tuple[Float[Array, "B P D"], KeyValue]:
        """Apply the layer to prompts; also returns their keys and values, for `extend`."""
        query, key, value = self._project(x, angles)
        mixed = attention(query, key, value, mask, self.compute)
        return self._finish(x, mixed), (key, value)

    def extend(
        self,
        x: Float[Array, "B G T D"],
        angles: Float[Array, "B 1 T half"],
        prefix: KeyValue,
        prefix_mask: Bool[Array, "B P"],
        own: KeyValue | None,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B G T D"], KeyValue]:
        """Apply the layer to completions behind prompts; also returns their own keys and values."""
        query, key, value = self._project(x, angles)
        if own is None:
            mixed = shared_prefix_attention(query, *prefix, prefix_mask, key, value, self.compute)
        else:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
            key = write(own[0], key.astype(own[0].dtype), start)
            value = write(own[1], value.astype(own[1].dtype), start)
            # Decoding has one token per completion, so few scores.
            mixed = reference.shared_prefix_attention(
                query, *prefix, prefix_mask, key, value, first=start
            )
        return self._finish(x, mixed), (key, value)


class TextTower(nnx.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(
        self,
        config: TextConfig,
        *,
        tied: bool,
        rngs: nnx.Rngs,
        compute: ComputeConfig,
    ) -> None:
        dtypes = dtypes_of(compute)
        self.config = config
        self.compute = compute
        self.embed = Embed(config.vocab_size, config.hidden_size, rngs=rngs, **dtypes)
        self.layers = make_stack(
            lambda rngs: TextBlock(config, rngs=rngs, compute=compute),
            config.num_hidden_layers,
            rngs,
            compute,
        )
        self.norm = nnx.RMSNorm(
            config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs, **dtypes
        )
        if not tied:
            self.head = Linear(
                config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs, **dtypes
            )
        self.tied = tied

    def prefill(
        self,
        x: Float[Array, "B P D"],
        positions: Int[Array, "B 3 P"],
        mask: Bool[Array, "B P"],
        deep: Float[Array, "B J P D"] | None = None,
    ) -> tuple[Float[Array, "B P D"], tuple[KeyValue, ...]]:
        """Final states of prompt tokens (padded on the right), and each layer's keys and values.

        Args:
          x: embedded tokens.
          positions: M-RoPE positions of the tokens.
          mask: true where a token is real.
          deep: DeepStack features, added to the states after each of the first J layers.
        """
        angles, causal = self._angles(positions), SelfMask(real=mask, causal=True)

        def layer(block: TextBlock, x: Array, number: Any) -> tuple[Array, KeyValue]:
            x, kept = block.prefill(x, angles, causal)
            return _deepened(x, deep, number), kept

        numbers = self._numbers(deep)
        x, kept = run_stack(self.layers, x, layer, numbers, remat=self.compute.remat)
        return self.norm(x), kept

    def extend(
        self,
        x: Float[Array, "B G T D"],
        positions: Int[Array, "B 1 3 T"],
        prefix: tuple[KeyValue, ...],
        prefix_mask: Bool[Array, "B P"],
        own: tuple[KeyValue, ...] | None,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B G T D"], tuple[KeyValue, ...]]:
        """Final states of completion tokens, and each layer's own keys and values."""
        angles = self._angles(positions)

        def layer(block: TextBlock, x: Array, extra: Any) -> tuple[Array, KeyValue]:
            return block.extend(x, angles, extra[0], prefix_mask, extra[1], start)

        extras = tuple(zip(prefix, own or [None] * len(prefix), strict=True))
        x, kept = run_stack(self.layers, x, layer, extras, remat=self.compute.remat)
        return self.norm(x), kept

    def prefill_and_extend(
        self,
        x: Float[Array, "B P D"],
        positions: Int[Array, "B 3 P"],
        mask: Bool[Array, "B P"],
        later: Float[Array, "B G T D"],
        later_positions: Int[Array, "B 1 3 T"],
        deep: Float[Array, "B J P D"] | None = None,
    ) -> tuple[Float[Array, "B P D"], Float[Array, "B G T D"]]:
        """Final states of prompts and of complete completions, computed together layer by layer.

        The numbers are those of `prefill` followed by `extend`. Here a layer's matrices are
        all-gathered once for both, scanned layers have one stack of gradients, and a layer's keys
        and values are freed after it.
        """
        angles = self._angles(positions)
        later_angles = self._angles(later_positions)
        causal = SelfMask(real=mask, causal=True)

        def layer(block: TextBlock, states: Any, number: Any) -> tuple[Any, None]:
            of_prompt, of_completion = for_uses(block, 2)
            x, prefix = of_prompt.prefill(states[0], angles, causal)
            later = of_completion.extend(states[1], later_angles, prefix, mask, None, 0)[0]
            return (_deepened(x, deep, number), later), None

        numbers = self._numbers(deep)
        states, _ = run_stack(self.layers, (x, later), layer, numbers, remat=self.compute.remat)
        return self.norm(states[0]), self.norm(states[1])

    def _numbers(self, deep: Array | None) -> tuple[int, ...] | None:
        """Layer indices, if the layers need them for DeepStack; else None."""
        return None if deep is None else tuple(range(self.config.num_hidden_layers))

    def _angles(self, positions: Int[Array, "*b 3 S"]) -> Float[Array, "*b S half"]:
        config = self.config
        return text_angles(
            positions,
            config.mrope_section,
            config.rope_theta,
            interleaved=config.mrope_interleaved,
        )

    def head_matrix(self) -> Float[Array, "..."]:
        """Head matrix, all-gathered along `fsdp`: [V, D] if tied to the embedding, else [D, V].

        It is gathered in the dtype of the computation, then cast back to that of the parameters, in
        which its gradient is summed.
        """
        matrix = self.embed.embedding[...] if self.tied else self.head.kernel[...]
        shape = (local_vocabulary(self.config.vocab_size), self.config.hidden_size)
        shape = shape if self.tied else shape[::-1]
        if matrix.shape == shape:
            return matrix
        return gather_matrix(matrix.astype(self.embed.dtype), shape).astype(matrix.dtype)

    def logits(
        self, hidden: Float[Array, "*b D"], matrix: Float[Array, "..."]
    ) -> Float[Array, "*b V"]:
        """Next-token logits of this device's vocabulary shard, accumulated and returned in f32."""
        kernel = matrix.T if self.tied else matrix
        if kernel.shape[1] != self.config.vocab_size:
            hidden = enter(hidden)
        return wide_einsum("...d,dv->...v", hidden, kernel.astype(hidden.dtype))


def _deepened(
    x: Float[Array, "B P D"], deep: Float[Array, "B J P D"] | None, number: Any
) -> Float[Array, "B P D"]:
    """States after layer `number`, plus its DeepStack features if it has any."""
    if deep is None:
        return x
    count = deep.shape[1]
    added = jax.lax.dynamic_index_in_dim(deep, jnp.minimum(number, count - 1), 1, keepdims=False)
    return x + jnp.where(number < count, added, 0).astype(x.dtype)
