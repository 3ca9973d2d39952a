"""Checks of settings."""

from othink_jax.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_seed(name: str, seed: int) -> None:
    """Raise UserError unless `seed` is in the range of the shuffle's and the sampler's seeds."""
    require(0 <= seed < 2**32, f"{name} must be >= 0 and below 2**32, got {seed}")
