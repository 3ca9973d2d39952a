"""Gradients of KL terms on the embedded model, from completions that it samples.

The true gradient takes the KL of each token over the whole vocabulary, on completions of the same
policy. Inner products of expected gradients are estimated from pairs of different batches, so that
the noise of a batch, which is longer than its expectation, adds nothing to them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from experiments.kl.terms import DISTINCT, REDUCTIONS, Quality, Reduction, Term, cosine
from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import DataConfig, SamplingConfig
from othink_jax.data.loader import in_order
from othink_jax.data.sources import open_source
from othink_jax.model.vlm import merge
from othink_jax.sampling import make_sampler, prompt_keys
from othink_jax.types import Prompts

# Rows of a batch's gradients: those of the terms, then the two true ones.
KINDS = tuple(itertools.product(DISTINCT, REDUCTIONS))
SEQUENCES, TOKENS = len(KINDS), len(KINDS) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Number of completions that gradients are estimated from."""

    batches: int = 20
    prompts: int = 4  # per batch
    group: int = 8  # completions per prompt
    max_tokens: int = 40  # per completion

    @property
    def size(self) -> int:
        """Sequences per batch."""
        return self.prompts * self.group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradients:
    """Gradients of independent batches with respect to the P parameters of the text tower."""

    rows: Float[np.ndarray, "batches kinds P"]  # float32; see `KINDS`
    length: float  # mean length of a completion, tokens
    kl: float  # KL(pi || pi_ref), nats per token: over the whole vocabulary, mean over tokens
    size: int  # sequences per batch


def sample_gradients(
    policy: Checkpoint, reference: Checkpoint, data: DataConfig, samples: Samples, seed: int
) -> Gradients:
    """Gradients of every term on batches of completions that the policy samples.

    Args:
      policy, reference: checkpoints of one architecture.
      data: a synthetic task; every batch has prompts of its own.
      samples: number of batches, prompts, completions and tokens.
      seed: of sampling.
    """
    settings = SamplingConfig(max_new_tokens=samples.max_tokens, top_k=0)
    sampler = jax.jit(
        make_sampler(policy.graphdef, policy.processor, settings, group_size=samples.group)
    )
    gradients = jax.jit(functools.partial(batch_gradients, policy.graphdef))
    rows, tokens, divergence = [], 0.0, 0.0
    for step, prompts in enumerate(_batches(policy, data, samples)):
        keys = prompt_keys(seed, step, samples.prompts)
        rollout = sampler(policy.params, None, prompts, keys)
        drawn = (prompts, rollout.tokens, rollout.mask)
        found, kl = gradients(policy.params, reference.params, *drawn)
        rows.append(np.asarray(found))
        tokens += float(rollout.mask.sum())
        divergence += float(kl)
    return Gradients(
        rows=np.stack(rows),
        length=tokens / (samples.batches * samples.size),
        kl=divergence / tokens,
        size=samples.size,
    )


def _batches(policy: Checkpoint, data: DataConfig, samples: Samples) -> Iterator[Prompts]:
    source = open_source(data, size=samples.batches * samples.prompts)
    asked = in_order(source, policy.processor, batch_size=samples.prompts, template=data.template)
    encoded = [prompt for *_, prompt in asked]
    pad = policy.processor.bucket(encoded)  # shared by all batches: one compilation
    for first in range(0, len(encoded), samples.prompts):
        yield policy.processor.batch(encoded[first : first + samples.prompts], pad=pad)


def batch_gradients(
    graphdef: Any,
    params: dict[str, Any],
    reference: dict[str, Any],
    prompts: Prompts,
    completions: Int[Array, "B G T"],
    mask: Bool[Array, "B G T"],
) -> tuple[Float[Array, "kinds P"], Float[Array, ""]]:
    """One row for each of `KINDS` and each true gradient; the KL summed over all tokens, nats.

    The gradient is that of the text tower, as with `--train text`; images are encoded once.
    """
    rows = completions.reshape(-1, completions.shape[-1])
    mask = mask.reshape(rows.shape)
    log_probs = functools.partial(_log_probs, graphdef, prompts, completions)
    ref_log_probs = log_probs(reference)

    def logp_and_kl(text: dict[str, Any]) -> tuple[Float[Array, "n T"], Float[Array, "n T"]]:
        whole = log_probs({**params, "text": text})
        kl = (jnp.exp(whole) * (whole - ref_log_probs)).sum(axis=-1)
        return _of_tokens(whole, rows), kl

    (logp, kl), backward = jax.vjp(logp_and_kl, params["text"])
    kl = jnp.where(mask, kl, 0.0)
    ref_logp = _of_tokens(ref_log_probs, rows)
    of_terms = [
        term.coefficients(reduction, logp, logp, ref_logp, mask) for term, reduction in KINDS
    ]
    # KL of later tokens only: the gradient of a token's own KL needs no sample.
    later = jax.lax.cumsum(kl, axis=1, reverse=True) - kl
    nothing, one = jnp.zeros_like(kl), jnp.where(mask, 1 / len(rows), 0.0)
    by_logp = jnp.stack([*of_terms, later * one, nothing])
    by_kl = jnp.stack([*[nothing] * len(of_terms), one, one])

    def gradient(cotangents: tuple[Array, Array]) -> Float[Array, " P"]:
        return ravel_pytree(backward(cotangents)[0])[0]

    return jax.lax.map(gradient, (by_logp, by_kl)), kl.sum()


