"""Log-probabilities of completions, without ever holding the logits of a whole batch.

Statistics of the whole next-token distribution, such as its entropy, come from the same logits.

Three modes compute the same numbers. Training uses `shared`; tests and benchmarks compare it with
the others:

    naive        prompt and completion as one sequence, for each completion anew, images included,
                 as in R1-V and TRL
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
    """A reference model, and the full-vocabulary divergence that is measured from it."""

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
      chunk: number of tokens whose logits exist at one time; the backward pass recomputes them.
      mode: how the hidden states are computed; the numbers are the same.
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
    """`completion_logp` and, on request, entropy and divergence of the next-token distribution.

    Args:
      model, prompts, completions, chunk, mode: as for `completion_logp`.
      entropy: whether to compute the entropy too, from the same chunks of logits.
      reference: if given, also compute the divergence from it, in chunks of both models' logits.

    Returns:
      Statistics, each [B, G, T].
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
    """Final state before each completion token; prompts and completions are computed together."""
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
    """Final state before each completion token, from B * G sequences of P + T - 1 tokens.

    The padding of a prompt stays between prompt and completion, hidden by the mask. Positions
    continue from the prompt's.
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
    """`token_logp` and, on request, entropy and divergence after each state; each [n].

    Args:
      model, hidden, targets, chunk: as for `token_logp`.
      entropy: whether to compute the entropy.
      reference: if given, compute the divergence from it.
      ref_hidden: hidden states of the reference, if there is one.
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
