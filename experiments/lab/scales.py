"""The settings of the experiments at their two scales: on a laptop, and as in the paper."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.lab.cells import Cell
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    GRPOConfig,
    KLConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
    Task,
    from_dict,
)
from othink_jax.errors import UserError
from othink_jax.files import read_json
from othink_jax.presets import PRESETS

Method = Literal["sft", "grpo", "grpo_d"]
METHODS: tuple[Method, ...] = ("sft", "grpo", "grpo_d")
TASKS: tuple[Task, ...] = ("counting", "geometry")
TITLES = {
    "base": "base",
    "sft": "SFT",
    "grpo": "GRPO",
    "grpo_d": "GRPO-D",
}
RESULTS = Path(__file__).parents[1] / "results"
TUNED = RESULTS / "laptop" / "tuning" / "results.json"

_UNUSED = Path("unused")  # a cell has its own directory


class Scale(Protocol):
    """Interface of a scale: its models and their tests."""

    def base(self) -> Cell:
        """The model before training, with all tests."""

    def cell(self, method: Method, task: Task, seed: int, **changes: Any) -> Cell:
        """A model trained by a method on a task, with all tests.

        `changes` override fields of the training settings, or of their groups.
        """

    def test(self, task: Task) -> EvaluateConfig:
        """The greedy test of a task that the paper's tables show."""

    def tests(self) -> tuple[EvaluateConfig, ...]:
        """All tests of a cell."""


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a config with fields replaced, its own or those of its groups."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    made = dict(changes)
    for name, value in own.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name for field in dataclasses.fields(value)}
            inner = {key: made.pop(key) for key in fields & made.keys()}
            if inner:
                own[name] = dataclasses.replace(value, **inner)
    return dataclasses.replace(config, **own | made)


def constant_kl(value: float) -> KLConfig:
    """KL settings of plain GRPO: a constant weight."""
    return KLConfig(kl_schedule="constant", kl_value=value)


