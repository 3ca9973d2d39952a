"""Code that runs in the worker processes of a `GradingPool`."""

import contextlib
import functools
import logging
import signal
import sys
import warnings
from collections.abc import Sequence

from othink_jax.rewards.builtin import load
from othink_jax.rewards.functions import RewardExample, call_reward, last_line
from othink_jax.rewards.verdict import symbolic_verdict

# Memory that a worker may allocate after its start; an ordinary answer takes some 10 MB.
_HEADROOM_BYTES = 1 << 30


def score(path: str, source: str, text: str, example: RewardExample) -> tuple[float, str]:
    """The value of a function and an empty text, or 0 and the reason if it fails."""
    try:
        reward = _loaded(path)
        if reward.source != source:  # a worker may start long after the run
            raise RuntimeError("the source has changed since the run began")
        return call_reward(reward, text, example), ""
    except BaseException as error:  # not even the function's SystemExit ends the worker
        return 0.0, last_line(error)


_loaded = functools.cache(load)


def is_ready() -> bool:
    """Probe of the pool: returns True in a worker that has started."""
    return True


def prepare_worker(paths: Sequence[str]) -> None:
    """Load grader and reward functions before any timeout starts, then limit the memory."""
    import math_verify  # noqa: F401

    for path in paths:
        with contextlib.suppress(BaseException):  # reported when the function is called
            _loaded(path)
    # The default action ends a worker at once, even amid one long operation on large integers, when
    # no Python handler would run.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # math-verify builds its parser on first use, a hundred times the cost of an ordinary verdict.
    symbolic_verdict("<answer>\\sqrt{4}</answer>", "2", "strict", None)
    if sys.platform == "linux":
        import resource

        # On top of what is mapped already: a worker whose script imports jax maps gigabytes.
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + _HEADROOM_BYTES
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
