"""Settings as JSON, and the record of a run."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from othink_jax.config.checks import require
from othink_jax.config.runs import EvaluateConfig, GRPOConfig, SFTConfig, TrainingConfig
from othink_jax.digests import check_sums
from othink_jax.errors import UserError
from othink_jax.files import as_path, is_locked, read_json

RUN_REFERENCE = "reference"  # directory of the initial model, inside a run directory
RUN_CHECKPOINTS = "checkpoints"  # directory of the training states, numbered by step, inside a run
RUN_BEST = "best"  # folder among them for the state of the best validation, numbered likewise
RUN_LOCK = ".lock"  # held by the process that writes
RUN_BEGINNING = ".beginning"  # marker file while a run is being created
# Settings of an evaluation that have no effect at these values, as JSON.
_UNUSED: dict[str, Any] = {"samples": 1, "by": [], "lm_eval_json": False}
# Two evaluations that differ only in these ask the same questions in the same way.
_HOW_IT_RUNS = ("model", "out", "stage", "batch_size", "dtype", "parallel", "by", "lm_eval_json")
_C = TypeVar("_C")
_RUNS: dict[str, type[TrainingConfig]] = {cls.kind: cls for cls in (GRPOConfig, SFTConfig)}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a JSON object; paths become strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def evaluation_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Settings of an evaluation as its result stores them: without those that are not used.

    A result can thus be compared with results of evaluations that lack these settings.
    """
    made = to_dict(config)
    return {name: x for name, x in made.items() if name not in _UNUSED or x != _UNUSED[name]}


def asked_settings(settings: Mapping[str, Any], *, greedy: bool) -> dict[str, Any]:
    """The settings of an evaluation that determine what is asked of a model, and how.

    Greedy decoding omits top_k and top_p: it takes the likeliest token whatever they are.
    """
    asked = {name: value for name, value in settings.items() if name not in _HOW_IT_RUNS}
    if greedy:
        asked["sampling"] = {
            name: value
            for name, value in asked.get("sampling", {}).items()
            if name not in ("top_k", "top_p")
        }
    return asked


def from_dict(cls: type[_C], values: dict[str, Any]) -> _C:
    """The inverse of `to_dict`; raises UserError on a setting that `cls` does not have."""
    hints = {
        name: hint
        for name, hint in typing.get_type_hints(cls).items()
        if typing.get_origin(hint) is not typing.ClassVar
    }
    unknown = sorted(values.keys() - hints.keys())
    require(not unknown, f"unknown settings of {cls.__name__}: {', '.join(unknown)}")
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        elif hints[name] in (Path, Path | None) and value is not None:
            value = as_path(value)
        made[name] = value
    return cls(**made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Contents of config.json of a run directory."""

    kind: str  # the command that made it
    config: TrainingConfig
    total_steps: int
    started: str  # start of the run, ISO time
    versions: dict[str, str]  # versions of the packages that matter
    device: str
    directory: str = ""  # working directory at the start; relative paths of the data refer to it
    trainer: str = ""  # trainer class, as `package.module:name`
    trainer_digest: str = ""  # digest of the source of that class, see `identity.source_digest`
    # Digests of the user's own functions that the run uses, by name
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    ended: int | None = None  # last step, if the run ended early by `patience`
    # Resumptions with changed settings: the step after which, and each setting before and after
    changes: tuple[dict[str, Any], ...] = ()

    @property
    def last_step(self) -> int:
        """The step that finishes the run."""
        return self.total_steps if self.ended is None else self.ended


def is_run(directory: Path) -> bool:
    """Whether the directory has the config.json of a run, not of a model.

    Raises:
      UserError: config.json is no JSON object.
    """
    path = directory / "config.json"
    return path.is_file() and "kind" in read_json(path)


def run_and_checkpoint(place: Path) -> tuple[Path, str | None]:
    """Split `RUN/checkpoints/STEP` or `RUN/checkpoints/best` into run and last part of the path.

    Any other path is returned as it is, with None. Whether the run exists is not checked.
    """
    if place.parent.name == RUN_CHECKPOINTS and (place.name.isdigit() or place.name == RUN_BEST):
        return place.parents[1], place.name
    return place, None


def read_run(directory: Path) -> RunRecord:
    """The record of a run.

    Raises:
      UserError: there is no run of a known kind, it has not begun, its settings are invalid, or
        config.json differs from what was written.
    """
    path = directory / "config.json"
    if (directory / RUN_BEGINNING).exists() and not path.is_file():
        require(
            is_locked(directory / RUN_LOCK) is not True,
            f"the run in {directory} is being begun: there is nothing of it yet",
        )
        raise UserError(
            f"the run in {directory} was stopped before it began: give the command that began it"
            " once more"
        )
    require(path.is_file(), f"{directory} is not a run directory: it has no config.json")
    check_sums(directory)
    values = read_json(path)
    broken = f"{directory} is not a run directory: its config.json does not hold a run's settings"
    require("kind" in values, broken)
    kind = str(values["kind"])
    require(kind in _RUNS, f"{directory} is a run of kind {kind!r}, of which nothing is known here")
    try:
        return RunRecord(**values | {"config": from_dict(_RUNS[kind], values["config"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(broken) from error
