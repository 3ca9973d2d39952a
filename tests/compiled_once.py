"""Runs of equal settings share programs: most of a short run is tracing and compiling them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from othink_jax.training import grpo, programs, sft

_KEPT = 3  # sets of programs: they take memory


@contextlib.contextmanager
def programs_of_equal_settings_are_compiled_once() -> Iterator[None]:
    """While in it. A process that a user resumes a run in compiles them anew.

    Not for a trainer with a loss of its own: no setting tells it from that of another.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "compile_grpo", _once(programs.compile_grpo))
        patch.setattr(sft, "compile_sft", _once(programs.compile_sft))
        yield


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def compile_once(checkpoint: Any, config: Any, *rest: Any) -> Any:
        settings = repr(dataclasses.replace(config, out=Path()))
        found = made.pop(settings, None) or make(checkpoint, config, *rest)
        made[settings] = found  # the one used last stands last
        if len(made) > _KEPT:
            del made[next(iter(made))]
        return found

    return compile_once
