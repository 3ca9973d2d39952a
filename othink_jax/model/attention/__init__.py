"""Attention: inside an image, inside a prompt, and of completions over prompt and own past.

Every kernel computes the same two functions:

    attention                of tokens over each other, by a `SelfMask`
    shared_prefix_attention  of completions over their prompt and each over itself

    reference   holds all scores
    chunked     holds those of a block of queries
    splash      JAX's kernel for TPUs
    cudnn       NVIDIA's, for 16-bit floats

Scores and softmax are float32. A query that sees nothing (padding) gets something finite, with
finite gradients, that nobody uses.
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

# The platform of those that do not run everywhere.
_ONLY_ON: dict[Attention, str] = {"splash": "tpu", "cudnn": "gpu"}

# Scores of a head up to which `auto` takes the reference: it is faster where they are few.
_FEW = 512 * 512


def check_attention(compute: ComputeConfig) -> None:
    """Raise UserError if the platform has no such attention."""
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
    """Grouped-query attention; R query heads share each of KV key heads, which are not repeated."""
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
    """Attention of G whole completions over their one prompt and each over itself, in one softmax.

    `reference.shared_prefix_attention` is that of completions that are being drawn, too.
    """
    length = query.shape[2]
    given = query, prefix_key, prefix_value, prefix_real, key, value
    return _run("shared_prefix_attention", compute, given, length * (prefix_key.shape[1] + length))


def _run(function: str, compute: ComputeConfig, given: tuple[Any, ...], scores: int) -> Array:
    name, platform = compute.attention, _platform(compute)
    if name == "auto":
        name = "reference" if scores <= _FEW else _best(function, platform, given)
    run = getattr(_KERNELS[name], function)
    # On a CPU, the kernel of TPUs can be tried at least.
    return run(*given, interpret=True) if name == "splash" and platform == "cpu" else run(*given)


def _platform(compute: ComputeConfig) -> str:
    return compute.platform or jax.default_backend()


def _best(function: str, platform: str, given: tuple[Any, ...]) -> Attention:
    """The kernel for many scores."""
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
    """Whether cuDNN has a graph for these shapes; where no GPU is there to ask, it has."""
    if jax.default_backend() != "gpu":
        return True

    def total(query: Array, *others: Any) -> Array:
        given = jax.tree.unflatten(tree, (query, *others))
        return getattr(cudnn, function)(*given).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total)).lower(*shapes).compile()
    except Exception as error:  # of whatever type XLA gives to what cuDNN says
        _log.warning("cuDNN has no attention for these shapes: %s", first_line(error))
        return False
    return True
