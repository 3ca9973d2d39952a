"""The training method of a run, in words for its page and its model card."""

import dataclasses
from collections.abc import Mapping

from othink_jax.config import (
    EntropyConfig,
    GRPOConfig,
    KLConfig,
    LossConfig,
    RewardConfig,
    SFTConfig,
    TrainingConfig,
    name_of,
)
from othink_jax.report.curves import (
    ENTROPY_BONUS,
    SFT_CURVES,
    VALIDATION,
    Curve,
    grpo_curves,
    reward_curve,
)
from othink_jax.rewards import GRADED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A training method, as one run uses it."""

    name: str
    explained: str  # text that follows "with <name>: "
    a_step: tuple[str, str]  # name and number of the examples or completions of a step
    settings: tuple[tuple[str, str], ...]  # further settings of interest: name, value
    curves: tuple[Curve, ...]
    samples: bool  # whether it stores sample completions
    rewards: tuple[str, ...] = ()  # names of reward functions, beside accuracy and format


def describe(config: TrainingConfig) -> Method:
    """The method of a run with these settings."""
    made = _described(config)
    if config.validation.used:
        made = dataclasses.replace(made, curves=(VALIDATION, *made.curves))
    return made


def _described(config: TrainingConfig) -> Method:
    if isinstance(config, GRPOConfig):
        return _grpo(config)
    assert isinstance(config, SFTConfig)  # there is no other kind
    return Method(
        name="SFT",
        explained="supervised fine-tuning on the solutions of the data, token by token",
        a_step=("examples a step", str(config.prompts_per_step)),
        settings=(("longest solution", f"{config.max_completion_tokens} tokens"),),
        curves=SFT_CURVES,
        samples=False,
    )


def _grpo(config: GRPOConfig) -> Method:
    sampling = config.sampling
    rewards = tuple(name_of(path) for path in config.reward.weights if path not in GRADED)
    drawn = (
        f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g},"
        f" at most {sampling.max_new_tokens} tokens"
    )
    return Method(
        name="GRPO-D" if config.kl.kl_schedule == "dynamic" else "GRPO",
        explained=f"group-relative policy optimisation with {weight_in_words(config.kl)}",
        a_step=("completions a step", f"{config.prompts_per_step} prompts × {config.group_size}"),
        settings=(
            ("sampling", drawn),
            ("loss", loss_in_words(config.loss)),
            ("KL to", reference_in_words(config.kl)),
            ("reward", reward_in_words(config.reward)),
            *(
                (("entropy bonus", entropy_in_words(config.entropy)),)
                if config.entropy.used
                else ()
            ),
        ),
        curves=(
            *grpo_curves(own_reward=bool(config.reward.functions)),
            *(reward_curve(name, number) for number, name in enumerate(rewards)),
            *((ENTROPY_BONUS,) if config.entropy.used else ()),
        ),
        samples=True,
        rewards=rewards,
    )


def reward_in_words(reward: RewardConfig) -> str:
    """The weighted sum of rewards; a weight of 1 is left out if functions are named."""
    if not reward.functions:
        return f"accuracy ({reward.grader}) + {reward.format_weight:g} format"
    names = {"accuracy": f"accuracy ({reward.grader})"}
    return " + ".join(
        f"{'' if weight == 1 else f'{weight:g} '}{names.get(path, name_of(path))}"
        for path, weight in reward.weights.items()
    )


def loss_in_words(loss: LossConfig) -> str:
    """Objective, advantages, reduction and KL term, with the numbers that are recorded."""
    bounds = {"clip_low": loss.clip_low, "clip_high": loss.clip_high}
    given = {name: value for name, value in bounds.items() if value is not None}
    objective = _with_numbers(loss.objective, given | loss.objective_args)
    advantage = _with_numbers(loss.advantage, loss.advantage_args)
    words = f"{objective}, advantages {advantage}, reduced by {loss.reduction}"
    if loss.correction is not None:
        words += f", weighed by {_with_numbers(loss.correction, loss.correction_args)}"
    if loss.top_entropy is not None:
        words += f", on the {loss.top_entropy:.0%} of tokens with the highest entropy"
    if loss.mask_truncated:
        words += ", without truncated completions"
    if loss.drop_no_signal:
        words += ", without groups that have no signal"
    return (
        f"{words}; KL {loss.kl_estimator} in the {loss.kl_placement}, gradient {loss.kl_gradient}"
    )


def _with_numbers(name: str, numbers: Mapping[str, float]) -> str:
    said = ", ".join(f"{number} {value:g}" for number, value in numbers.items())
    return f"{name} ({said})" if said else name


def reference_in_words(kl: KLConfig) -> str:
    """The reference of the KL, in words."""
    if kl.is_zero:
        return "nothing, for its weight is zero"
    if kl.reference_every is None:
        return "the starting model"
    move = "copied from" if kl.reference_mix == 1 else f"moved by {kl.reference_mix:g} to"
    return f"a reference {move} the policy every {kl.reference_every} updates"


def entropy_in_words(entropy: EntropyConfig) -> str:
    """The coefficient of the entropy bonus over the run."""
    if entropy.entropy_target is None:
        return f"coefficient {entropy.entropy_coef:g}"
    return (
        f"target {entropy.entropy_target:g} nats per token, coefficient from"
        f" {entropy.entropy_coef:g} by {entropy.entropy_coef_delta:g} an update within"
        f" {entropy.entropy_coef_min:g} and {entropy.entropy_coef_max:g}"
    )


def weight_in_words(kl: KLConfig) -> str:
    """The KL weight over the run, in words (Eq. 3)."""
    if kl.kl_schedule == "constant":
        return f"a constant KL weight β = {kl.kl_value:g}"
    if kl.kl_schedule != "dynamic":
        numbers = dict(kl.kl_args)
        if kl.kl_target is not None:
            numbers = {"target": kl.kl_target, "first weight": kl.kl_value, **numbers}
        return f"a KL weight β by the control {_with_numbers(kl.kl_schedule, numbers)}"
    middle = (kl.kl_min + kl.kl_max) / 2
    return (
        f"a dynamic KL weight: β falls from {middle:g} to {kl.kl_min:g} over the first"
        f" {kl.exploration_fraction:.0%} of the updates and then climbs to {kl.kl_max:g}"
    )


def trained_part(config: TrainingConfig) -> str:
    """The part of the model that a run trains, in words."""
    if config.train == "lora":
        lora = config.lora
        return f"adapters of the text tower (rank {lora.lora_rank}, alpha {lora.lora_alpha:g})"
    return {"all": "the whole model", "text": "the text tower"}[config.train]
