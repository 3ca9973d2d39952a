"""Log-probabilities of completions, without ever holding logits of a whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from othink_jax.model.qwen2_vl import Qwen2VL
from othink_jax.types import Array, Prompts


def completion_logp(
    model: Qwen2VL, prompts: Prompts, completions: Int[Array, "B G T"], *, chunk: int
) -> Float[Array, "B G T"]:
    """Log-probability of each completion token given the prompt and the tokens before it, f32 nats.

    One prefill and one extend; differentiable through both. Values at padding are finite and mean
    nothing.

    Args:
      model: the policy or the reference.
      prompts: B prompts.
      completions: G completions of each, padded on the right.
      chunk: tokens whose logits exist at one time; the backward pass computes them again.
    """
    _, prefix = model.prefill(prompts)
    batch, group, length = completions.shape
    last = prefix.last_hidden[:, None, None]
    hidden = jnp.broadcast_to(last, (batch, group, 1, last.shape[-1]))
    if length > 1:  # the last token predicts nothing
        later, _ = model.extend(completions[..., :-1], prefix)
        hidden = jnp.concatenate([hidden, later], axis=2)
    logp = token_logp(model, hidden.reshape(-1, hidden.shape[-1]), completions.reshape(-1), chunk)
    return logp.reshape(completions.shape)


def token_logp(
    model: Qwen2VL, hidden: Float[Array, "n D"], targets: Int[Array, " n"], chunk: int
) -> Float[Array, " n"]:
    """Log-probability of `targets[i]` after state `hidden[i]`, f32 nats, `chunk` rows at a time."""

    @jax.checkpoint
    def of_rows(hidden: Array, targets: Array) -> Array:
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    count = targets.shape[0]
    if count <= chunk:
        return of_rows(hidden, targets)
    rows = -(-count // chunk)
    padding = rows * chunk - count
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(rows, chunk, -1)
    targets = jnp.pad(targets, (0, padding)).reshape(rows, chunk)
    return jax.lax.map(lambda row: of_rows(*row), (hidden, targets)).reshape(-1)[:count]
