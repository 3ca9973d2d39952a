"""Where examples come from and how they become prompts."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from othink_jax.config.checks import require, require_seed
from othink_jax.files import as_path

Task = Literal["counting", "geometry"]
Difficulty = Literal["easy", "default", "hard"]

TRAIN_TEMPLATE = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in"
    " <answer> </answer> tags."
)
TINY_TEMPLATE = "{question} Think, then answer."


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they become prompts. Give `task` or `dataset`, not both."""

    task: Task | None = None  # a synthetic task, generated on the fly
    dataset: str | None = (
        None  # a hub id, a parquet or JSONL file (also `gs://...`), or a folder (also of CLEVR)
    )
    # folder that a data set's image paths are relative to; that of the file, or the folder of files
    # itself, if not given
    images: Path | None = None
    # train, validation, test, or test-ood (counting only) of a task; a data set's own; a single
    # file has none
    split: str = "train"
    # read parquet files, here or on the hub, while they are used, and store nothing of them, for
    # --steps, or the first --limit rows; their order is shuffled in a window of 1000 rows
    streaming: bool = False
    difficulty: Difficulty = "default"  # of a task
    limit: int | None = None  # use this many examples only (few-shot), chosen by `limit_seed`
    limit_seed: int = 0  # also the seed of a task's examples
    template: str = TRAIN_TEMPLATE  # the user's turn; {question} is replaced
    # the system's turn before it; the chat template's own if not given
    system_prompt: str | None = None
    # An answer stands in `<answer>` tags, behind `<think>` ones: another name than `answer`
    answer_tag: str = "answer"
    # or a regular expression with one group, the answer, where it is found last; what is right in
    # form is then what it is found in
    answer_pattern: str | None = None
    # A longer prompt is never cut: training skips and counts it, evaluation counts it as answered
    # wrongly. None: no limit
    max_prompt_tokens: int | None = 1024
    # images are resized to at least and at most so many pixels; None: the model's own bounds
    min_pixels: int | None = 3136
    max_pixels: int | None = 401408

    def __post_init__(self) -> None:
        if self.images is not None:
            object.__setattr__(self, "images", as_path(self.images))
        require(
            (self.task is None) != (self.dataset is None),
            "give either --task (counting, geometry) or --dataset, and not both",
        )
        require(
            self.images is None or self.dataset is not None,
            "--images goes with a --dataset whose rows name image files",
        )
        require(
            not self.streaming
            or (self.dataset is not None and not self.dataset.endswith(".jsonl")),
            "--streaming goes with a --dataset of parquet files, here or on the hub",
        )
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

    def located(self, directory: Path) -> "DataConfig":
        """The same with relative paths that exist from `directory` made absolute."""
        found: dict[str, Any] = {}
        if self.dataset is not None and (directory / self.dataset).exists():
            found["dataset"] = str(directory / self.dataset)
        if self.images is not None and (directory / self.images).exists():
            found["images"] = directory / self.images
        return dataclasses.replace(self, **found)

    @property
    def has_splits(self) -> bool:
        """A single file has none, whatever `split` says."""
        return self.dataset is None or not self.dataset.endswith((".jsonl", ".parquet"))

    @property
    def name(self) -> str:
        """What the examples are, for people: the task or data set, and its split."""
        of = self.task or str(self.dataset)
        level = "" if self.task is None or self.difficulty == "default" else f" ({self.difficulty})"
        return f"{of}{level}, {self.split}" if self.has_splits else of
