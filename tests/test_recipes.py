"""Recipes: the settings of a loss, under one name, and the names that settings know."""

import jax
import jax.numpy as jnp
import pytest

from othink_jax import cli, rl
from othink_jax.config import LossConfig
from othink_jax.recipes import RECIPES, with_recipe
from othink_jax.training.losses import make_advantages, make_loss, resolved
from othink_jax.training.optimizer import make_kl
from tests.test_rl_losses import arrays


def config_of(monkeypatch, *arguments):
    """The settings that a command line makes."""
    made = []
    monkeypatch.setattr("othink_jax.training.grpo.train", made.append)
    monkeypatch.setattr(cli, "_run_training", lambda run, processes: run())
    cli.run(["grpo", "--model", "tiny", "--task", "counting", "--out", "unused", *arguments])
    return made[0]


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_is_a_loss_that_can_be_descended(name, monkeypatch):
    config = config_of(monkeypatch, "--recipe", name)
    loss = make_loss(config.loss, longest=40)
    values = jax.tree.map(jnp.asarray, arrays())
    gradient = jax.grad(lambda x: loss(**values | {"logp": x}, kl_coef=0.1)[0].value)
    assert jnp.abs(gradient(values["logp"])).max() > 0
    rewards = jnp.asarray([[0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    advantages = make_advantages(config.loss, prompts=2, group_size=4)(rewards)
    assert advantages.shape == rewards.shape
    assert rl.kl_coef(make_kl(config.kl, 10).init({})) >= 0


def test_what_a_user_gives_goes_over_a_recipe_and_that_over_a_preset(monkeypatch):
    assert with_recipe(["--clip-high", "0.3"]) == ["--clip-high", "0.3"]
    config = config_of(monkeypatch, "--clip-high", "0.3", "--recipe=dapo")
    assert (config.loss.clip_high, config.loss.reduction) == (0.3, "token")
    assert config.kl.is_zero
    assert config.sampling.max_new_tokens == 40


def test_a_recipe_that_is_not_there_is_one_line_with_those_that_are(capsys):
    with pytest.raises(SystemExit) as caught:
        with_recipe(["--recipe", "none"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("othink-jax: --recipe must be one of grpo_d, grpo,")


def test_recipes_and_names_are_listed_with_their_sources(capsys):
    cli.run(["recipes"])
    said = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.source}\n    {recipe.options}" in said
    for table in (rl.OBJECTIVES, rl.ADVANTAGES, rl.KL_ESTIMATORS, rl.KL_CONTROLS, rl.REDUCTIONS):
        for name in table:
            assert f"\n    {name}: " in said


@pytest.mark.parametrize("name", rl.OBJECTIVES)
def test_each_objective_is_recorded_with_its_numbers(name):
    found = resolved(LossConfig(objective=name))
    assert make_loss(found)
    assert resolved(found) == found
