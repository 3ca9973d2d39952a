"""Log-probabilities of completions, without ever holding logits of a whole batch.

What needs the whole next-token distribution, such as its entropy, is computed with them.

Three ways to compute the same. Training takes `shared`; the others are what it is measured against,
in tests and benchmarks:

    naive        prompt and completion as one text, for each completion anew, images and all: what
                 R1-V and TRL do
    vision_once  the same, but a prompt's images are encoded once
    shared       a prompt and its images once; its completions extend it
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PyTree

from othink_jax.model.collectives import log_prob_of, log_softmax_of, sum_over_vocabulary
from othink_jax.model.vlm import VLM
from othink_jax.rl import DivergenceTerms, entropy_terms
from othink_jax.types import Array, Prompts, TokenStats

Mode = Literal["naive", "vision_once", "shared"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A model, and the divergence from it that is measured over the whole vocabulary."""

    model: VLM
    terms: DivergenceTerms  # one of `rl.KL_DIVERGENCES`


def completion_logp(
    model: VLM,
    prompts: Prompts,
    completions: Int[Array, "B G T"],
    *,
    chunk: int,
    mode: Mode = "shared",
) -> Float[Array, "B G T"]:
    """Log-probability of each completion token given the prompt and the tokens before it, f32 nats.

    Differentiable through prompt and images. Values at padding are finite and mean nothing.

    Args:
      model: the policy or the reference.
      prompts: B prompts.
      completions: G completions of each, padded on the right.
      chunk: tokens whose logits exist at one time; the backward pass computes them again.
      mode: how the states are computed that predict the tokens; the numbers are the same.
    """
    return completion_stats(model, prompts, completions, chunk=chunk, mode=mode).logp


def completion_stats(
    model: VLM,
    prompts: Prompts,
    completions: Int[Array, "B G T"],
    *,
    chunk: int,
    mode: Mode = "shared",
    entropy: bool = False,
    reference: Reference | None = None,
) -> TokenStats:
    """`completion_logp` and, if asked for, what the whole next-token distribution tells.

    Args:
      model, prompts, completions, chunk, mode: as of `completion_logp`.
      entropy: whether to compute the entropy too, from the same chunks of logits.
      reference: if given, the divergence from it is computed too, from such chunks of both models.

    Returns:
      [B, G, T] all.
    """

    def states(model: VLM) -> Float[Array, "n D"]:
        if mode == "shared":
            hidden = _states_by_extending(model, prompts, completions)
        else:
            hidden = _states_of_whole_texts(model, prompts, completions, mode)
        return hidden.reshape(-1, hidden.shape[-1])

    stats = token_stats(
        model,
        states(model),
        completions.reshape(-1),
        chunk,
        entropy=entropy,
        reference=reference,
        ref_hidden=None if reference is None else states(reference.model),
    )
    return jax.tree.map(lambda values: values.reshape(completions.shape), stats)


def _states_by_extending(
    model: VLM, prompts: Prompts, completions: Int[Array, "B G T"]
) -> Float[Array, "B G T D"]:
    """The final state before each completion token, from prompts and completions together."""
    _, group, length = completions.shape
    if length == 1:  # the last token predicts nothing
        _, prefix = model.prefill(prompts)
        return _each_completion(prefix.last_hidden, group)
    last, later = model.states(prompts, completions[..., :-1])
    return jnp.concatenate([_each_completion(last, group), later], axis=2)


def _each_completion(last: Float[Array, "B D"], group: int) -> Float[Array, "B G 1 D"]:
    return jnp.broadcast_to(last[:, None, None], (last.shape[0], group, 1, last.shape[-1]))


def _states_of_whole_texts(
    model: VLM, prompts: Prompts, completions: Int[Array, "B G T"], mode: Mode
) -> Float[Array, "B*G T D"]:
    """The final state before each completion token, from B * G texts of P + T - 1 tokens.

    The padding of a prompt stays between it and its completion, hidden by the mask; positions
    go on from the prompt's own.
    """
    batch, group, length = completions.shape
    rows, later = batch * group, length - 1  # the last token predicts nothing

    def each(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), tree)

    repeated: Prompts = each(prompts)
    embedded, deep = model.embed(repeated) if mode == "naive" else each(model.embed(prompts))
    tokens = completions[..., :-1].reshape(rows, later)
    positions = repeated.next_position[:, None] + jnp.arange(later)
    positions = jnp.broadcast_to(positions[:, None], (rows, 3, later))
    hidden, _ = model.text.prefill(
        jnp.concatenate([embedded, model.text.embed(tokens)], axis=1),
        jnp.concatenate([repeated.positions, positions], axis=2),
        jnp.concatenate([repeated.mask, jnp.ones_like(tokens, bool)], axis=1),
        None if deep is None else jnp.pad(deep, ((0, 0), (0, 0), (0, later), (0, 0))),
    )
    last = (repeated.mask.sum(axis=1) - 1)[:, None, None]
    first = jnp.take_along_axis(hidden, last, axis=1)
    return jnp.concatenate([first, hidden[:, prompts.tokens.shape[1] :]], axis=1)


def token_logp(
    model: VLM, hidden: Float[Array, "n D"], targets: Int[Array, " n"], chunk: int
) -> Float[Array, " n"]:
    """Log-probability of `targets[i]` after state `hidden[i]`, f32 nats, `chunk` rows at a time."""
    return token_stats(model, hidden, targets, chunk).logp


def token_stats(
    model: VLM,
    hidden: Float[Array, "n D"],
    targets: Int[Array, " n"],
    chunk: int,
    *,
    entropy: bool = False,
    reference: Reference | None = None,
    ref_hidden: Float[Array, "n D"] | None = None,
) -> TokenStats:
    """`token_logp` and, if asked for, entropy and divergence after each state; [n] all.

    Args:
      model, hidden, targets, chunk: as of `token_logp`.
      entropy: whether to compute the entropy.
      reference: if given, the divergence from it is computed.
      ref_hidden: states of the reference, with one.
    """
    vocabulary = model.config.text.vocab_size
    matrix = model.text.head_matrix()
    ref_matrix = None if reference is None else reference.model.text.head_matrix()

    @jax.checkpoint
    def of_rows(hidden: Array, targets: Array, ref_hidden: Array | None) -> TokenStats:
        logits = model.text.logits(hidden, matrix)
        stats = TokenStats(logp=log_prob_of(logits, targets, vocabulary))
        if not entropy and reference is None:
            return stats
        logp = log_softmax_of(logits, vocabulary)
        if entropy:
            total = sum_over_vocabulary(entropy_terms(logp), vocabulary)
            stats = dataclasses.replace(stats, entropy=total)
        if reference is not None:
            ref_logits = reference.model.text.logits(ref_hidden, ref_matrix)
            terms = reference.terms(logp, log_softmax_of(ref_logits, vocabulary))
            stats = dataclasses.replace(stats, kl=sum_over_vocabulary(terms, vocabulary))
        return stats

    count = targets.shape[0]
    given = hidden, targets, ref_hidden
    if count <= chunk:
        return of_rows(*given)
    rows = -(-count // chunk)

    def in_chunks(x: Array) -> Array:
        padding = [(0, rows * chunk - count), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(rows, chunk, *x.shape[1:])

    stats = jax.lax.map(lambda row: of_rows(*row), jax.tree.map(in_chunks, given))
    return jax.tree.map(lambda values: values.reshape(-1)[:count], stats)
