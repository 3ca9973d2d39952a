"""Gradients of KL terms by enumeration of every sequence that a small policy can generate."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.kl.terms import REDUCTIONS, TERMS, Quality, Reduction, Term, quality

VOCABULARY = 3  # tokens, of which token 0 ends a sequence
LONGEST = 3  # tokens
BATCH = 2  # sequences per batch: the fewest for which per-token and per-sequence means differ
DISTANCES = (0.1, 0.3, 1.0, 2.0)  # of the policy's logits from the reference's


@dataclasses.dataclass(frozen=True)
class Sequences:
    """All S sequences of at most T tokens. A token's context is the tokens before it."""

    tokens: Int[np.ndarray, "S T"]
    mask: Bool[np.ndarray, "S T"]
    context: Int[np.ndarray, "S T"]  # index of a token's context; 0 outside `mask`
    contexts: int


@functools.cache
def all_sequences(vocabulary: int = VOCABULARY, longest: int = LONGEST) -> Sequences:
    """All sequences that end with token 0 or at the length limit."""
    found = [
        written
        for length in range(1, longest + 1)
        for written in itertools.product(range(vocabulary), repeat=length)
        if 0 not in written[:-1] and (written[-1] == 0 or length == longest)
    ]
    numbers: dict[tuple[int, ...], int] = {}
    shape = (len(found), longest)
    tokens, mask, context = np.zeros(shape, int), np.zeros(shape, bool), np.zeros(shape, int)
    for row, written in enumerate(found):
        for place, token in enumerate(written):
            number = numbers.setdefault(written[:place], len(numbers))
            tokens[row, place], mask[row, place], context[row, place] = token, True, number
    return Sequences(tokens, mask, context, len(numbers))


def logp_of(logits: Float[Array, "X V"], every: Sequences) -> Float[Array, "S T"]:
    """Log-probability of each token of each sequence, nats; 0 outside the mask."""
    logp = jax.nn.log_softmax(logits)[every.context, every.tokens]
    return jnp.where(every.mask, logp, 0.0)


def sequence_kl(
    logits: Float[Array, "X V"], ref_logits: Float[Array, "X V"], every: Sequences
) -> Float[Array, ""]:
    """KL(pi || pi_ref) of whole sequences, nats."""
    logp, ref_logp = (logp_of(x, every).sum(axis=1) for x in (logits, ref_logits))
    return (jnp.exp(logp) * (logp - ref_logp)).sum()


def tokens_kl(
    logits: Float[Array, "X V"], ref_logits: Float[Array, "X V"], every: Sequences
) -> Float[Array, ""]:
    """The same value with contexts held fixed: no gradient of a token's effect on later ones."""
    logp, ref_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    each = (jnp.exp(logp) * (logp - ref_logp)).sum(axis=1)
    drawn = jax.lax.stop_gradient(jnp.exp(logp_of(logits, every).sum(axis=1)))
    return (drawn * jnp.where(every.mask, each[every.context], 0.0).sum(axis=1)).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A point where gradients are measured: policy, sampling policy, and reference."""

    distance: float  # standard deviation of the difference of logits of policy and reference
    off_policy: bool  # sampled by the policy half-way between reference and policy
    seed: int


def random_points(
    seeds: int, distances: tuple[float, ...] = DISTANCES
) -> tuple[list[Point], Float[np.ndarray, "N 3 X V"]]:
    """Points with random policies, and the logits of policy, sampler and reference."""
    shape = (all_sequences().contexts, VOCABULARY)
    points, logits = [], []
    for distance, seed in itertools.product(distances, range(seeds)):
        rng = np.random.default_rng(seed)
        reference = rng.normal(size=shape)
        step = distance * rng.normal(size=shape)
        for off_policy in (False, True):
            points.append(Point(distance=distance, off_policy=off_policy, seed=seed))
            sampler = reference + (step / 2 if off_policy else step)
            logits.append(np.stack([reference + step, sampler, reference]))
    return points, np.stack(logits)


def enumerate_gradients(
    logits: Float[np.ndarray, "N 3 X V"], terms: Sequence[Term] = TERMS
) -> dict[tuple[Term, Reduction], list[Quality]]:
    """Quality of each term's gradient at N points, exact except for rounding (float64).

    Args:
      logits: of policy, sampler and reference in each context, see `random_points`.
      terms: the KL terms.
    """
    every = all_sequences()
    pairs = np.array(list(itertools.product(range(len(every.tokens)), repeat=BATCH)))
    with jax.enable_x64(True):
        points = jax.vmap(functools.partial(_facts, every=every))(jnp.asarray(logits))
        facts = {name: np.asarray(value) for name, value in points.items()}
        found = {}
        for term, reduction in itertools.product(terms, REDUCTIONS):
            of_pairs = _coefficients_of_pairs(term, reduction, facts["logp"][:, :, pairs], pairs)
            found[term, reduction] = [
                _quality(
                    {name: value[point] for name, value in facts.items()}, rows, pairs, reduction
                )
                for point, rows in enumerate(of_pairs)
            ]
    return found


def _facts(logits: Float[Array, "3 X V"], every: Sequences) -> dict[str, Array]:
    """Log-probabilities at a point, their derivatives (`scores`), and the true gradients."""
    policy, sampler, reference = logits

    def flat(gradient: Array) -> Array:
        return gradient.reshape(*gradient.shape[:-2], -1)

    return {
        "logp": jnp.stack([logp_of(one, every) for one in (policy, sampler, reference)]),
        "scores": flat(jax.jacobian(logp_of)(policy, every)),
        "sequences": flat(jax.grad(sequence_kl)(policy, reference, every)),
        "tokens": flat(jax.grad(tokens_kl)(policy, reference, every)),
    }


def _coefficients_of_pairs(
    term: Term,
    reduction: Reduction,
    logp: Float[np.ndarray, "N 3 pairs n T"],
    pairs: Int[np.ndarray, "pairs n"],
) -> Float[np.ndarray, "N pairs n T"]:
    mask = jnp.asarray(all_sequences().mask[pairs])
    of_batch = functools.partial(term.coefficients, reduction)
    of_points = jax.vmap(jax.vmap(of_batch), in_axes=(0, 0, 0, None))
    return np.asarray(jax.jit(of_points)(*np.moveaxis(logp, 1, 0), mask))


def _quality(
    facts: Mapping[str, np.ndarray],
    coefficients: Float[np.ndarray, "pairs n T"],
    pairs: Int[np.ndarray, "pairs n"],
    reduction: Reduction,
) -> Quality:
    gradients = np.einsum("pnt,pntx->px", coefficients, facts["scores"][pairs])
    policy, sampler, _ = (np.exp(logp.sum(axis=1)) for logp in facts["logp"])
    chance = sampler[pairs].prod(axis=1)
    # Nats per sequence, or nats per token of a sequence of the mean length.
    length = 1.0 if reduction == "sum" else float(policy @ all_sequences().mask.sum(axis=1))
    return quality(
        mean=chance @ gradients,
        square=float(chance @ (gradients**2).sum(axis=1)),
        true=facts["sequences"] / length,
        true_of_tokens=facts["tokens"] / length,
        batch=pairs.shape[1],
    )
