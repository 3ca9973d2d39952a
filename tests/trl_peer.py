"""TRL's side of a comparison: methods of its trainers, called on arrays that are given."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl import GRPOTrainer

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    num_processes=1,
    pad_across_processes=lambda x, **_: x,
    process_index=0,
    reduce=lambda x, reduction: x,
)


class _Model(torch.nn.Module):
    is_gradient_checkpointing = False


def trl_loss(
    values, loss_type, *, length, trainer=GRPOTrainer, config=(), entropy=None, **attributes
):
    """A trainer's loss, and its gradient by log-probabilities.

    Without more, it has no KL, no entropy and no correction, and clips at 0.9 and 1.3.

    Args:
        values: as the arguments of `rl.grpo_loss`.
        length: the limit of a completion, tokens.
        config: what differs in the trainer's config.
        entropy: of the tokens; zero if not given.
        attributes: what differs in the trainer.
    """
    logp = torch.tensor(values["logp"], requires_grad=True)
    mask = torch.tensor(values["mask"]).long()
    entropy = torch.zeros_like(logp) if entropy is None else torch.tensor(entropy)
    prompts = torch.zeros(len(logp), 1, dtype=torch.long)
    config = {
        "delta": None,
        "steps_per_generation": 1,
        "use_bias_correction_kl": False,
    } | dict(config)
    usual = {
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logp, entropy, None),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_entropy_bonus_enabled": False,
        "accelerator": ACCELERATOR,
        "args": SimpleNamespace(**config),
        "aux_loss_enabled": False,
        "beta": 0.0,
        "current_gradient_accumulation_steps": 1,
        "epsilon_high": 0.3,
        "epsilon_low": 0.1,
        "get_gamma_weights": GRPOTrainer.get_gamma_weights,
        "importance_sampling_level": "token",
        "loss_type": loss_type,
        "max_completion_length": length,
        "model": _Model(),
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
    }
    stub = SimpleNamespace(**usual | attributes)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.zeros(logp.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(values["advantages"]),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": torch.tensor(values["old_logp"]),
        "ref_per_token_logps": torch.tensor(values["ref_logp"]),
    }
    value = trainer._compute_loss(stub, stub.model, inputs)
    value.backward()
    return value.item(), logp.grad.numpy()


def trl_batch(trainer, rewards_RBG, *, logp=None, sampler_logp=None, lengths=None, **attributes):
    """What a trainer makes of generated completions: advantages, and weights of importance.

    Args:
        rewards_RBG: of R kinds.
        logp, sampler_logp: of the completions, [B G, T], under the trainer's model and under vLLM.
        lengths: of the completions, tokens; one each if none are given.
        attributes: what differs in the trainer.
    """
    kinds, _, group_size = rewards_RBG.shape
    rewards = torch.tensor(np.reshape(rewards_RBG, (kinds, -1)).T)
    count = len(rewards)
    lengths = np.ones(count, int) if lengths is None else lengths
    logp = np.zeros((count, 1), np.float32) if logp is None else logp
    completions = [[5] * n for n in lengths]
    generated = [[1]] * count, completions, completions
    if trainer is GRPOTrainer:
        sampled = None
        if sampler_logp is not None:
            sampled = [row[:n].tolist() for row, n in zip(sampler_logp, lengths, strict=True)]
        generated = [[1]] * count, completions, None, completions, sampled, {}, None, None
    usual = {
        "_calculate_rewards": lambda *_: rewards,
        "_generate": lambda _: generated,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (torch.tensor(logp), None, None),
        "_logs": defaultdict(list) | {"rewards": defaultdict(list)},
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "accelerator": ACCELERATOR,
        "args": SimpleNamespace(
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=count,
            steps_per_generation=1,
        ),
        "beta": 0.0,
        "environment_factories": None,
        "environments": None,
        "mask_truncated_completions": False,
        "model": _Model(),
        "multi_objective_aggregation": "sum_then_normalize",
        "normalize_advantages": False,
        "num_generations": group_size,
        "num_iterations": 1,
        "pad_to_multiple_of": None,
        "reward_clip_range": None,
        "reward_func_names": [],
        "reward_funcs": [None] * kinds,
        "reward_weights": torch.ones(kinds),
        "scale_rewards": "group",
        "tools": None,
        "use_vllm": sampler_logp is not None,
        "vllm_importance_sampling_correction": True,
    }
    stub = SimpleNamespace(**usual | attributes)
    inputs = [{"prompt": "a question"}] * count
    return trainer._generate_and_score_completions(stub, inputs)
