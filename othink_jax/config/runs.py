"""Settings of whole runs: training by each method, and evaluation."""

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
    """Settings that all training methods share."""

    kind: ClassVar[str]  # kind of run: the command that makes it, also written to config.json

    # Hugging Face directory or hub id, Orbax checkpoint, run or one of its checkpoints, or
    # `tiny`, the embedded model
    model: str
    out: Path  # run directory, on a disk or `gs://BUCKET/...`
    data: DataConfig
    steps: int | None = None  # number of steps; if not given, `epochs` over the data
    epochs: float  # passes over a data set
    prompts_per_step: int = 16  # B, over all devices; R1-V: 8 devices x 1 x 2 accumulated
    seed: int = 42  # seed of the order of the data and of sampling
    # Dtype of the computation and of frozen parameters. Trained parameters are always float32: in
    # bfloat16, an update of 1e-6 would be lost in the rounding of nearly every weight.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Trained parameters: the whole model, its text tower, or low-rank adapters of the text tower.
    # Frozen parameters are kept once, in `dtype`.
    train: Literal["all", "text", "lora"] = "all"
    micro_batches: int = 1  # micro-batches per device and update (gradient accumulation)
    # Values that the backward pass recomputes instead of keeping them in memory: none, all but
    # products with weights, or those of whole layers
    remat: Remat = "layer"
    # Whether the layers of a tower are scanned over, which compiles once for all of them, or
    # unrolled; `auto` scans a tower of more than eight layers
    scan_layers: ScanLayers = "auto"
    # Attention kernel. `auto` takes what suits the device: splash on a TPU, cuDNN on a GPU,
    # chunked on a CPU, and the reference, which materialises all scores, if there are few
    attention: Attention = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()  # AdamW after global-norm clipping
    lora: LoRAConfig = LoRAConfig()  # the adapters, with `train` = lora
    parallel: ParallelConfig = ParallelConfig()  # how an update is spread over devices
    validation: ValidationConfig = ValidationConfig()  # validation by greedy decoding between steps
    checkpoint_every: int = 50  # steps between checkpoints; the last step is always saved
    keep_checkpoints: int = 2  # number of latest checkpoints to keep
    # Number of consecutive steps whose loss, gradient or update is not finite that are skipped and
    # counted; one more ends the run
    skip_nonfinite: int = 0
    wandb: bool = False  # also log to Weights & Biases (extra `wandb`)
    notes: str = ""  # for the report, the model card and the trackers; may have several lines
    tags: tuple[str, ...] = ()  # tags for the same places: --tags FIRST SECOND

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

    def with_absolute_paths(self, directory: Path) -> Self:
        """This config, with relative input paths that exist in `directory` made absolute."""
        return dataclasses.replace(self, data=self.data.with_absolute_paths(directory))

    @property
    def criterion(self) -> str:
        """The validation metric that decides which validation is better."""
        return "validation_accuracy"

    def compute(self, platform: str) -> ComputeConfig:
        """Computation settings of the model on devices of this platform; without adapters."""
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
    group_size: int = 8  # completions per prompt (G)
    # Number of times per step that prompts whose completions all have one reward are replaced
    # (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2); each time is a whole rollout
    redraw: int = 0
    # Number of tokens before the length limit over which the reward of a completion falls by one
    # (DAPO's soft overlong punishment, Eq. 13); no penalty if not given
    overlong_cache: int | None = None
    inner_updates: int = 1  # updates per rollout; 1 is strictly on-policy
    sampling: SamplingConfig = SamplingConfig()  # how completions are drawn
    loss: LossConfig = LossConfig()  # the surrogate of Eq. 4 and the advantages of Eq. 2
    kl: KLConfig = KLConfig()  # the KL coefficient (Eq. 3)
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
        """The accuracy if the reward is that of Eq. 1; else the reward."""
        return "validation_reward" if self.reward.functions else super().criterion

    def with_absolute_paths(self, directory: Path) -> Self:
        """See `TrainingConfig`."""
        return dataclasses.replace(
            super().with_absolute_paths(directory),
            reward=self.reward.with_absolute_paths(directory),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """One run of supervised fine-tuning on the data's own solutions. The defaults are R1-V's."""

    kind: ClassVar[str] = "sft"

    epochs: float = 1.0  # passes over a data set
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-5, lr_schedule="cosine", warmup_fraction=0.1
    )  # AdamW after global-norm clipping
    # A longer solution (its end token included) is never truncated: it is skipped and counted. R1-V
    # allows 4096 tokens including the prompt, of which `max_prompt_tokens` takes 1024
    max_completion_tokens: int = 3072
    logp_chunk: int = 1024  # number of tokens whose logits exist at one time

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

    # Hugging Face directory or hub id, Orbax checkpoint, run or one of its checkpoints, or
    # `tiny`, the embedded model
    model: str
    out: Path  # directory for predictions.jsonl and result.json, or `gs://BUCKET/...`
    data: DataConfig
    count: int = 500  # examples of a synthetic task; a data set is evaluated whole unless limited
    # Completions per question, at a temperature above 0, for pass@k and majority vote
    samples: int = 1
    # Prompts decoded together, each with all its samples; fewer if images or texts are large. With
    # a temperature above 0, the samples depend on it
    batch_size: int = 16
    # Column of the data set; reports the accuracy for each of its values; may be repeated
    by: ColumnOption = ()
    # Also write results_lm_eval.json, for tools that read the format of lm-evaluation-harness
    lm_eval_json: bool = False
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_new_tokens=1024)
    reward: RewardConfig = RewardConfig()
    seed: int = 0  # seed of sampling, if temperature > 0
    stage: Literal["before", "after"] | None = None  # relative to the training, for a report
    dtype: Literal["float32", "bfloat16"] = "float32"  # dtype of parameters and computation
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
