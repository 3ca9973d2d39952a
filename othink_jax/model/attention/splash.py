"""Splash attention, JAX's kernel for TPUs: scores stay on the chip.

Both functions map to causal or full attention with segments, which the kernel supports. The keys of
a completion follow those of its prompt: the causal mask is offset by the length of the prompt, and
the padding of the prompt is a segment of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from othink_jax.model.attention.masks import SelfMask
from othink_jax.model.attention.prefix import join_prefix
from othink_jax.types import Array

_BLOCKS = (512, 256, 128)  # block sizes of queries and keys; lengths are padded to a multiple
_PADDING = -1  # segment id of keys that no query sees


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b s KV H"],
    value: Float[Array, "b s KV H"],
    mask: SelfMask,
    *,
    interpret: bool = False,
) -> Float[Array, "b s KV R H"]:
    """As `reference.attention`; with `interpret`, on any platform, slowly."""
    windows = jnp.zeros(mask.real.shape, jnp.int32) if mask.windows is None else mask.windows
    seen = jnp.where(mask.real, windows, _PADDING)
    return _splash(
        query, key, value, windows, seen, past=0 if mask.causal else None, interpret=interpret
    )


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_real: Bool[Array, "B P"],
    key: Float[Array, "B G T KV H"],
    value: Float[Array, "B G T KV H"],
    *,
    interpret: bool = False,
) -> Float[Array, "B G T KV R H"]:
    """As `reference.shared_prefix_attention`; with `interpret`, on any platform, slowly."""
    batch, group, length = query.shape[:3]
    seen = jnp.where(prefix_real, 0, _PADDING)[:, None]
    seen = jnp.broadcast_to(seen, (batch, group, seen.shape[-1]))
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, length)))

    def by_completion(x: Array) -> Array:
        return x.reshape(batch * group, *x.shape[2:])

    mixed = _splash(
        by_completion(query),
        by_completion(join_prefix(prefix_key, key)),
        by_completion(join_prefix(prefix_value, value)),
        jnp.zeros((batch * group, length), jnp.int32),
        by_completion(seen),
        past=prefix_real.shape[1],
        interpret=interpret,
    )
    return mixed.reshape(query.shape)


def _splash(
    query: Float[Array, "n s KV R H"],
    key: Float[Array, "n t KV H"],
    value: Float[Array, "n t KV H"],
    segments: Int[Array, "n s"],
    seen: Int[Array, "n t"],
    *,
    past: int | None,
    interpret: bool,
) -> Float[Array, "n s KV R H"]:
    """Each query sees the keys of its segment; with `past`, query i only keys 0 to i + past."""
    _, count, kv_heads, shared, size = query.shape
    blocks = _block_of(count), _block_of(key.shape[1])

    def heads_first(x: Array, block: int) -> Array:
        return jnp.moveaxis(_padded(x, block), 1, 2)

    query = (query * size**-0.5).reshape(-1, count, kv_heads * shared, size)
    query, key, value = (
        heads_first(x, block)
        for x, block in zip((query, key, value), (blocks[0], blocks[1], blocks[1]), strict=True)
    )
    kernel, segment_ids = _kernel(
        query.shape[1:3], key.shape[2], past, blocks=blocks, interpret=interpret
    )
    ids = segment_ids(q=_padded(segments, blocks[0]), kv=_padded(seen, blocks[1], value=_PADDING))
    mixed = jax.vmap(kernel)(query, key, value, ids)
    return jnp.moveaxis(mixed[:, :, :count], 1, 2).reshape(-1, count, kv_heads, shared, size)


def _kernel(
    queries: tuple[int, int],
    keys: int,
    past: int | None,
    *,
    blocks: tuple[int, int],
    interpret: bool,
) -> tuple[Any, Any]:
    """The kernel for [heads, s] queries, and the type of its segment ids."""
    # Imported here: importing Pallas takes half a second, which other platforms need not pay.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, count = queries
    shape = (count, keys)
    mask = splash.FullMask(shape) if past is None else splash.CausalMask(shape, offset=past)
    block_q, block_kv = blocks
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        # Not the fused backward kernel, which keeps a gradient of the queries for every block of
        # keys.
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return kernel, splash.SegmentIds


def _block_of(length: int) -> int:
    """The block size that pads this length least; the largest of equals."""
    return min(_BLOCKS, key=lambda block: (-length % block, -block))


def _padded(x: Array, block: int, *, value: int = 0) -> Array:
    """Pad [n, length, ...] along its length to a multiple of the block."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, padding, constant_values=value)
