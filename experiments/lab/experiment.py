"""Base class of the experiments: options, cells, and output files."""

import abc
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import matplotlib
import tyro
from matplotlib.figure import Figure
from PIL import Image

from experiments.lab.cells import Cell
from experiments.lab.runner import run_all
from experiments.lab.scales import (
    METHODS,
    RESULTS,
    TUNED,
    Laptop,
    Paper,
    PaperSetup,
    Scale,
    read_tuned,
)
from experiments.lab.scores import Score, score_of
from othink_jax.config import EvaluateConfig, Task
from othink_jax.errors import UserError
from othink_jax.report.table import Table

_Name = TypeVar("_Name")

SEEDS = 5
GOES_ON = "stopped; the same command goes on from here"
FIRST_TUNING_SEED = 100  # choices on the validation split use seeds from here on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an experiment on the command line."""

    scale: Literal["laptop", "paper"] = "laptop"
    seeds: int = SEEDS  # number of training seeds, from 0; methods are compared seed by seed
    steps: int | None = None  # updates; if not given, those of the scale
    runs: Path = Path("runs/experiments")  # directory of models and predictions
    # Directory of tables and figures; if not given, experiments/results/SCALE, with non-default
    # seeds and steps appended to its name
    out: Path | None = None
    tuned: Path = TUNED  # scale `laptop` only: the choices of experiments.tuning
    paper: PaperSetup = PaperSetup()  # scale `paper` only

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= FIRST_TUNING_SEED:
            raise UserError(
                "--seeds must be >= 2, for one seed has no interval, and at most"
                f" {FIRST_TUNING_SEED}, from which on they have been used for tuning"
            )

    @property
    def root(self) -> Path:
        """Directory of the cells of this scale."""
        return self.runs / self.scale

    @property
    def results(self) -> Path:
        """Directory of the tables and figures of this scale."""
        name: str = self.scale
        if self.seeds != SEEDS:
            name += f"-{self.seeds}seeds"
        if self.steps is not None:
            name += f"-{self.steps}steps"
        return self.out or RESULTS / name

    def make_scale(self) -> Scale:
        """The settings of this scale.

        Raises:
          UserError: at laptop scale, the methods have not been tuned.
        """
        if self.scale == "paper":
            return Paper(setup=self.paper, steps=self.steps)
        laptop = Laptop(tuned=read_tuned(self.tuned))
        return laptop if self.steps is None else dataclasses.replace(laptop, steps=self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One question and the answers of several methods."""

    title: str
    image: Image.Image
    question: str
    ground_truth: str
    answers: Sequence[Mapping[str, Any]]  # `method`, `correct`, `text`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Tables, figure, example cases and numbers of an experiment."""

    tables: Sequence[Table]
    figure: Figure | None = None
    cases: Sequence[Case] = ()
    numbers: Mapping[Any, Any]  # of every seed, for results.json


class Experiment(abc.ABC):
    """One table or figure of the paper. Its module's docstring has the claim and the cost."""

    name: ClassVar[str]

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seeds: Sequence[int] = range(options.seeds)

    @functools.cached_property
    def scale(self) -> Scale:
        """The settings of the models and their tests."""
        return self.options.make_scale()

    def models(self, scale: Scale, task: Task) -> dict[str, list[Cell]]:
        """Cells of the base and of each method trained on a task, one per seed."""
        found = {"base": [scale.base()]}
        for method in METHODS:
            found[method] = [scale.cell(method, task, seed) for seed in self.seeds]
        return found

    def scores_of(
        self, models: Mapping[_Name, Sequence[Cell]], test: EvaluateConfig
    ) -> dict[_Name, list[Score]]:
        """Scores of models whose cells are done, one per cell."""
        root = self.options.root
        return {name: [score_of(root, cell, test) for cell in models[name]] for name in models}

    @abc.abstractmethod
    def cells(self) -> Sequence[Cell]:
        """All cells that the experiment needs."""

    @abc.abstractmethod
    def result(self) -> Result:
        """The result, once all cells are done."""

    def run(self) -> Result:
        """Finish all cells, then write tables (text, CSV, HTML), figure and numbers.

        A repeated call resumes where an interrupted one stopped. Finished cells are not run again.
        """
        run_all(self.cells(), self.options.root, one_a_core=self.options.scale == "laptop")
        result = self.result()
        about = sys.modules[type(self).__module__].__doc__ or ""
        made = {
            "scale": self.options.scale,
            "seeds": list(self.seeds),
            "steps": self.options.steps or "as the scale has it",
        }
        write(result, self.options.results / self.name, about, made)
        return result


def write(
    result: Result, directory: Path, about: str, made: Mapping[str, Any] | None = None
) -> None:
    """Write the files of a result, replacing those of an earlier one.

    Args:
      result: of an experiment.
      directory: named after the experiment; it appears only when complete.
      about: the docstring of the experiment's module: title, claim, command, cost.
      made: scale, seeds and updates.
    """
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for form in ("text", "html"):
        texts = [getattr(table, form)() for table in result.tables]
        suffix = {"text": "txt", "html": "html"}[form]
        (unfinished / f"tables.{suffix}").write_text("\n".join(texts), encoding="utf-8")
    for number, table in enumerate(result.tables, start=1):
        (unfinished / f"table{number}.csv").write_text(table.csv(), encoding="utf-8")
    cases = []
    for number, case in enumerate(result.cases, start=1):
        image = f"case{number}.png"
        case.image.save(unfinished / image)
        fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
        cases.append(fields | {"image": image})
    if result.figure is not None:
        result.figure.savefig(unfinished / "figure.png", dpi=130)
        with matplotlib.rc_context({"svg.hashsalt": directory.name}):  # a reproducible file
            result.figure.savefig(unfinished / "figure.svg", metadata={"Date": None})
    record = {
        "kind": "experiment",
        "name": directory.name,
        "about": about,
        "made": made or {},
        "tables": [dataclasses.asdict(table) for table in result.tables],
        "cases": cases,
        **result.numbers,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (unfinished / "results.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)


def as_command(name: str, run: Callable[[], None], *, stopped: str = "stopped") -> None:
    """Run a command: a UserError or an interruption prints one line and no traceback.

    Args:
      name: of the command.
      run: the work of the command.
      stopped: message after an interruption.
    """
    try:
        run()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        raise SystemExit(130) from None


def main(experiment: type[Experiment], description: str | None) -> None:
    """Entry point of an experiment's module."""

    def run() -> None:
        options = tyro.cli(Options, description=description, config=(tyro.conf.OmitArgPrefixes,))
        for table in experiment(options).run().tables:
            print(table.text())
        print(options.results / experiment.name)

    as_command(experiment.name, run, stopped=GOES_ON)
