"""The language model of Qwen2-VL, in the two motions of this project: prefill and extend."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from othink_jax.config import LoRAConfig
from othink_jax.model.attention import attention, shared_prefix_attention
from othink_jax.model.collectives import embed_tokens, enter, gather_matrix, local_vocabulary
from othink_jax.model.config import TextConfig
from othink_jax.model.linear import Linear
from othink_jax.model.precision import wide_einsum
from othink_jax.model.rope import rotate, text_angles
from othink_jax.model.stack import Remat, make_stack, run_stack
from othink_jax.types import Array

KeyValue = tuple[Array, Array]


class Embed(nnx.Embed):
    """`nnx.Embed` that casts the rows it has taken, not the table it takes them from.

    So the gradients of a token's occurrences are added up in the dtype of the parameters. In
    bfloat16, the sum for a token that occurs hundreds of times stops growing.
    """

    def __call__(self, inputs: Int[Array, "*b"], out_sharding: Any = None) -> Float[Array, "*b D"]:
        return embed_tokens(
            self.embedding[...], inputs, (self.num_embeddings, self.features), self.dtype
        )


class TextBlock(nnx.Module):
    """Pre-norm layer: grouped-query attention with biases on q, k, v, then SwiGLU."""

    def __init__(
        self, config: TextConfig, *, rngs: nnx.Rngs, lora: LoRAConfig | None, **dtypes: Any
    ) -> None:
        width, kv_heads = config.hidden_size, config.num_key_value_heads
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, lora=lora, **dtypes)
        norm: Callable[..., nnx.RMSNorm] = functools.partial(
            nnx.RMSNorm, epsilon=config.rms_norm_eps, rngs=rngs, **dtypes
        )
        self.head_dim = config.head_dim
        self.norm1 = norm(width)
        self.norm2 = norm(width)
        self.q = linear(width, config.num_attention_heads * config.head_dim)
        self.k, self.v = (
            linear(width, kv_heads * config.head_dim, cut="heads", heads=kv_heads) for _ in range(2)
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
        self, x: Float[Array, "B P D"], angles: Float[Array, "B P half"], mask: Bool[Array, "B P P"]
    ) -> tuple[Float[Array, "B P D"], KeyValue]:
        query, key, value = self._project(x, angles)
        return self._finish(x, attention(query, key, value, mask)), (key, value)

    def extend(
        self,
        x: Float[Array, "B G T D"],
        angles: Float[Array, "B 1 T half"],
        prefix: KeyValue,
        prefix_mask: Bool[Array, "B P"],
        own: KeyValue | None,
        start: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B G T D"], KeyValue]:
        query, key, value = self._project(x, angles)
        if own is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
            key = write(own[0], key.astype(own[0].dtype), start)
            value = write(own[1], value.astype(own[1].dtype), start)
        mask = jnp.arange(key.shape[2]) <= start + jnp.arange(x.shape[2])[:, None]
        mixed = shared_prefix_attention(query, *prefix, prefix_mask, key, value, mask)
        return self._finish(x, mixed), (key, value)


class TextTower(nnx.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(
        self,
        config: TextConfig,
        *,
        tied: bool,
        rngs: nnx.Rngs,
        scan_layers: bool,
        remat: Remat,
        lora: LoRAConfig | None,
        **dtypes: Any,
    ) -> None:
        self.config = config
        self.remat: Remat = remat
        self.embed = Embed(config.vocab_size, config.hidden_size, rngs=rngs, **dtypes)
        self.layers = make_stack(
            lambda rngs: TextBlock(config, rngs=rngs, lora=lora, **dtypes),
            config.num_hidden_layers,
            rngs,
            scan_layers,
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
    ) -> tuple[Float[Array, "B P D"], tuple[KeyValue, ...]]:
        """Final states of prompt tokens, padded on the right, and each layer's keys and values."""
        angles = text_angles(positions, self.config.mrope_section, self.config.rope_theta)
        count = x.shape[1]
        causal = jnp.tril(jnp.ones((count, count), bool))[None] & mask[:, None]

        def layer(block: TextBlock, x: Array, _: None) -> tuple[Array, KeyValue]:
            return block.prefill(x, angles, causal)

        x, kept = run_stack(self.layers, x, layer, remat=self.remat)
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
        angles = text_angles(positions, self.config.mrope_section, self.config.rope_theta)

        def layer(block: TextBlock, x: Array, extra: Any) -> tuple[Array, KeyValue]:
            return block.extend(x, angles, extra[0], prefix_mask, extra[1], start)

        extras = tuple(zip(prefix, own or [None] * len(prefix), strict=True))
        x, kept = run_stack(self.layers, x, layer, extras, remat=self.remat)
        return self.norm(x), kept

    def head_matrix(self) -> Float[Array, "..."]:
        """The matrix of the head, whole along `fsdp`: [V, D] if it is the embedding, else [D, V].

        Put together, it has the dtype of the parameters again, in which its gradient is summed up.
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
        """Next-token logits, accumulated and returned in f32, of this device's share of V."""
        kernel = matrix.T if self.tied else matrix
        if kernel.shape[1] != self.config.vocab_size:
            hidden = enter(hidden)
        return wide_einsum("...d,dv->...v", hidden, kernel.astype(hidden.dtype))
