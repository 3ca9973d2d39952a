"""How tables show shares."""


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.1f}"


def published(value: float) -> str:
    """A share of the paper, in percent, with the two decimals that the paper gives."""
    return f"{100 * value:.2f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A share and its interval, in percent."""
    return f"{percent(value)} ({percent(low)} to {percent(high)})"
