"""Rotary positions: two axes for patches (rows, columns), three for tokens (M-RoPE)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from othink_jax.model.precision import at_least_f32
from othink_jax.types import Array


def _inverse_frequencies(count: int, theta: float) -> Float[np.ndarray, " F"]:
    return (1.0 / theta ** (np.arange(count, dtype=np.float64) / count)).astype(np.float32)


def vision_angles(
    positions: Int[Array, "N K 2"], head_dim: int, theta: float = 10_000.0
) -> Float[Array, "N K half"]:
    """Rotary angles of patches: the first half of the frequencies by row, the second by column."""
    frequencies = _inverse_frequencies(head_dim // 4, theta)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return angles.reshape(*positions.shape[:-1], head_dim // 2)


def text_angles(
    positions: Int[Array, "*b 3 S"],
    section: Sequence[int],
    theta: float,
    *,
    interleaved: bool = False,
) -> Float[Array, "*b S half"]:
    """Rotary angles of tokens by M-RoPE (Qwen2-VL, section 2.1).

    Each frequency is multiplied by the position on the axis that it follows.

    Args:
      positions: temporal, height and width position of each token.
      section: how many frequencies follow each axis, in that order.
      theta: base of the frequencies.
      interleaved: whether frequencies alternate between the axes, from high to low (Qwen3-VL), so
        that each axis has both. After an axis has its share, its turns go to the temporal axis.
    """
    axis_of_frequency = np.repeat(np.arange(3), section)
    if interleaved:
        turn, axis = np.divmod(np.arange(len(axis_of_frequency)), 3)
        axis_of_frequency = np.where(turn < np.asarray(section)[axis], axis, 0)
    frequencies = _inverse_frequencies(len(axis_of_frequency), theta)
    by_frequency = jnp.moveaxis(positions, -2, -1)[..., axis_of_frequency]
    # f32: bf16 cannot represent position 257.
    return by_frequency.astype(jnp.float32) * frequencies


def rotate(
    x: Float[Array, "*b heads H"], angles: Float[Array, "*#b half"]
) -> Float[Array, "*b heads H"]:
    """Rotate each pair (x[i], x[i + H/2]) by angle i, in f32; the result has the dtype of `x`."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(at_least_f32(x.dtype)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
