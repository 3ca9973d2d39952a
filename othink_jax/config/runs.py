"""The settings of whole runs: training by each method, and evaluation."""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal, Self

from othink_jax.config.checks import require, require_seed
from othink_jax.config.compute import Attention, ComputeConfig, Remat, ScanLayers
from othink_jax.config.data import DataConfig
from othink_jax.config.entropy import EntropyConfig
from othink_jax.config.labels import checked_notes, checked_tags
from othink_jax.config.options import ColumnOption
from othink_jax.config.parts import (
    KLConfig,
    LoRAConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
)
from othink_jax.config.reward import RewardConfig
from othink_jax.config.validation import ValidationConfig
from othink_jax.files import as_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all methods of training have in common."""

    kind: ClassVar[str]  # of run: the command that makes it, and what its config.json says

    # Hugging Face directory or hub id, Orbax checkpoint, run or one of its checkpoints, or `tiny`
    model: str
    out: Path  # run directory, of a disk or `gs://BUCKET/...`
    data: DataConfig
    steps: int | None = None  # updates; if not given, `epochs` over the data
    epochs: float  # passes over a data set
    prompts_per_step: int = 16  # B, over all devices; R1-V: 8 devices x 1 x 2 accumulated
    seed: int = 42  # of the order of the data and of sampling
    # Of the computation and of what is not trained. What is trained is float32 all the same: in
    # bfloat16, an update of 1e-6 would be lost in the rounding of nearly every weight.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # What of the model is trained: all of it, its text tower, or low-rank adapters of that. What is
    # not is kept once, in `dtype`.
    train: Literal["all", "text", "lora"] = "all"
    micro_batches: int = 1  # pieces of a device's prompts, one at a time in memory, of one update
    # What an update's backward pass computes again instead of keeping it in memory: nothing, all
    # but products with weights, or whole layers
    remat: Remat = "layer"
    # Whether the layers of a tower are scanned over, which compiles once for all of them, or
    # unrolled; `auto` scans where there are more than eight
    scan_layers: ScanLayers = "auto"
    # The kernel of attention. `auto` takes what suits the device: splash on a TPU, cuDNN on a GPU,
    # chunked on a CPU, and the reference, which holds all scores, where they are few
    attention: Attention = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()  # AdamW behind a global-norm clip
    lora: LoRAConfig = LoRAConfig()  # the adapters, with `train` = lora
    parallel: ParallelConfig = ParallelConfig()  # how an update is spread over devices
    validation: ValidationConfig = ValidationConfig()  # greedy answers between steps
    checkpoint_every: int = 50  # steps between checkpoints; the last step is always saved
    keep_checkpoints: int = 2  # how many of the last ones stay
    # A step whose loss, gradient or update is not finite ends the run; or changes nothing and is
    # counted, up to so many in a row
    skip_nonfinite: int = 0
    wandb: bool = False  # also log to Weights & Biases (extra `wandb`)
    notes: str = ""  # for the report, the model card and the trackers; may have several lines
    tags: tuple[str, ...] = ()  # words for the same places: --tags FIRST SECOND

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", as_path(self.out))
        object.__setattr__(self, "notes", checked_notes(self.notes))
        object.__setattr__(self, "tags", checked_tags(self.tags))
        self._require_positive("prompts_per_step", "micro_batches", "checkpoint_every")
        require(self.steps is None or self.steps >= 1, f"steps must be >= 1, got {self.steps}")
        require(0 < self.epochs < math.inf, f"epochs must be > 0, got {self.epochs}")
        require_seed("seed", self.seed)
        if self.validation.used:
            self.validation.data(self.data)
        require(self.keep_checkpoints >= 1, "keep_checkpoints must be >= 1")
        require(self.skip_nonfinite >= 0, f"skip_nonfinite must be >= 0, got {self.skip_nonfinite}")

    def located(self, directory: Path) -> Self:
        """The same with relative paths of what is read that exist from there made absolute."""
        return dataclasses.replace(self, data=self.data.located(directory))

    @property
    def criterion(self) -> str:
        """The metric of a validation by which one is better than another."""
        return "validation_accuracy"

    def compute(self, platform: str) -> ComputeConfig:
        """How the model is computed, on devices of this platform; without adapters."""
        return ComputeConfig(
            dtype=self.dtype,
            param_dtype=self.dtype if self.train == "lora" else "float32",
            scan_layers=self.scan_layers,
            remat=self.remat,
            attention=self.attention,
            platform=platform,
        )

    def _require_positive(self, *names: str) -> None:
        for name in names:
            require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainingConfig):
    """One GRPO run. The defaults are R1-V's."""

    kind: ClassVar[str] = "grpo"

    epochs: float = 2.0  # passes over a data set
    group_size: int = 8  # G completions a prompt
    # Times in a step that other prompts are drawn for those whose completions all have one reward
    # (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2); each is a whole rollout
    redraw: int = 0
    # Tokens before the length limit over which the reward of a completion falls by one (DAPO's soft
    # overlong punishment, Eq. 13); none if not given
    overlong_cache: int | None = None
    inner_updates: int = 1  # updates made from one rollout; 1 is strictly on-policy
    sampling: SamplingConfig = SamplingConfig()  # how completions are drawn
    loss: LossConfig = LossConfig()  # the surrogate of Eq. 4 and the advantages of Eq. 2
    kl: KLConfig = KLConfig()  # the weight of the KL term (Eq. 3)
    entropy: EntropyConfig = EntropyConfig()  # the entropy bonus
    reward: RewardConfig = RewardConfig()  # what a completion is worth
    sample_every: int = 10  # steps between stored sample completions

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("inner_updates", "sample_every")
        require(self.redraw >= 0, f"redraw must be >= 0, got {self.redraw}")
        require(
            self.group_size >= 2,
            f"group_size must be >= 2 (advantages compare), got {self.group_size}",
        )
        require(
            self.sampling.temperature > 0,
            "sampling.temperature must be > 0: greedy completions of one prompt are all the same",
        )
        longest, cache = self.sampling.max_new_tokens, self.overlong_cache
        require(
            cache is None or 1 <= cache <= longest,
            f"--overlong-cache {cache} must be at least 1, and at most --max-new-tokens {longest}",
        )
        self.reward.task_of(self.data)

    @property
    def criterion(self) -> str:
        """The accuracy where the reward is that of Eq. 1; else the reward."""
        return "validation_reward" if self.reward.functions else super().criterion

    def located(self, directory: Path) -> Self:
        """See `TrainingConfig`."""
        return dataclasses.replace(
            super().located(directory), reward=self.reward.located(directory)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """One run of supervised fine-tuning on the data's own solutions. The defaults are R1-V's."""

    kind: ClassVar[str] = "sft"

    epochs: float = 1.0  # passes over a data set
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-5, lr_schedule="cosine", warmup_fraction=0.1
    )  # AdamW behind a global-norm clip
    # A longer solution, its end token counted, is never cut: it is skipped and counted. R1-V allows
    # 4096 tokens together with the prompt, of which `max_prompt_tokens` takes 1024
    max_completion_tokens: int = 3072
    logp_chunk: int = 1024  # tokens whose logits exist at one time

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("max_completion_tokens", "logp_chunk")
        require(
            self.data.answer_pattern is None,
            "--answer-pattern says how an answer is found, and SFT must know how it is written:"
            " give --answer-tag",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation over a test set: by greedy decoding, or by sampling at a temperature."""

    # Hugging Face directory or hub id, Orbax checkpoint, run or one of its checkpoints, or `tiny`
    model: str
    out: Path  # directory for predictions.jsonl and result.json, or `gs://BUCKET/...`
    data: DataConfig
    count: int = 500  # examples of a synthetic task; a data set is evaluated whole unless limited
    # Completions drawn for each question, at a temperature above 0: pass@k and majority vote
    samples: int = 1
    # Prompts decoded together, each with all its samples; fewer of those whose images or texts are
    # large. With a temperature, what is drawn depends on it
    batch_size: int = 16
    # A column of the data set, for the accuracy by its values; may be given several times
    by: ColumnOption = ()
    # Also write results_lm_eval.json, as tools read it that know lm-evaluation-harness
    lm_eval_json: bool = False
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=1024)
    reward: RewardConfig = RewardConfig()
    seed: int = 0  # of sampling, where temperature > 0
    stage: Literal["before", "after"] | None = None  # training it belongs to, for a run's report
    dtype: Literal["float32", "bfloat16"] = "float32"  # of parameters and computation
    parallel: ParallelConfig = ParallelConfig()  # how a batch is spread over devices

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", as_path(self.out))
        object.__setattr__(self, "by", tuple(self.by))
        require(self.count >= 1, f"count must be >= 1, got {self.count}")
        require(self.samples >= 1, f"samples must be >= 1, got {self.samples}")
        require(
            self.samples == 1 or self.sampling.temperature > 0,
            f"--samples {self.samples} needs a --temperature above 0: greedy completions of one"
            " question are all the same",
        )
        require(self.batch_size >= 1, f"batch_size must be >= 1, got {self.batch_size}")
        require_seed("seed", self.seed)
        self.reward.task_of(self.data)
