"""How to try an idea: other settings by name, or a schedule and a loss of your own.

Claim: none; it shows what a researcher writes.
Command: python -m experiments.ablation_example [--steps 30]
Cost: five minutes for all nine on two CPU cores.
Shows: the KL weight, and KL and reward in the last tenth of the training, of variants of GRPO on
    the embedded model, all in the loop of `othink-jax grpo`.
"""

import functools
from pathlib import Path
from statistics import fmean
from typing import Any

import optax
import tyro
from jaxtyping import Array, Bool, Float

from experiments.lab.experiment import as_command
from othink_jax import compilation_cache, config, rl
from othink_jax.files import read_json_lines
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.losses import LossFn
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.runs import start_run


def reinforce(
    logp: Float[Array, "*n T"],
    old_logp: Float[Array, "*n T"],
    advantages: Float[Array, "*n T"],
    mask: Bool[Array, "*n T"],
) -> Float[Array, "*n T"]:
    """-A log pi: no ratio, and so no clip."""
    del old_logp, mask
    return -advantages * logp


class Own(GRPOTrainer):
    """GRPO with a custom objective and a custom schedule of the KL weight."""

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        halving = optax.exponential_decay(0.1, transition_steps=updates / 4, decay_rate=0.5)
        return make_optimizer(self.config.optimizer, rl.carry_kl_coef(halving), updates)

    def loss(self) -> LossFn:
        return functools.partial(rl.policy_loss, objective=reinforce)


VARIANTS: dict[str, dict[str, Any]] = {  # by name: the settings that differ from the paper's
    "paper": {},
    "constant": {"kl": config.KLConfig(kl_schedule="constant", kl_value=0.07)},
    "linear": {"kl": config.KLConfig(kl_schedule="linear", kl_args={"start": 0.0, "end": 0.1})},
    "dual": {"kl": config.KLConfig(kl_schedule="dual", kl_target=0.05)},
    "k2": {"loss": config.LossConfig(kl_estimator="k2")},
    "full": {"loss": config.LossConfig(kl_estimator="full")},
    "per_token": {"loss": config.LossConfig(reduction="token")},
    "rloo": {"loss": config.LossConfig(advantage="rloo")},
    "own": {},
}


def settings(out: Path, steps: int, **changes: Any) -> config.GRPOConfig:
    """Settings of a run of the embedded model; variants differ only in `changes`."""
    given: dict[str, Any] = {
        "model": "tiny",
        "data": config.DataConfig(
            task="counting", template=config.TINY_TEMPLATE, min_pixels=None, max_pixels=None
        ),
        "prompts_per_step": 8,
        "sampling": config.SamplingConfig(max_new_tokens=40, top_k=0),
        "optimizer": config.OptimizerConfig(learning_rate=1e-4, lr_schedule="constant"),
        "remat": "none",
    }
    return config.GRPOConfig(out=out, steps=steps, **given, **changes)


def main(steps: int = 30, out: Path = Path("runs/ablation")) -> None:
    compilation_cache.enable()
    print(f"{'variant':<12}{'beta, first and last':>22}{'KL':>8}{'reward':>8}")
    for name, changes in VARIANTS.items():
        trainer = Own if name == "own" else GRPOTrainer
        run = start_run(trainer, settings(out / name, steps, **changes))
        rows = list(read_json_lines(run / "metrics.jsonl").values())
        betas = f"{rows[0]['beta']:.3f} {rows[-1]['beta']:.3f}"
        end = rows[-max(1, len(rows) // 10) :]
        kl, reward = (fmean(row[column] for row in end) for column in ("kl", "reward"))
        print(f"{name:<12}{betas:>22}{kl:>8.3f}{reward:>8.2f}")


if __name__ == "__main__":
    as_command("ablation", lambda: tyro.cli(main, description=__doc__))
