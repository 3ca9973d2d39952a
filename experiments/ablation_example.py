"""How to try an idea: another KL schedule, another loss, with the loop of `othink-jax grpo`.

Claim: none; it shows what a researcher writes.
Command: python -m experiments.ablation_example [--steps 30]
Cost: about a minute a variant on two CPU cores.
Shows: the KL weight, and KL and reward in the last tenth of the training, of variants of GRPO on
    the embedded model. Each is a few lines: a schedule (a function of the update's number), a KL
    weight that reacts, a KL estimator, a reduction of the loss.
"""

import functools
import json
from pathlib import Path
from statistics import fmean

import optax
import tyro

from experiments.lab.experiment import as_command
from othink_jax import compilation_cache, rl
from othink_jax.config import TINY_TEMPLATE, DataConfig, GRPOConfig, OptimizerConfig, SamplingConfig
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.loop import begin
from othink_jax.training.optimizer import make_optimizer


class Cosine(GRPOTrainer):
    """A KL weight along half a cosine: any schedule of optax will do."""

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        schedule = optax.cosine_decay_schedule(0.1, updates)
        return make_optimizer(self.config.optimizer, schedule, updates)


class Linear(GRPOTrainer):
    """A KL weight that climbs in a straight line."""

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        schedule = optax.linear_schedule(0.0, 0.1, updates)
        return make_optimizer(self.config.optimizer, schedule, updates)


class Reacting(GRPOTrainer):
    """A KL weight that reacts to the measured KL, in the same place of the optimizer's state."""

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        reacting = rl.adapt_kl_coef(0.07, target=0.05)
        return optax.chain(make_optimizer(self.config.optimizer, None, updates), reacting)


class SquaredKL(GRPOTrainer):
    """Another estimator of the KL; `rl.kl_k1` is the third."""

    loss = staticmethod(functools.partial(rl.grpo_loss, kl_estimator=rl.kl_k2))


class TokenMean(GRPOTrainer):
    """Every token of a batch counts alike, in whatever sequence it stands."""

    loss = staticmethod(functools.partial(rl.grpo_loss, reduce=rl.mean_over_tokens))


class ConstantLength(GRPOTrainer):
    """The loss of Dr. GRPO: no sequence's length scales its gradient."""

    loss = staticmethod(functools.partial(rl.grpo_loss, reduce=rl.mean_over_length(40)))


VARIANTS = (GRPOTrainer, Linear, Cosine, Reacting, SquaredKL, TokenMean, ConstantLength)


def main(steps: int = 30, out: Path = Path("runs/ablation")) -> None:
    compilation_cache.enable()
    print(f"{'variant':<16}{'beta, first and last':>22}{'KL':>8}{'reward':>8}")
    for variant in VARIANTS:
        run = GRPOConfig(
            model="tiny",
            out=out / variant.__name__,
            data=DataConfig(
                task="counting", template=TINY_TEMPLATE, min_pixels=None, max_pixels=None
            ),
            steps=steps,
            prompts_per_step=8,
            sampling=SamplingConfig(max_new_tokens=40, top_k=0),
            optimizer=OptimizerConfig(learning_rate=1e-4, lr_schedule="constant"),
            remat="none",
        )
        lines = (begin(variant, run) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        betas = f"{rows[0]['beta']:.3f} {rows[-1]['beta']:.3f}"
        end = rows[-max(1, len(rows) // 10) :]
        kl, reward = (fmean(row[name] for row in end) for name in ("kl", "reward"))
        print(f"{variant.__name__:<16}{betas:>22}{kl:>8.3f}{reward:>8.2f}")


if __name__ == "__main__":
    as_command("ablation", lambda: tyro.cli(main, description=__doc__))
