"""The settings of an entropy bonus."""

import dataclasses
import math

from othink_jax.config.checks import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyConfig:
    """The entropy bonus: a coefficient times the mean entropy is subtracted from the loss."""

    entropy_coef: float = 0.0  # the coefficient, or the initial one (with a target); 0: no bonus
    # Target of the mean entropy, nats per token: the bonus applies at or below it, with an adaptive
    # coefficient (Skywork-OR1, arXiv 2505.22312); without a target the coefficient is constant
    entropy_target: float | None = None
    entropy_coef_delta: float = 0.005  # change of the adaptive coefficient after each update
    entropy_coef_min: float = 0.0  # its lower bound
    entropy_coef_max: float = 1.0  # its upper bound

    def __post_init__(self) -> None:
        require(
            0 <= self.entropy_coef < math.inf,
            f"entropy_coef must be >= 0 and finite, got {self.entropy_coef}",
        )
        numbers = ("entropy_coef_delta", "entropy_coef_min", "entropy_coef_max")
        for field in dataclasses.fields(self):
            require(
                self.entropy_target is not None
                or field.name not in numbers
                or getattr(self, field.name) == field.default,
                f"--{field.name.replace('_', '-')} needs --entropy-target: without one the"
                " coefficient is constant",
            )

    @property
    def used(self) -> bool:
        """Whether there is a bonus; without one, no entropy is computed."""
        return self.entropy_coef > 0 or self.entropy_target is not None
