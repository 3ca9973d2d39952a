"""The settings of a run: frozen, keyword-only, validated dataclasses.

The defaults are the paper's at its own scale: what OThink-MR1 states (arXiv 2503.16081), and R1-V's
settings where it is silent. `presets` holds the settings that suit the embedded model instead.
Every field carries its unit and meaning; the command line is made from these classes.
"""

from othink_jax.config.compute import (
    DEFAULT_COMPUTE,
    Attention,
    ComputeConfig,
    Remat,
    ScanLayers,
)
from othink_jax.config.data import (
    TINY_TEMPLATE,
    TRAIN_TEMPLATE,
    DataConfig,
    Difficulty,
)
from othink_jax.config.entropy import EntropyConfig
from othink_jax.config.labels import LABELS
from othink_jax.config.options import RewardOption
from othink_jax.config.parts import (
    KLConfig,
    LoRAConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    ProcessConfig,
    SamplingConfig,
)
from othink_jax.config.record import (
    RUN_BEGINNING,
    RUN_BEST,
    RUN_CHECKPOINTS,
    RUN_LOCK,
    RUN_REFERENCE,
    RunRecord,
    asked_settings,
    evaluation_settings,
    from_dict,
    is_run,
    read_run,
    run_and_checkpoint,
    to_dict,
)
from othink_jax.config.resume import ResumeConfig, changed_settings
from othink_jax.config.reward import RewardConfig, check_rewards, name_of
from othink_jax.config.runs import EvaluateConfig, GRPOConfig, SFTConfig, TrainingConfig
from othink_jax.config.validation import ValidationConfig
from othink_jax.tasks import Grader, Task

__all__ = [
    "DEFAULT_COMPUTE",
    "LABELS",
    "RUN_BEGINNING",
    "RUN_BEST",
    "RUN_CHECKPOINTS",
    "RUN_LOCK",
    "RUN_REFERENCE",
    "TINY_TEMPLATE",
    "TRAIN_TEMPLATE",
    "Attention",
    "ComputeConfig",
    "DataConfig",
    "Difficulty",
    "EntropyConfig",
    "EvaluateConfig",
    "GRPOConfig",
    "Grader",
    "KLConfig",
    "LoRAConfig",
    "LossConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProcessConfig",
    "Remat",
    "ResumeConfig",
    "RewardConfig",
    "RewardOption",
    "RunRecord",
    "SFTConfig",
    "SamplingConfig",
    "ScanLayers",
    "Task",
    "TrainingConfig",
    "ValidationConfig",
    "asked_settings",
    "changed_settings",
    "check_rewards",
    "evaluation_settings",
    "from_dict",
    "is_run",
    "name_of",
    "read_run",
    "run_and_checkpoint",
    "to_dict",
]