def _log_probs(
    graphdef: Any, prompts: Prompts, completions: Int[Array, "B G T"], params: dict[str, Any]
) -> Float[Array, "n T V"]:
    """Log-probabilities of the whole vocabulary before each token of each completion, nats."""
    model = merge(graphdef, params)
    last, later = model.states(prompts, completions[..., :-1])
    first = jnp.broadcast_to(last[:, None, None], (*completions.shape[:2], 1, last.shape[-1]))
    hidden = jnp.concatenate([first, later], axis=2)
    logits = model.logits(hidden.reshape(-1, completions.shape[-1], last.shape[-1]))
    return jax.nn.log_softmax(logits)


def _of_tokens(log_probs: Float[Array, "n T V"], tokens: Int[Array, "n T"]) -> Float[Array, "n T"]:
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """Inner products among one kind's gradients and the true ones, for each pair of batches."""

    own: Float[np.ndarray, "n n"]
    sequences: Float[np.ndarray, "n n"]  # own with the true gradient of whole sequences
    tokens: Float[np.ndarray, "n n"]
    true: Float[np.ndarray, "n n"]  # the true gradient of whole sequences with itself
    true_of_tokens: Float[np.ndarray, "n n"]
    size: int  # sequences per batch

    def quality(self, drawn: Int[np.ndarray, " k"] | None = None) -> Quality:
        """Quality of the expected gradient, from all batches or from a bootstrap draw of them."""
        count = len(self.own)
        times = np.bincount(np.arange(count) if drawn is None else drawn, minlength=count)
        weights = np.outer(times, times) * (1.0 - np.eye(count))  # a batch shares noise with itself

        def mean(products: Float[np.ndarray, "n n"]) -> float:
            return float((weights * products).sum() / weights.sum())

        own, sequences, true = mean(self.own), mean(self.sequences), mean(self.true)
        squares = float(times @ np.diag(self.own) / times.sum())
        return Quality(
            cosine=_bounded(sequences, own, true),
            cosine_tokens=_bounded(mean(self.tokens), own, mean(self.true_of_tokens)),
            descent=sequences / true,
            bias=float(np.sqrt(max(0.0, own - 2 * sequences + true) / true)),
            noise=float(np.sqrt(max(0.0, squares - own) * self.size / true)),
        )


def _bounded(product: float, square: float, true_square: float) -> float:
    """Cosine of estimates, clipped to [-1, 1]: a squared length may be estimated too small."""
    return float(np.clip(cosine(product, square, true_square), -1.0, 1.0))


def products(found: Gradients, kind: tuple[Term, Reduction]) -> Products:
    """Inner products of one term under one reduction; the true gradients are in its unit."""
    _, reduction = kind
    unit = 1.0 if reduction == "sum" else found.length
    own = found.rows[:, KINDS.index(kind)]
    true, true_of_tokens = (found.rows[:, row] / np.float32(unit) for row in (SEQUENCES, TOKENS))
    return Products(
        own=own @ own.T,
        sequences=own @ true.T,
        tokens=own @ true_of_tokens.T,
        true=true @ true.T,
        true_of_tokens=true_of_tokens @ true_of_tokens.T,
        size=found.size,
    )


def bootstrap(of: Products, draws: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals of each number of a `Quality`, over batches."""
    rng = np.random.default_rng(seed)
    count = len(of.own)
    drawn = [of.quality(batches) for batches in rng.integers(count, size=(draws, count))]

    def interval(name: str) -> tuple[float, float]:
        low, high = np.quantile([getattr(one, name) for one in drawn], (0.025, 0.975))
        return float(low), float(high)

    return {field.name: interval(field.name) for field in dataclasses.fields(Quality)}
