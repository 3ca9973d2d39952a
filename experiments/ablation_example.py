"""How to try an idea: another KL schedule, another loss, with the loop of `othink-jax grpo`.

Claim: none; it shows what a researcher writes.
Command: python -m experiments.ablation_example [--steps 30]
Cost: two minutes for all nine on two CPU cores.
Shows: the KL weight, and KL and reward in the last tenth of the training, of variants of GRPO on
    the embedded model: another schedule of the KL weight, one that reacts, another estimator of the
    KL, another reduction of the loss.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import optax
import tyro

from experiments.lab.experiment import as_command
from othink_jax import compilation_cache, rl
from othink_jax.config import TINY_TEMPLATE, DataConfig, GRPOConfig, OptimizerConfig, SamplingConfig
from othink_jax.files import read_json_lines
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.losses import LossFn
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.runs import begin


def with_kl(control: Callable[[int], optax.GradientTransformation]) -> type[GRPOTrainer]:
    """GRPO with another control of the KL weight, which is made for a number of updates."""

    class Controlled(GRPOTrainer):
        def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
            return make_optimizer(self.config.optimizer, control(updates), updates)

    return Controlled


def scheduled(schedule: Callable[[int], optax.Schedule]) -> type[GRPOTrainer]:
    """GRPO with a KL weight along a schedule, which is made for a number of updates."""
    return with_kl(lambda updates: rl.carry_kl_coef(schedule(updates)))


def with_loss(**changes: Any) -> type[GRPOTrainer]:
    """GRPO with other arguments of `rl.policy_loss`; any function like it will do."""

    class Changed(GRPOTrainer):
        def loss(self) -> LossFn:
            return functools.partial(rl.policy_loss, **changes)

    return Changed


VARIANTS: dict[str, type[GRPOTrainer]] = {
    "paper": GRPOTrainer,  # the weight of Eq. 3, the estimator k3, a mean over each sequence
    "constant": scheduled(lambda updates: rl.constant_kl(0.07)),
    "linear": scheduled(lambda updates: optax.linear_schedule(0.0, 0.1, updates)),
    "cosine": scheduled(lambda updates: optax.cosine_decay_schedule(0.1, updates)),
    "reacting": with_kl(lambda _: rl.adapt_kl_coef(0.07, target=0.05)),
    "k1": with_loss(kl_term=rl.own_gradient(rl.kl_k1)),
    "k2": with_loss(kl_term=rl.own_gradient(rl.kl_k2)),
    "per_token": with_loss(reduce=rl.mean_over_tokens),
    "constant_length": with_loss(reduce=functools.partial(rl.mean_over_length, length=40)),
}


def settings(out: Path, steps: int) -> GRPOConfig:
    """Of a run of the embedded model, the same for all variants."""
    return GRPOConfig(
        model="tiny",
        out=out,
        data=DataConfig(task="counting", template=TINY_TEMPLATE, min_pixels=None, max_pixels=None),
        steps=steps,
        prompts_per_step=8,
        sampling=SamplingConfig(max_new_tokens=40, top_k=0),
        optimizer=OptimizerConfig(learning_rate=1e-4, lr_schedule="constant"),
        remat="none",
    )


def main(steps: int = 30, out: Path = Path("runs/ablation")) -> None:
    compilation_cache.enable()
    print(f"{'variant':<16}{'beta, first and last':>22}{'KL':>8}{'reward':>8}")
    for name, variant in VARIANTS.items():
        run = begin(variant, settings(out / name, steps))
        rows = list(read_json_lines(run / "metrics.jsonl").values())
        betas = f"{rows[0]['beta']:.3f} {rows[-1]['beta']:.3f}"
        end = rows[-max(1, len(rows) // 10) :]
        kl, reward = (fmean(row[column] for row in end) for column in ("kl", "reward"))
        print(f"{name:<16}{betas:>22}{kl:>8.3f}{reward:>8.2f}")


if __name__ == "__main__":
    as_command("ablation", lambda: tyro.cli(main, description=__doc__))
