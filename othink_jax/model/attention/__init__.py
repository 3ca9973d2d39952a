"""Attention kernels, for images, for prompts, and for completions behind a shared prompt.

Every kernel implements the same two functions:

    attention                self-attention under a `SelfMask`
    shared_prefix_attention  completions attend to their shared prompt and each to itself

The kernels are:

    reference   materialises all scores
    chunked     materialises the scores of one block of queries
    splash      JAX's kernel for TPUs
    cudnn       NVIDIA's kernel, for 16-bit floats

Scores and softmax are float32. A query that sees no key (padding) gets a finite output with finite
gradients; nobody uses it.
"""

import functools
import logging
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from othink_jax.config import Attention, ComputeConfig
from othink_jax.errors import UserError, first_line
from othink_jax.model.attention import chunked, cudnn, reference, splash
from othink_jax.model.attention.masks import SelfMask
from othink_jax.types import Array

__all__ = ["SelfMask", "attention", "check_attention", "shared_prefix_attention"]

_log = logging.getLogger(__name__)

_KERNELS: dict[Attention, ModuleType] = {
    "reference": reference,
    "chunked": chunked,
    "splash": splash,
    "cudnn": cudnn,
}

# Platform of the kernels that do not run everywhere.
_ONLY_ON: dict[Attention, str] = {"splash": "tpu", "cudnn": "gpu"}

# `auto` takes the reference up to this many scores per head: it is faster for few scores.
_FEW = 512 * 512


def check_attention(compute: ComputeConfig) -> None:
    """Raise UserError if the kernel does not support the platform or the dtype."""
    name, platform = compute.attention, _platform(compute)
    if _ONLY_ON.get(name, platform) != platform:
        raise UserError(
            f"--attention {name} is of {_ONLY_ON[name]}s, but this runs on a {platform}: leave it"
            " at auto, or take chunked, which runs everywhere"
        )
    if name == "cudnn" and jnp.dtype(compute.dtype).itemsize != 2:
        raise UserError(f"--attention cudnn needs --dtype bfloat16, not {compute.dtype}")


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b s KV H"],
    value: Float[Array, "b s KV H"],
    mask: SelfMask,
    compute: ComputeConfig,
) -> Float[Array, "b s KV R H"]:
    """Grouped-query attention: R query heads share each of the KV heads, without repeating it."""
    return _run("attention", compute, (query, key, value, mask), key.shape[1] ** 2)


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_real: Bool[Array, "B P"],
    key: Float[Array, "B G T KV H"],
    value: Float[Array, "B G T KV H"],
    compute: ComputeConfig,
) -> Float[Array, "B G T KV R H"]:
    """Attention of G complete completions to their prompt and each to itself, in one softmax.

    Decoding calls `reference.shared_prefix_attention` instead.
    """
    length = query.shape[2]
    given = query, prefix_key, prefix_value, prefix_real, key, value
    return _run("shared_prefix_attention", compute, given, length * (prefix_key.shape[1] + length))


def _run(function: str, compute: ComputeConfig, given: tuple[Any, ...], scores: int) -> Array:
    name, platform = compute.attention, _platform(compute)
    if name == "auto":
        name = "reference" if scores <= _FEW else _best(function, platform, given)
    run = getattr(_KERNELS[name], function)
    # Interpret mode lets the TPU kernel be tried on a CPU.
    return run(*given, interpret=True) if name == "splash" and platform == "cpu" else run(*given)


def _platform(compute: ComputeConfig) -> str:
    return compute.platform or jax.default_backend()


def _best(function: str, platform: str, given: tuple[Any, ...]) -> Attention:
    """The kernel that `auto` takes for many scores."""
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and given[0].dtype.itemsize == 2:
        leaves, tree = jax.tree.flatten(given)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        if _cudnn_takes(function, shapes, tree):
            return "cudnn"
    return "chunked"


@functools.cache
def _cudnn_takes(function: str, shapes: tuple[jax.ShapeDtypeStruct, ...], tree: Any) -> bool:
    """Whether cuDNN supports these shapes; assumed to be true if there is no GPU to ask."""
    if jax.default_backend() != "gpu":
        return True

    def total(query: Array, *others: Any) -> Array:
        given = jax.tree.unflatten(tree, (query, *others))
        return getattr(cudnn, function)(*given).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total)).lower(*shapes).compile()
    except Exception as error:  # XLA wraps cuDNN's errors in various types
        _log.warning("cuDNN has no attention for these shapes: %s", first_line(error))
        return False
    return True