def first_kl(kl: KLConfig) -> KLConfig:
    """The weight that GRPO-D begins with (Eq. 3), held constant."""
    return constant_kl((kl.kl_min + kl.kl_max) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """Settings of a tuning trial; the validation split chooses one for each method and task."""

    learning_rate: float
    kl: KLConfig | None = None  # of GRPO and GRPO-D


def read_tuned(path: Path = TUNED) -> dict[tuple[Method, Task], Tuned]:
    """The choices of `experiments.tuning`.

    Raises:
      UserError: the file is absent, or was not written by `experiments.tuning`.
    """
    if not path.is_file():
        raise UserError(f"{path} is absent: run python -m experiments.tuning first")
    record = read_json(path)
    if record.get("name") != "tuning":
        raise UserError(f"{path} was not written by python -m experiments.tuning")
    return {
        (row["method"], row["task"]): Tuned(
            learning_rate=row["learning_rate"],
            kl=None if row["kl"] is None else from_dict(KLConfig, row["kl"]),
        )
        for row in record["chosen"]
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Laptop:
    """The embedded model on the synthetic tasks; every method gets the same updates and samples.

    Counting is few-shot, as in the paper; geometry uses its training split.
    """

    steps: int = 150
    count: int = 2000  # test questions
    model: str = "tiny"
    tuned: Mapping[tuple[Method, Task], Tuned]

    def base(self) -> Cell:
        return Cell(method="base", model=self.model, tests=self.tests())

    def cell(self, method: Method, task: Task, seed: int, **changes: Any) -> Cell:
        train = self._training(method, task, seed)
        return Cell(
            method=method,
            model=self.model,
            train=changed(train, changes),
            tests=self.tests(),
        )

    def _training(self, method: Method, task: Task, seed: int) -> GRPOConfig | SFTConfig:
        """Training settings; `seed` is that of data, order and sampling."""
        tuned = self.tuned[method, task]
        common: dict[str, Any] = {
            "model": self.model,
            "out": _UNUSED,
            "data": DataConfig(
                task=task,
                limit=100 if task == "counting" else None,
                limit_seed=seed,
                template=TINY_TEMPLATE,
                min_pixels=None,
                max_pixels=None,
            ),
            "steps": self.steps,
            "prompts_per_step": 8,
            "seed": seed,
            "optimizer": OptimizerConfig(learning_rate=tuned.learning_rate, lr_schedule="constant"),
            "remat": "none",
            "checkpoint_every": max(50, self.steps // 10),
        }
        if method == "sft":
            return SFTConfig(**common, max_completion_tokens=40)
        assert tuned.kl is not None
        return GRPOConfig(
            **common,
            kl=tuned.kl,
            sampling=SamplingConfig(max_new_tokens=40, top_k=0),
            reward=RewardConfig(grading_workers=1),
        )

    def tests(self) -> tuple[EvaluateConfig, ...]:
        """Both tasks and counting out of distribution, greedily and at temperature 1."""
        sets: tuple[tuple[Task, str], ...] = (
            ("counting", "test"),
            ("counting", "test-ood"),
            ("geometry", "test"),
        )
        return tuple(
            self.test(task, split, temperature)
            for task, split in sets
            for temperature in (0.0, 1.0)
        )

    def test(self, task: Task, split: str = "test", temperature: float = 0.0) -> EvaluateConfig:
        return EvaluateConfig(
            model=self.model,
            out=_UNUSED,
            data=DataConfig(
                task=task,
                split=split,
                template=TINY_TEMPLATE,
                min_pixels=None,
                max_pixels=None,
                max_prompt_tokens=None,
            ),
            count=self.count,
            batch_size=64,
            sampling=SamplingConfig(temperature=temperature, max_new_tokens=40, top_k=0),
            reward=RewardConfig(grading_workers=1),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperSetup:
    """Model, data and devices of the paper's scale; defaults are hub ids and R1-V's file names."""

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    counting_train: str = "leonardPKU/clevr_cogen_a_train"
    geometry_train: str = "leonardPKU/GEOQA_R1V_Train_8K"
    counting_test: str = "superclevr_test200_counting_problems.jsonl"
    geometry_test: str = "geoqa_test_prompts.jsonl"
    images: Path = Path()  # folder that the image paths of both test files are relative to
    # Training on the available devices, see `othink-jax plan`
    strategy: Literal["jit", "pmap", "mesh"] = "mesh"
    micro_batches: int = 1
    train: Literal["all", "text", "lora"] = "all"

    @property
    def size(self) -> Literal["2B", "7B"]:
        """Size of the paper's model that ours is compared with."""
        return "7B" if "7b" in self.model.lower() else "2B"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """Qwen2-VL on the paper's data, with the paper's settings and, where it is silent, R1-V's.

    SFT gets as many updates as GRPO; R1-V's own SFT trains for one epoch.
    """

    setup: PaperSetup = PaperSetup()
    steps: int | None = None  # on both tasks; if not given, the two below
    # The paper does not state the epochs over its 100 samples; R1-V reports 100 steps.
    counting_steps: int = 100
    geometry_epochs: float = 2.0

    def base(self) -> Cell:
        return Cell(method="base", model=self.setup.model, tests=self.tests())

    def cell(self, method: Method, task: Task, seed: int, **changes: Any) -> Cell:
        counting = task == "counting"
        common: dict[str, Any] = {
            "model": self.setup.model,
            "out": _UNUSED,
            "data": DataConfig(
                dataset=self.setup.counting_train if counting else self.setup.geometry_train,
                limit=FEW_SHOT[self.setup.size] if counting else None,
                limit_seed=seed,
            ),
            "seed": seed,
            "dtype": "bfloat16",
            "train": self.setup.train,
            "micro_batches": self.setup.micro_batches,
            "parallel": ParallelConfig(strategy=self.setup.strategy),
            "epochs": self.geometry_epochs,
            "steps": self.steps or (self.counting_steps if counting else None),
        }
        train: GRPOConfig | SFTConfig
        if method == "sft":
            train = SFTConfig(**common)
        else:
            train = GRPOConfig(
                **common, kl=PAPER_KL[method, task], reward=RewardConfig(grade_as=task)
            )
        return Cell(
            method=method,
            model=self.setup.model,
            train=changed(train, changes),
            tests=self.tests(),
        )

    def tests(self) -> tuple[EvaluateConfig, ...]:
        """The greedy tests of both tasks."""
        return tuple(self.test(task) for task in TASKS)

    def test(self, task: Task) -> EvaluateConfig:
        counting = task == "counting"
        return EvaluateConfig(
            model=self.setup.model,
            out=_UNUSED,
            data=DataConfig(
                dataset=self.setup.counting_test if counting else self.setup.geometry_test,
                images=self.setup.images,
                split="test",
                # R1-V's prompts for the two differ a little.
                template=PRESETS["evaluate"]["superclevr" if counting else "geoqa"]["--template"],
                min_pixels=None,
                max_pixels=None,
                max_prompt_tokens=None,
            ),
            sampling=SamplingConfig(temperature=0.0, max_new_tokens=256 if counting else 1024),
            reward=RewardConfig(grade_as=task),
            dtype="bfloat16",
        )


FEW_SHOT = {"2B": 100, "7B": 120}  # training samples of the counting task in the paper
# The paper's best constant KL weights, and its bounds of GRPO-D.
PAPER_KL: dict[tuple[Method, Task], KLConfig] = {
    ("grpo", "counting"): constant_kl(0.04),
    ("grpo", "geometry"): constant_kl(0.01),
    ("grpo_d", "counting"): KLConfig(kl_min=0.04, kl_max=0.10),
    ("grpo_d", "geometry"): KLConfig(kl_min=0.0, kl_max=0.02),
}
