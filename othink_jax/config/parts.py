"""Groups of settings of a run: sampling, optimizer, KL, loss, devices, processes."""

import dataclasses
import math
from typing import Literal

from othink_jax.config.checks import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    max_new_tokens: int = 512  # length limit of a completion, tokens
    temperature: float = 1.0  # divides the logits; 0 decodes greedily
    top_k: int = 50  # keep the k likeliest tokens; 0 keeps all. 50 is R1-V's unstated default
    top_p: float = 1.0  # keep the smallest set of tokens whose probability reaches top_p
    # Divides the logits of tokens that occur in the prompt or the completion (multiplies negative
    # ones); 1: no penalty (CTRL, arXiv 1909.05858)
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0  # minimum length of a completion, tokens

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        require(self.temperature >= 0, f"temperature must be >= 0, got {self.temperature}")
        require(self.top_k >= 0, f"top_k must be >= 0 (0 keeps all), got {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        require(
            0 < self.repetition_penalty < math.inf,
            f"repetition_penalty must be > 0 and finite, got {self.repetition_penalty}",
        )
        require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens must be >= 0 and at most max_new_tokens, got {self.min_new_tokens}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW after global-norm clipping."""

    learning_rate: float = 1e-6  # peak
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"  # decay to 0 over the run
    warmup_fraction: float = 0.0  # share of the updates with linear warmup from 0
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled, times the learning rate, on every parameter
    max_grad_norm: float = 1.0  # clip of the global gradient norm
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # dtype of the first moment

    def __post_init__(self) -> None:
        require(
            0 < self.learning_rate < math.inf,
            f"learning_rate must be > 0 and finite, got {self.learning_rate}",
        )
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1)")
        require(self.eps > 0, f"eps must be > 0, got {self.eps}")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        require(
            0 <= self.warmup_fraction < 1,
            f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}",
        )
        require(self.max_grad_norm > 0, f"max_grad_norm must be > 0, got {self.max_grad_norm}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (arXiv 2106.09685) of all linear layers of the text tower's blocks."""

    lora_rank: int = 16  # rank of the adapters
    lora_alpha: float = 32.0  # the adapters' output is scaled by lora_alpha / lora_rank

    def __post_init__(self) -> None:
        require(self.lora_rank >= 1, f"lora_rank must be >= 1, got {self.lora_rank}")
        require(
            0 < self.lora_alpha < math.inf,
            f"lora_alpha must be > 0 and finite, got {self.lora_alpha}",
        )

    @property
    def scale(self) -> float:
        """Factor that the product of an adapter's two matrices is scaled by."""
        return self.lora_alpha / self.lora_rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The KL coefficient. `dynamic` is GRPO-D (Eq. 3), `constant` is plain GRPO.

    Further schedules, and controllers that react to the measured KL, are listed by `othink-jax
    recipes`.
    """

    kl_schedule: str = "dynamic"  # name in rl.KL_CONTROLS
    kl_min: float = 0.04  # lowest value (dynamic); the paper: 0.04 for counting, 0.0 for geometry
    # highest value (dynamic); the paper: 0.10 for counting, 0.02 for geometry
    kl_max: float = 0.10
    exploration_fraction: float = 0.3  # w / t: share of the updates spent falling to `kl_min`
    # the value (constant), or the initial one (controllers); the paper's best: 0.04 for counting,
    # 0.01 for geometry
    kl_value: float = 0.04
    kl_target: float | None = None  # target of the measured KL (controllers), nats per token
    # Further parameters of the schedule or controller, such as `gain 0.1`; defaults if not given
    kl_args: dict[str, float] = dataclasses.field(default_factory=dict)
    # Number of updates between moves of the reference to the policy (TR-DPO, arXiv 2404.09656); if
    # not given, it stays the initial model
    reference_every: int | None = None
    reference_mix: float = 1.0  # share of the policy in such a move; 1 copies it

    def __post_init__(self) -> None:
        require(
            0 <= self.kl_min <= self.kl_max,
            f"kl_min must be >= 0 and at most kl_max, got min {self.kl_min} and max {self.kl_max}",
        )
        require(self.kl_max < math.inf, "kl_max must be finite")
        require(
            0 < self.exploration_fraction < 1,
            f"exploration_fraction must be in (0, 1), got {self.exploration_fraction}",
        )
        require(
            0 <= self.kl_value < math.inf, f"kl_value must be >= 0 and finite, got {self.kl_value}"
        )
        require(
            self.kl_target is None or 0 < self.kl_target < math.inf,
            f"kl_target must be > 0 and finite, got {self.kl_target}",
        )
        require(
            self.reference_every is None or self.reference_every >= 1,
            f"reference_every must be >= 1, got {self.reference_every}",
        )
        require(
            0 < self.reference_mix <= 1,
            f"reference_mix must be in (0, 1], got {self.reference_mix}",
        )
        require(
            self.reference_every is not None or self.reference_mix == 1,
            "--reference-mix needs --reference-every",
        )
        require(
            self.reference_every is None or not self.is_zero,
            "--reference-every has no use where the KL weight is zero throughout",
        )

    @property
    def is_zero(self) -> bool:
        """Whether the coefficient is zero throughout, so that no reference is needed."""
        return self.kl_schedule == "constant" and self.kl_value == 0

    @property
    def reference_stays(self) -> bool:
        """Whether the reference stays the initial model; else it moves, or there is none."""
        return not self.is_zero and self.reference_every is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of Eq. 4 and the advantages of Eq. 2, or others of their family.

    Names are those of the tables in `othink_jax.rl`, which `othink-jax recipes` lists.
    """

    objective: str = "ppo"  # name in rl.OBJECTIVES
    # The ratio is clipped to [1 - clip_low, 1 + clip_high]; the objective's defaults if not given
    # (ppo: 0.2 and 0.2)
    clip_low: float | None = None
    clip_high: float | None = None
    # Further parameters of the objective, such as `c 3`; its defaults if not given
    objective_args: dict[str, float] = dataclasses.field(default_factory=dict)
    advantage: str = "group"  # name in rl.ADVANTAGES
    advantage_ddof: int = 1  # the group's standard deviation divides by G minus this; R1-V: 1
    advantage_eps: float = 1e-4  # added to the group's standard deviation; R1-V: 1e-4
    # Further parameters of the advantages, such as `k 4`; their defaults if not given
    advantage_args: dict[str, float] = dataclasses.field(default_factory=dict)
    # Name in rl.KL_ESTIMATORS (from the sampled token) or in rl.KL_DIVERGENCES (over the whole
    # vocabulary); Eq. 5 has k3
    kl_estimator: str = "k3"
    kl_gradient: str = "own"  # gradient of the KL term: name in rl.KL_GRADIENTS
    # Whether the KL is a term of the loss, or lowers the reward of each token by the KL of this and
    # all later tokens
    kl_placement: Literal["loss", "reward"] = "loss"
    reduction: str = "sequence"  # name in rl.REDUCTIONS; Eq. 4 has sequence
    # Off-policy correction of rollouts that another policy or engine sampled: name in
    # rl.CORRECTIONS
    correction: str | None = None
    # Further parameters of the correction, such as `cap 2`; its defaults if not given
    correction_args: dict[str, float] = dataclasses.field(default_factory=dict)
    # Train only on this share of the tokens, those with the highest entropy (arXiv 2506.01939)
    top_entropy: float | None = None
    # Leave completions truncated by the length limit out of the loss (DAPO's overlong filtering)
    mask_truncated: bool = False
    # Leave groups whose rewards are all equal out of the loss: only their KL has a gradient
    drop_no_signal: bool = False
    logp_chunk: int = 1024  # number of tokens whose logits exist at one time

    def __post_init__(self) -> None:
        require(
            self.clip_low is None or 0 < self.clip_low < 1,
            f"clip_low must be in (0, 1), got {self.clip_low}",
        )
        require(
            self.clip_high is None or 0 < self.clip_high < math.inf,
            f"clip_high must be > 0 and finite, got {self.clip_high}",
        )
        require(
            self.top_entropy is None or 0 < self.top_entropy <= 1,
            f"top_entropy must be in (0, 1], got {self.top_entropy}",
        )
        require(
            self.correction is not None or not self.correction_args,
            "--correction-args needs --correction",
        )
        require(
            self.advantage_ddof in (0, 1),
            f"advantage_ddof must be 0 or 1, got {self.advantage_ddof}",
        )
        require(self.advantage_eps > 0, f"advantage_eps must be > 0, got {self.advantage_eps}")
        require(self.logp_chunk >= 1, f"logp_chunk must be >= 1, got {self.logp_chunk}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one update is spread over devices."""

    # jit: one device; pmap: a replica on each device, prompts sharded; mesh: parameters and moments
    # sharded as well
    strategy: Literal["jit", "pmap", "mesh"] = "jit"
    devices: int | None = None  # number of devices (pmap, mesh); all visible ones if not given
    tensor: int = 1  # tensor-parallel devices (mesh); prompts are sharded over the other mesh axis

    def __post_init__(self) -> None:
        require(self.devices is None or self.devices >= 1, "devices must be >= 1")
        require(self.tensor >= 1, f"tensor must be >= 1, got {self.tensor}")
        require(
            self.tensor == 1 or self.strategy == "mesh",
            f"--tensor {self.tensor} needs --strategy mesh",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """How the processes of a run find each other; a run of one process needs none of this.

    This is no part of a run's settings: a run may resume with another number of processes.
    """

    distributed: bool = False  # several processes; SLURM, a TPU pod or Open MPI tells JAX which
    coordinator: str | None = None  # HOST:PORT of process 0, if nothing tells JAX
    num_processes: int | None = None  # number of processes, with a coordinator
    process_id: int | None = None  # index of this process, from 0, with a coordinator
    connect_timeout_s: int = 300  # seconds that a process waits for the others at the start

    def __post_init__(self) -> None:
        found = (self.coordinator, self.num_processes, self.process_id)
        given = [value is not None for value in found]
        require(
            all(given) or not any(given),
            "--coordinator, --num-processes and --process-id go together",
        )
        require(self.connect_timeout_s > 0, "--connect-timeout-s must be at least 1")

    @property
    def several(self) -> bool:
        """Whether this process is one of several."""
        return self.distributed or self.coordinator is not None
