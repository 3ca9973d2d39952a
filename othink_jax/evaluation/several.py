"""Several models on the same questions, one after the other, and paired tests between them."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from othink_jax.checkpoint.load import load
from othink_jax.config import EvaluateConfig, run_and_checkpoint
from othink_jax.errors import UserError
from othink_jax.evaluation.accuracy import check_place, evaluated
from othink_jax.evaluation.kept import discard_kept
from othink_jax.evaluation.paired import Answered, asked_otherwise, compared
from othink_jax.files import check_output_directory, write_atomically

COMPARISON = "comparison.json"

_log = logging.getLogger(__name__)


def evaluate_several(
    configs: Sequence[EvaluateConfig], *, done: Callable[[str, Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Evaluate models on the same questions, compare them, and write into the configs' `out`.

    Each model has a folder there, as `evaluate` writes it, beside `comparison.json`. One model is
    loaded at a time. All answers stay stored until the comparison is written: the same call
    continues an interrupted one, and uses no answer of another model, data or settings.

    Args:
      configs: one per model, at least two; they have the same `out`, data and samples.
      done: called with each model's name and result, as soon as there is one.

    Returns:
      The contents of comparison.json: see `compared`, and `asked_otherwise`.

    Raises:
      UserError: as for `evaluate`, before a model is loaded if possible; a model is given twice;
        there is a comparison already; the data changed meanwhile.
    """
    out = configs[0].out
    check_output_directory(out)
    if (out / COMPARISON).exists():
        raise UserError(f"{out} holds a comparison already; give another --out or remove it")
    names = folder_names([config.model for config in configs])
    placed = {
        name: dataclasses.replace(config, out=out / name)
        for name, config in zip(names, configs, strict=True)
    }
    for config in placed.values():
        check_place(config, keep=True)
        load(config.model, abstract=True)  # all but its weights
    differing = asked_otherwise(placed)
    for setting, values in differing.items():
        said = ", ".join(f"{value} of {name}" for name, value in values.items())
        _log.warning("models are not asked alike: %s is %s", setting, said)
    answered = {}
    for name, config in placed.items():
        result, judged = evaluated(config, keep=True)
        answered[name] = Answered.of(result, judged)
        done(name, result)
    comparison = {**compared(answered, configs[0]), "asked_otherwise": differing}
    write_atomically(out / COMPARISON, json.dumps(comparison, indent=2))
    for config in placed.values():
        discard_kept(config.out)
    return comparison


def folder_names(models: Sequence[str]) -> list[str]:
    """A unique name for each model: the last parts of its path, as many as tell all apart.

    Raises:
      UserError: a model is given twice.
    """
    parts = [_parts(model) for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(one[-depth:]) for one in parts]
        if len({name.casefold() for name in names}) == len(names):
            return names
    raise UserError(f"a model is given twice: {', '.join(models)}")


def _parts(model: str) -> tuple[str, ...]:
    """Parts of a model's path; a checkpoint of a run is one part with the run."""
    place, checkpoint = run_and_checkpoint(Path(os.path.abspath(model)))
    name = place.name if checkpoint is None else f"{place.name}-{checkpoint}"
    return (*place.parts[1:-1], name)
