"""The KL terms that are compared, and quality measures of their gradients."""

import dataclasses
import itertools
import math
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from othink_jax import rl
from othink_jax.config import LossConfig
from othink_jax.training.losses import make_loss

Reduction = Literal["sum", "sequence", "token"]
REDUCTIONS: tuple[Reduction, ...] = ("sum", "sequence", "token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A KL term, in the options of the command line."""

    estimator: str  # of rl.KL_ESTIMATORS
    gradient: str  # of rl.KL_GRADIENTS
    placement: Literal["loss", "reward"] = "loss"

    @property
    def label(self) -> str:
        """Label in tables and figures."""
        if self.placement == "reward":
            return f"{self.estimator} in the reward"
        if self.gradient == "own":
            return self.estimator
        return f"{self.estimator}, {self.gradient}"

    def coefficients(
        self,
        reduction: Reduction,
        logp: Float[Array, "n T"],
        old_logp: Float[Array, "n T"],
        ref_logp: Float[Array, "n T"],
        mask: Bool[Array, "n T"],
    ) -> Float[Array, "n T"]:
        """Gradient of the loss with respect to each token's log-probability, for n sequences.

        The loss is that of `othink-jax grpo` with a KL weight of 1 and advantages of 0: only the KL
        moves the policy. Log-probabilities are in nats.
        """
        settings = LossConfig(
            kl_estimator=self.estimator,
            kl_gradient=self.gradient,
            kl_placement=self.placement,
            reduction=reduction,
        )
        loss = make_loss(settings)
        advantages = jax.numpy.zeros(logp.shape[:-1])

        def value(logp: Float[Array, "n T"]) -> Float[Array, ""]:
            average, _ = loss(logp, old_logp, ref_logp, advantages, mask, kl_coef=1.0)
            return average.value

        return jax.grad(value)(logp)


# In the reward, the KL is always k1 summed from a token to the end, whatever the estimator.
IN_REWARD = Term(estimator="k1", gradient="own", placement="reward")
TERMS = (
    *(
        Term(estimator=estimator, gradient=gradient)
        for gradient, estimator in itertools.product(rl.KL_GRADIENTS, rl.KL_ESTIMATORS)
    ),
    IN_REWARD,
)
# `reverse` gives every estimator the gradient of k2 and `forward` that of k3, so k2 and k3 stand
# for these.
DISTINCT = tuple(term for term in TERMS if term.gradient in ("own", "ratio"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """An expected gradient compared with the true one, and the noise of a batch around it.

    A step goes against a gradient: a cosine of 1 is straight down the divergence, -1 straight up.
    """

    cosine: float  # with the gradient of KL(pi || pi_ref) of whole sequences
    cosine_tokens: float  # with that of the tokens' KL, contexts held fixed
    # How far a step goes down the KL of whole sequences: 1 as far as the true gradient, 0 not at
    # all, -1 as far up
    descent: float
    bias: float  # length of (expected - true), over that of the true gradient
    # Standard deviation of the gradient of one sequence, over the length of the true one. It is
    # that of a batch of n times the square root of n
    noise: float


def quality(
    mean: Float[np.ndarray, " p"],
    square: float,
    true: Float[np.ndarray, " p"],
    true_of_tokens: Float[np.ndarray, " p"],
    batch: int,
) -> Quality:
    """Quality of a gradient whose expectation is known.

    Args:
      mean: its expectation.
      square: the expectation of its squared length.
      true: gradient of the KL of whole sequences, in the unit of the reduction.
      true_of_tokens: that of the tokens' KL.
      batch: sequences per gradient.
    """
    length = float(np.linalg.norm(true))
    variance = max(0.0, square - float(mean @ mean))
    return Quality(
        cosine=cosine(float(mean @ true), float(mean @ mean), float(true @ true)),
        cosine_tokens=cosine(
            float(mean @ true_of_tokens),
            float(mean @ mean),
            float(true_of_tokens @ true_of_tokens),
        ),
        descent=float(mean @ true) / length**2,
        bias=float(np.linalg.norm(mean - true)) / length,
        noise=math.sqrt(variance * batch) / length,
    )


def cosine(product: float, square: float, true_square: float) -> float:
    """Cosine from an inner product and two squared lengths; 0 if `square` is negligible."""
    if square <= 1e-12 * true_square:
        return 0.0
    return product / math.sqrt(square * true_square)
