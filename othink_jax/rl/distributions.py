"""Entropy and exact divergences of next-token distributions, as sums over the vocabulary.

Each is given by its terms, elementwise, so that a vocabulary in pieces is summed piece by piece.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

# (logp, ref_logp) -> nats, elementwise over the vocabulary
DivergenceTerms = Callable[[Array, Array], Array]


def entropy_terms(logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """-p log p: what one token of the vocabulary adds to the entropy, nats. Zero where p is."""
    return -_weighted(logp, logp)


def token_entropy(logp: Float[Array, "*d V"]) -> Float[Array, "*d"]:
    """Entropy of next-token distributions, nats, from the log-probabilities of a vocabulary."""
    return entropy_terms(logp).sum(axis=-1)


def reverse_kl_terms(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """KL(pi || pi_ref) over the whole vocabulary: p (log p - log p_ref), nats. Zero where p is.

    No sampling noise: the value is what `kl_k1`, `kl_k2` and `kl_k3` estimate, and the gradient is
    its own. It is the divergence of each token's distribution after the sampled ones; how a token
    changes the divergence of those after it, it does not see. Infinite where the reference excludes
    what the policy does not.
    """
    return _weighted(logp, logp - ref_logp)


def forward_kl_terms(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """KL(pi_ref || pi) over the whole vocabulary: p_ref (log p_ref - log p), nats.

    Exact, as `reverse_kl_terms`. Its gradient is the one that `kl_k3` has on average.
    """
    return _weighted(ref_logp, ref_logp - logp)


def _weighted(logp: Float[Array, "*d"], values: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """p times values; zero where p is, whose logarithm is -inf. So is the gradient."""
    probability = jnp.exp(logp)
    return probability * jnp.where(probability > 0, values, 0.0)


KL_DIVERGENCES: Mapping[str, DivergenceTerms] = {
    "full": reverse_kl_terms,
    "full_forward": forward_kl_terms,
}
