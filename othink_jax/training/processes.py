"""Several processes as one run: how they find each other, and tell each other small things.

Every process runs the same program. Each loads its part of the data and grades its own completions;
the first one writes.
"""

import json
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from othink_jax.config import ProcessConfig
from othink_jax.errors import UserError, first_line

_T = TypeVar("_T")


def join(config: ProcessConfig) -> None:
    """Find the other processes, if there are any; before JAX is asked for its devices.

    Raises:
      UserError: they cannot be found.
    """
    if not config.distributed and config.coordinator is None:
        return
    try:
        if config.coordinator is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this run do not find each other: {first_line(error)}"
        ) from error


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def exchange(value: _T) -> list[_T]:
    """What each process gives, in their order: a JSON value. Each waits for all others."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True)
    ]
