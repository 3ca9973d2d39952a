"""TRL's side of `trl.py`: its trainer runs its own loop and calls back after each step."""

import importlib
from collections.abc import Callable
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from experiments.bench import trl_work
from experiments.bench.torchvision_shim import make_torchvision_importable
from experiments.bench.trl_work import Update, Work
from othink_jax.checkpoint.keymap import plain_name


def settings(work: Work) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig; all others are its defaults."""
    shapes = work.shapes
    return {
        # One rollout of all completions in one batch, and one update per rollout.
        "per_device_train_batch_size": shapes.prompts * shapes.group,
        "num_generations": shapes.group,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 1,
        # Minimum and maximum are equal: no completion ends early.
        "max_completion_length": shapes.length,
        "generation_kwargs": {
            "min_new_tokens": shapes.length,
            "suppress_tokens": list(work.never_sampled),
        },
        "temperature": 1.0,
        "top_k": trl_work.TOP_K,
        "use_cpu": True,
        "bf16": False,
        "model_init_kwargs": {"dtype": shapes.dtype},
        "gradient_checkpointing": False,
        "beta": trl_work.KL_WEIGHT,
        "loss_type": "grpo",  # a mean over completions, as ours
        "use_bias_correction_kl": False,  # plain k3 (Eq. 5)
        "scale_rewards": "group",
        "learning_rate": trl_work.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": trl_work.MAX_GRAD_NORM,
        "shuffle_dataset": False,  # keep the order of the prompts
        "dataloader_num_workers": 0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _rewards(completions: list[Any], **_: Any) -> list[float]:
    return [trl_work.reward(turns[0]["content"]) for turns in completions]


class _AfterStep(TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.call()


class Theirs:
    """A run of `trl.GRPOTrainer` that generates with transformers."""

    def __init__(self, work: Work, steps: int) -> None:
        make_torchvision_importable()
        trl: Any = importlib.import_module("trl")  # its trainers import torchvision
        self.config = settings(work)
        files = str(work.model.parent / "trl")
        turns = [[{"role": "user", "content": trl_work.QUESTION}]] * len(work.images)
        rows = {"prompt": turns, "image": [str(image) for image in work.images]}
        self.trainer = trl.GRPOTrainer(
            str(work.model),
            reward_funcs=_rewards,
            args=trl.GRPOConfig(output_dir=files, max_steps=steps, **self.config),
            train_dataset=datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()),
        )
        with torch.no_grad():
            for parameter in self.trainer.ref_model.parameters():
                parameter *= trl_work.REFERENCE_SCALE
        self.threads = torch.get_num_threads()
        self.attention = self.trainer.model.config._attn_implementation
        self._kept: dict[str, Any] = {}

    def run(self, after_step: Callable[[], None]) -> None:
        """Make all steps, data loading included, and call `after_step` after each."""
        self.trainer.add_callback(_AfterStep(after_step))
        self.trainer.train()

    def keep_first_update(self) -> None:
        """Record the next step, for `first_update`."""
        trainer, kept = self.trainer, self._kept
        score, compute_loss = trainer._generate_and_score_completions, trainer.compute_loss

        def scoring(inputs: Any) -> Any:
            batch = score(inputs)
            if "batch" not in kept:
                # Here, because the rows are shuffled afterwards.
                kept["batch"], kept["logp"] = batch, self._logp(batch)
            return batch

        def losing(*arguments: Any, **settings: Any) -> Any:
            loss = compute_loss(*arguments, **settings)
            kept.setdefault("loss", loss.item())
            return loss

        trainer._generate_and_score_completions, trainer.compute_loss = scoring, losing

    def _logp(self, batch: dict[str, Any]) -> torch.Tensor:
        """The policy's log-probabilities, by the function that TRL computes the loss with."""
        images = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")
        with torch.no_grad():
            logp, _, _ = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                **{name: batch[name] for name in images},
            )
        return logp

    def first_update(self) -> Update:
        """The recorded update; call it before the second one is made."""
        kept, trainer = self._kept, self.trainer
        batch = kept["batch"]
        moments = {
            plain_name(name): trainer.optimizer.state[parameter]["exp_avg"].numpy().copy()
            for name, parameter in trainer.model.named_parameters()
        }
        return Update(
            prompts=batch["prompt_ids"].numpy()[:: self.config["num_generations"]],
            completions=batch["completion_ids"].numpy(),
            advantages=batch["advantages"].numpy(),
            logp=kept["logp"].numpy(),
            ref_logp=batch["ref_per_token_logps"].numpy(),
            loss=kept["loss"],
            adam_mean=moments,
        )
