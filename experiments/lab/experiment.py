"""What the experiments share: their options, their cells, and what they write."""

import abc
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro
from matplotlib.figure import Figure
from PIL import Image

from experiments.lab.cells import Cell
from experiments.lab.runner import run_all
from experiments.lab.scales import RESULTS, PaperFiles, Scale, make_scale
from othink_jax.errors import UserError
from othink_jax.report.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of an experiment on the command line."""

    scale: Literal["laptop", "paper"] = "laptop"
    seeds: int = 5  # of training, from 0; methods are compared seed by seed
    steps: int | None = None  # updates, where they are not the scale's own
    runs: Path = Path("runs/experiments")  # where models and predictions lie
    out: Path | None = None  # tables and figures; experiments/results/SCALE if not given
    files: PaperFiles = PaperFiles()  # with the scale `paper`

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise UserError("--seeds must be >= 2: one seed has no interval")

    @property
    def root(self) -> Path:
        """Where the cells of this scale lie."""
        return self.runs / self.scale

    @property
    def results(self) -> Path:
        """Where the tables and figures of this scale go."""
        return self.out or RESULTS / self.scale

    def make_scale(self) -> Scale:
        """The settings of this scale."""
        return make_scale(self.scale, self.files, self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One question, and what several methods answered."""

    title: str
    image: Image.Image
    question: str
    ground_truth: str
    answers: Sequence[Mapping[str, Any]]  # `method`, `correct`, `text`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment shows."""

    tables: Sequence[Table]
    figure: Figure | None = None
    cases: Sequence[Case] = ()
    numbers: Mapping[Any, Any]  # every seed's, as JSON


class Experiment(abc.ABC):
    """One table or figure of the paper. Its module's docstring has the claim and the cost."""

    name: ClassVar[str]

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scale = options.make_scale()
        self.seeds = range(options.seeds)

    @abc.abstractmethod
    def cells(self) -> Sequence[Cell]:
        """All models and tests that it needs."""

    @abc.abstractmethod
    def result(self) -> Result:
        """Of cells that are all done."""

    def run(self) -> Result:
        """Do what is left to do, then write tables (text, CSV, HTML), figure and numbers."""
        run_all(self.cells(), self.options.root, one_a_core=self.options.scale == "laptop")
        result = self.result()
        write(result, self.options.results / self.name, sys.modules[type(self).__module__].__doc__)
        return result


def write(result: Result, directory: Path, about: str | None) -> None:
    """The files of a result; those of an earlier one are replaced.

    Args:
      result: of an experiment.
      directory: made if it is not there; its name is the experiment's.
      about: the docstring of the experiment's module: title, claim, command, cost.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tables = result.tables
    (directory / "table.txt").write_text("\n".join(t.text() for t in tables), encoding="utf-8")
    (directory / "table.csv").write_text("\n".join(t.csv() for t in tables), encoding="utf-8")
    (directory / "table.html").write_text("\n".join(t.html() for t in tables), encoding="utf-8")
    cases = []
    for number, case in enumerate(result.cases, start=1):
        image = f"case{number}.png"
        case.image.save(directory / image)
        fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
        cases.append(fields | {"image": image})
    record = {
        "kind": "experiment",
        "name": directory.name,
        "about": about,
        "tables": [dataclasses.asdict(table) for table in tables],
        "cases": cases,
        **result.numbers,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    if result.figure is not None:
        result.figure.savefig(directory / "figure.png", dpi=130)
        result.figure.savefig(directory / "figure.svg")


def as_command(name: str, run: Callable[[], None]) -> None:
    """Run it as a command: a user's mistake, or an interruption, is one line and no traceback."""
    try:
        run()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def main(experiment: type[Experiment], description: str | None) -> None:
    """The command of an experiment's module."""

    def run() -> None:
        options = tyro.cli(Options, description=description, config=(tyro.conf.OmitArgPrefixes,))
        show(experiment(options).run())
        print(options.results / experiment.name)

    as_command(experiment.name, run)


def show(result: Result) -> None:
    """Its tables, in the terminal."""
    for table in result.tables:
        print(table.text())
