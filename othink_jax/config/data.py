"""Sources of examples, and how examples become prompts."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from othink_jax.config.checks import require, require_seed
from othink_jax.config.options import DatasetOption
from othink_jax.files import as_path
from othink_jax.tasks import Task

Difficulty = Literal["easy", "default", "hard"]

COLUMN_ROLES = ("question", "answer", "image", "thinking")
TRAIN_TEMPLATE = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in"
    " <answer> </answer> tags."
)
TINY_TEMPLATE = "{question} Think, then answer."


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources of examples and how they become prompts. Give `task` or `dataset`, not both."""

    task: Task | None = None  # a synthetic task, generated on the fly
    # A hub id, a parquet or JSONL file (also `gs://...`), or a folder (also of CLEVR). Several are
    # read as one. If weights are given, each supplies its share of the prompts (default weight: 1)
    dataset: DatasetOption = ()
    # column names of the data set that differ from ours:
    # `question=query,answer=label,image=img,thinking=why`; of several data sets, it holds for those
    # that have these columns
    columns: str | None = None
    # folder that the image paths of a data set are relative to; if not given, the folder of the
    # data file, or the data folder itself
    images: Path | None = None
    # split: train, validation, test or test-ood (counting only) of a task; a data set's own splits;
    # a single file has none
    split: str = "train"
    # read parquet files, local or on the hub, while they are used, and store nothing; for a run of
    # --steps, or the first --limit rows; the order is shuffled in a window of 1000 rows
    streaming: bool = False
    difficulty: Difficulty = "default"  # difficulty of a task
    # use only this many examples of each data set (few-shot), chosen by `limit_seed`
    limit: int | None = None
    limit_seed: int = 0  # also the seed of a task's examples
    template: str = TRAIN_TEMPLATE  # the user's turn; {question} is replaced
    # the system's turn before it; that of the chat template if not given
    system_prompt: str | None = None
    # Name of the answer's tags, which follow the `<think>` tags
    answer_tag: str = "answer"
    # Instead of tags, a regular expression with one group, the answer; its last match counts. The
    # format is right wherever it matches
    answer_pattern: str | None = None
    # A longer prompt is never truncated: training skips and counts it, evaluation counts it as
    # answered wrongly. None: no limit
    max_prompt_tokens: int | None = 1024
    # images are resized to at least and at most this many pixels; None: the model's own bounds
    min_pixels: int | None = 3136
    max_pixels: int | None = 401408

    def __post_init__(self) -> None:
        if self.images is not None:
            object.__setattr__(self, "images", as_path(self.images))
        given = given_datasets(self.dataset)
        # One data set is a str and none is None, as records with at most one have it.
        object.__setattr__(self, "dataset", given[0] if len(given) == 1 else given or None)
        require(
            (self.task is None) != (not given),
            "give either --task (counting, geometry, grounding) or --dataset, and not both",
        )
        require(
            self.images is None or bool(given),
            "--images goes with a --dataset whose rows name image files",
        )
        require(
            not self.streaming or (len(given) == 1 and not given[0].endswith(".jsonl")),
            "--streaming goes with one --dataset of parquet files, here or on the hub",
        )
        require(not self.column_names or bool(given), "--columns goes with a --dataset")
        _check_mixture(self.mixture)
        require("{question}" in self.template, "template must contain {question}")
        asked = f"{self.system_prompt or ''} {self.template}"
        require(
            self.answer_tag == "answer" or "<answer>" not in asked,
            f"--answer-tag {self.answer_tag}, but the prompt asks for <answer> tags: give a"
            f" --template that asks for <{self.answer_tag}>",
        )
        if self.min_pixels is not None and self.max_pixels is not None:
            require(
                0 < self.min_pixels <= self.max_pixels,
                f"min_pixels must be > 0 and at most max_pixels, got {self.min_pixels} and"
                f" {self.max_pixels}",
            )
        require(self.limit is None or self.limit >= 1, f"limit must be >= 1, got {self.limit}")
        require_seed("limit_seed", self.limit_seed)
        require(
            self.max_prompt_tokens is None or self.max_prompt_tokens >= 1,
            f"max_prompt_tokens must be >= 1, got {self.max_prompt_tokens}",
        )

    def with_absolute_paths(self, directory: Path) -> "DataConfig":
        """This config, with relative paths that exist in `directory` made absolute."""
        names = [
            str(directory / name) if (directory / name).exists() else name
            for name in self.dataset_names
        ]
        images = self.images
        if images is not None and (directory / images).exists():
            images = directory / images
        return dataclasses.replace(self.with_dataset_paths(names), images=images)

    def with_dataset_paths(self, names: Sequence[str]) -> "DataConfig":
        """This config, with its data sets in other places: one name for each, in their order.

        Raises:
          UserError: the number of names differs.
        """
        require(
            len(names) == len(self.mixture),
            f"--dataset must say where {len(self.mixture)} data set(s) lie now, and names"
            f" {len(names)}",
        )
        given = [
            name if weight is None else f"{name}={weight!r}"
            for name, (_, weight) in zip(names, self.mixture, strict=True)
        ]
        return dataclasses.replace(self, dataset=tuple(given))

    @property
    def mixture(self) -> tuple[tuple[str, float | None], ...]:
        """Name and weight of each data set; the weight is None if it was not given.

        If there are several data sets, the part after the last `=` is a weight if it is a number.
        """
        given = given_datasets(self.dataset)
        return ((given[0], None),) if len(given) == 1 else tuple(map(_weighted, given))

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Names of the data sets, without their weights."""
        return tuple(name for name, _ in self.mixture)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of the data sets; None if none has one."""
        found = [weight for _, weight in self.mixture]
        if all(weight is None for weight in found):
            return None
        return tuple(1.0 if weight is None else weight for weight in found)

    @property
    def column_names(self) -> dict[str, str]:
        """Column names by role, as `columns` gives them."""
        found: dict[str, str] = {}
        for part in (self.columns or "").split(",") if self.columns else ():
            role, _, name = (word.strip() for word in part.partition("="))
            require(
                role in COLUMN_ROLES and bool(name) and role not in found,
                f"--columns must be ROLE=COLUMN,..., each of {', '.join(COLUMN_ROLES)} once at"
                f" most; got {self.columns!r}",
            )
            found[role] = name
        return found

    @property
    def has_splits(self) -> bool:
        """Whether the data has splits; a single file has none, whatever `split` says."""
        files = [name.endswith((".jsonl", ".parquet")) for name in self.dataset_names]
        return not files or not all(files)

    @property
    def dataset_name(self) -> str | None:
        """Display name of the data sets; None for a task."""
        return " + ".join(given_datasets(self.dataset)) or None

    @property
    def name(self) -> str:
        """Display name of the examples: the task or data set, and its split."""
        of = self.task or str(self.dataset_name)
        level = "" if self.task is None or self.difficulty == "default" else f" ({self.difficulty})"
        return f"{of}{level}, {self.split}" if self.has_splits else of


def given_datasets(option: DatasetOption) -> tuple[str, ...]:
    """The names and weights of `DataConfig.dataset` as a tuple."""
    if option is None:
        return ()
    return (option,) if isinstance(option, str) else tuple(option)


_WEIGHTED = re.compile(r"(.+)=([-+.\deE]+|inf|nan)")


def _weighted(given: str) -> tuple[str, float | None]:
    match = _WEIGHTED.fullmatch(given)
    try:
        return (match[1], float(match[2])) if match else (given, None)
    except ValueError:
        return given, None


def _check_mixture(mixture: Iterable[tuple[str, float | None]]) -> None:
    """Raise UserError if a weight is invalid, or a data set is given twice."""
    mixture = list(mixture)
    for name, weight in mixture:
        require(
            weight is None or 0 < weight < math.inf,
            f"--dataset {name}: its weight must be > 0 and finite, got {weight}",
        )
    names = [name for name, _ in mixture]
    for name in names:
        require(
            names.count(name) == 1, f"--dataset {name} is given twice: give it once, with a weight"
        )
