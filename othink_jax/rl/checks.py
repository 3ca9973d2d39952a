"""Checks of Python numbers, made while a function is traced."""

import math


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_positive(**numbers: float) -> None:
    """Raise a ValueError if a number is not > 0 and finite; the message names it."""
    for name, value in numbers.items():
        require(0 < value < math.inf, f"{name} must be > 0 and finite, got {value}")


def require_not_negative(**numbers: float) -> None:
    """Raise a ValueError if a number is not >= 0 and finite; the message names it."""
    for name, value in numbers.items():
        require(0 <= value < math.inf, f"{name} must be >= 0 and finite, got {value}")
