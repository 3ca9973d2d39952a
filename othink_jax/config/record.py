"""Settings as JSON, and the record that a run keeps of its own."""

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

RUN_REFERENCE = "reference"  # the model that a run begins with, a directory inside it
RUN_CHECKPOINTS = "checkpoints"  # the training states inside a run directory, numbered by step
RUN_BEST = "best"  # among them: a folder with that of the best validation, numbered as the others
RUN_LOCK = ".lock"  # held by the process that writes
RUN_BEGINNING = ".beginning"  # there while a run is being begun
# Settings of an evaluation that change nothing at these values, as JSON.
_UNUSED: dict[str, Any] = {"samples": 1, "by": [], "lm_eval_json": False}
# Two evaluations that differ in these alone ask the same questions in the same way.
_HOW_IT_RUNS = ("model", "out", "stage", "batch_size", "dtype", "parallel", "by", "lm_eval_json")
_C = TypeVar("_C")
_RUNS: dict[str, type[TrainingConfig]] = {cls.kind: cls for cls in (GRPOConfig, SFTConfig)}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a JSON object; paths become strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def evaluation_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Settings of an evaluation as its result holds them: without those that are not used.

    So a result is compared with those of evaluations that do not have these settings at all.
    """
    made = to_dict(config)
    return {name: x for name, x in made.items() if name not in _UNUSED or x != _UNUSED[name]}


def asked_settings(settings: Mapping[str, Any], *, greedy: bool) -> dict[str, Any]:
    """Of an evaluation's settings those that say what is asked of a model, and how.

    Greedy decoding takes the likeliest token, however few may be drawn.
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
    """What config.json of a run directory says."""

    kind: str  # the command that made it
    config: TrainingConfig
    total_steps: int
    started: str  # an ISO time
    versions: dict[str, str]  # of the packages that matter
    device: str
    directory: str = ""  # that it was started in: relative paths of its data hold from there
    trainer: str = ""  # class that made it, as `package.module:name`
    trainer_digest: str = ""  # of the source of that class, see `identity.source_digest`
    # The same of the user's own functions that it is made with, by name
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    ended: int | None = None  # the step after which it ended early, as `patience` has it
    # Where it went on with other settings: the step after which, and what each was and is
    changes: tuple[dict[str, Any], ...] = ()

    @property
    def last_step(self) -> int:
        """The one that finishes it."""
        return self.total_steps if self.ended is None else self.ended


def is_run(directory: Path) -> bool:
    """Whether there is a config.json that is a run's, and not a model's.

    Raises:
      UserError: it is no JSON object.
    """
    path = directory / "config.json"
    return path.is_file() and "kind" in read_json(path)


def run_and_checkpoint(place: Path) -> tuple[Path, str | None]:
    """Of `RUN/checkpoints/STEP` or `RUN/checkpoints/best` the run and the last part of the path.

    Any other place comes back as it is, with None. Whether there is such a run is not looked at.
    """
    if place.parent.name == RUN_CHECKPOINTS and (place.name.isdigit() or place.name == RUN_BEST):
        return place.parents[1], place.name
    return place, None


def read_run(directory: Path) -> RunRecord:
    """The record of a run.

    Raises:
      UserError: there is no run of a known kind, it has not begun, its settings cannot be used, or
        config.json is not what was written.
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
