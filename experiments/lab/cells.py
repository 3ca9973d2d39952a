"""A cell of an experiment: one model, trained or as it is, and its tests; stored as a directory.

A cell's directory is named after its settings. So experiments that need the same model share it, a
finished cell costs nothing, and other settings make another cell. An interrupted cell resumes where
it stopped.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from othink_jax.config import (
    LABELS,
    RUN_CHECKPOINTS,
    EvaluateConfig,
    GRPOConfig,
    SFTConfig,
    evaluation_settings,
    from_dict,
    read_run,
    to_dict,
)

# Data settings that the digest omits at their defaults, as cells made without them do.
_LATER_DATA = ("columns", "system_prompt", "answer_pattern")
# Settings that the digest omits because they change no result: paths and labels.
_LEFT_OUT = ("out", "model", *LABELS)
_TRAINING: dict[str, Any] = {config.kind: config for config in (GRPOConfig, SFTConfig)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One model of an experiment. `out` of its settings and `model` of its tests are ignored."""

    method: str  # base, sft, grpo or grpo_d, as in tables
    model: str  # the model that is trained, or tested as it is
    train: GRPOConfig | SFTConfig | None = None  # None: the model is tested as it is
    tests: tuple[EvaluateConfig, ...] = ()
    every_checkpoint: bool = False  # test every kept checkpoint, not only the last one

    def tested_on(self, *tests: EvaluateConfig) -> "Cell":
        """The same model with only these tests."""
        return dataclasses.replace(self, tests=tests)

    @property
    def name(self) -> str:
        """Name of its directory: readable words, and a digest of all settings of its training."""
        if self.train is None:
            return f"{self.method}-{_digest(self.model)}"
        data, seed = self.train.data, self.train.seed
        trained_on = data.task or Path(str(data.dataset_name)).stem
        digest = _digest([self.model, self.train.kind, _settings(self.train)])
        return f"{self.method}-{trained_on}-seed{seed}-{digest}"

    def to_json(self) -> str:
        kind = None if self.train is None else self.train.kind
        train = None if self.train is None else to_dict(self.train)
        tests = [to_dict(test) for test in self.tests]
        return json.dumps([self.method, self.model, kind, train, tests, self.every_checkpoint])

    @classmethod
    def from_json(cls, text: str) -> "Cell":
        method, model, kind, train, tests, every = json.loads(text)
        return cls(
            method=method,
            model=model,
            train=None if kind is None else from_dict(_TRAINING[kind], train),
            tests=tuple(from_dict(EvaluateConfig, test) for test in tests),
            every_checkpoint=every,
        )


def _settings(config: Any) -> dict[str, Any]:
    made = evaluation_settings(config) if isinstance(config, EvaluateConfig) else to_dict(config)
    settings = {name: value for name, value in made.items() if name not in _LEFT_OUT}
    if not settings.get("skip_nonfinite"):
        settings.pop("skip_nonfinite", None)  # nothing is skipped, as in cells without the setting
    if "reward" in settings and not settings["reward"]["functions"]:
        del settings["reward"]["functions"]  # the reward of Eq. 1, as in cells without the setting
    if not settings.get("validation", {}).get("validate_every"):
        settings.pop("validation", None)  # none, as in cells without the setting
    if "data" in settings:
        usual: dict[str, str | None] = dict.fromkeys(_LATER_DATA)
        usual["answer_tag"] = "answer"
        settings["data"] = {
            name: value
            for name, value in settings["data"].items()
            if name not in usual or value != usual[name]
        }
    return settings


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def decoding(test: EvaluateConfig) -> str:
    """Whether a test decodes greedily or samples."""
    return "greedy" if test.sampling.temperature == 0 else "sampled"


def evaluation_name(test: EvaluateConfig) -> str:
    """Directory name of an evaluation."""
    data = test.data
    asked = data.task or Path(str(data.dataset_name)).stem
    settings = _settings(test)
    del settings["parallel"]  # the devices do not change the test
    return f"{asked}-{data.split}-{decoding(test)}-{_digest(settings)}"


def evaluation_directory(
    root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None
) -> Path:
    """Directory of a test's result, for the last checkpoint or for that of a step."""
    place = root / cell.name / "evaluations"
    return (place if step is None else place / f"step{step}") / evaluation_name(test)


def _evaluations(root: Path, cell: Cell) -> Iterator[tuple[Path, int | None, EvaluateConfig]]:
    """Directory, checkpoint step (None: the last) and test of each evaluation of a cell."""
    steps = checkpoint_steps(root / cell.name)[:-1] if cell.every_checkpoint else []
    for step, test in itertools.product((*steps, None), cell.tests):
        yield evaluation_directory(root, cell, test, step), step, test


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that a trained run has kept, in order, the last step at the end.

    A checkpoint saved at an interruption, which may be at any other step, is left out.
    """
    record = read_run(run)
    names = [path.name for path in (run / RUN_CHECKPOINTS).glob("*")]
    kept = {int(name) for name in names if name.isdigit()}
    regular = range(0, record.last_step, record.config.checkpoint_every)
    return [*sorted(kept.intersection(regular)), record.last_step]


def is_trained(run: Path) -> bool:
    """Whether a run directory holds the checkpoint of its last step (written atomically)."""
    if not (run / "config.json").is_file():
        return False
    return (run / RUN_CHECKPOINTS / str(read_run(run).last_step)).is_dir()


def is_done(root: Path, cell: Cell) -> bool:
    """Whether a cell is trained and has the results of all its tests."""
    trained = cell.train is None or is_trained(root / cell.name)
    return trained and all((out / "result.json").is_file() for out, *_ in _evaluations(root, cell))


def run(root: Path, cell: Cell) -> None:
    """Finish a cell: train it or resume its training, then run the missing tests.

    A second process with the same cell waits until the first has finished it.

    Raises:
      UserError: training or evaluation raised it.
    """
    from othink_jax.evaluation import evaluate

    directory = root / cell.name
    locks = root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(locks / cell.name):
        if cell.train is not None and not is_trained(directory):
            _train(directory, cell)
        last = cell.model if cell.train is None else str(directory)
        for out, step, test in _evaluations(root, cell):
            if not (out / "result.json").is_file():
                model = last if step is None else str(directory / RUN_CHECKPOINTS / str(step))
                evaluate(dataclasses.replace(test, model=model, out=out))


def _train(directory: Path, cell: Cell) -> None:
    from othink_jax.training import grpo, sft

    assert cell.train is not None
    config = dataclasses.replace(cell.train, model=cell.model, out=directory)
    if (directory / "config.json").is_file():
        (sft if isinstance(config, SFTConfig) else grpo).resume(directory)
        return
    shutil.rmtree(directory, ignore_errors=True)  # left by a process that died before training
    if isinstance(config, SFTConfig):
        sft.train(config)
    else:
        grpo.train(config)
