"""Entropy and exact divergences of next-token distributions, as sums over the vocabulary.

Each is defined by its elementwise terms, so that a sharded vocabulary is summed shard by shard.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

# (logp, ref_logp) -> nats, elementwise over the vocabulary
DivergenceTerms = Callable[[Array, Array], Array]


def entropy_terms(logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """-p log p: the term of one vocabulary token in the entropy, nats. Zero where p is zero."""
    return -_weighted(logp, logp)


def token_entropy(logp: Float[Array, "*d V"]) -> Float[Array, "*d"]:
    """Entropy of next-token distributions, nats, from the log-probabilities of a vocabulary."""
    return entropy_terms(logp).sum(axis=-1)


def reverse_kl_terms(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Terms p (log p - log p_ref) of KL(pi || pi_ref) over the vocabulary, nats. 0 where p is 0.

    There is no sampling noise: the value is what `kl_k1`, `kl_k2` and `kl_k3` estimate, and the
    gradient is that of the value. The divergence is that of each next-token distribution given the
    sampled tokens before it. It ignores how a token changes the divergence of later tokens. It is
    infinite where the reference has zero probability and the policy does not.
    """
    return _weighted(logp, logp - ref_logp)


def forward_kl_terms(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Terms p_ref (log p_ref - log p) of KL(pi_ref || pi) over the whole vocabulary, nats.

    Exact, as `reverse_kl_terms`. Its gradient is the expected gradient of `kl_k3`.
    """
    return _weighted(ref_logp, ref_logp - logp)


def _weighted(logp: Float[Array, "*d"], values: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """p times values; value and gradient are zero where p is zero and its logarithm -inf."""
    probability = jnp.exp(logp)
    return probability * jnp.where(probability > 0, values, 0.0)


KL_DIVERGENCES: Mapping[str, DivergenceTerms] = {
    "full": reverse_kl_terms,
    "full_forward": forward_kl_terms,
}
