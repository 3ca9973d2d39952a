"""The example of ablations: what each variant changes, and that it runs."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ablation_example
from experiments.ablation_example import VARIANTS, Own, settings
from experiments.lab.experiment import as_command
from othink_jax.rl import kl_coef
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.losses import make_advantages, make_loss

LN2 = 0.6931472
K3 = 0.5 + LN2 - 1  # of a token that the policy gives twice as much as the reference


def weights(trainer_class, config, updates=4):
    """The KL weights of a run's updates, with a measured KL of 1 nat."""
    trainer = trainer_class.__new__(trainer_class)
    trainer.config = config
    tx = trainer.optimizer(updates)
    parameter = jnp.zeros(1)
    state, found = tx.init(parameter), []
    for _ in range(updates):
        found.append(float(kl_coef(state)))
        _, state = tx.update(parameter, state, parameter, kl=jnp.float32(1.0))
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Down to 0.04 in the first 1.2 updates, up to 0.1 at the fourth.
        ("paper", [0.07, 0.07 - 0.03 / 1.2, 0.04 + 0.06 * 0.8 / 2.8, 0.04 + 0.06 * 1.8 / 2.8]),
        ("constant", [0.07] * 4),
        ("linear", [0.0, 0.025, 0.05, 0.075]),
        ("own", [0.1, 0.05, 0.025, 0.0125]),
    ],
)
def test_each_schedule_gives_its_weights(tmp_path, name, expected):
    trainer = Own if name == "own" else GRPOTrainer
    found = weights(trainer, settings(tmp_path, 4, **VARIANTS[name]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"), [("paper", K3 / 2), ("k2", LN2**2 / 4), ("per_token", 2 * K3 / 3)]
)
def test_each_loss_has_its_kl_term(tmp_path, name, expected):
    """Two tokens that the policy gives twice as much as the reference, and one that both agree on.

    They are two sequences; without an advantage, the KL term is all of the loss.
    """
    ref_logp = jnp.full((2, 2), -3.0)
    logp = ref_logp + jnp.array([[LN2, LN2], [0.0, 0.0]])
    mask = jnp.array([[True, True], [True, False]])
    loss_of = make_loss(settings(tmp_path, 1, **VARIANTS[name]).loss)
    loss, _ = loss_of(logp, logp, ref_logp, jnp.zeros(2), mask, kl_coef=1.0)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_is_a_run_that_can_be(tmp_path, name):
    config = settings(tmp_path, 4, **VARIANTS[name])
    make_loss(config.loss, longest=40)
    make_advantages(config.loss, prompts=config.prompts_per_step, group_size=config.group_size)
    assert len(weights(GRPOTrainer, config)) == 4


def test_the_own_objective_has_the_gradient_of_reinforce_and_the_kl_term_of_the_paper():
    """Two tokens that the policy gives twice as much as the reference, and one that both agree on.

    The value is -A log pi plus k3, each a mean over the tokens of two sequences.
    """
    ref_logp = jnp.full((2, 2), -3.0)
    logp = ref_logp + jnp.array([[LN2, LN2], [0.0, 0.0]])
    mask = jnp.array([[True, True], [True, False]])
    trainer = SimpleNamespace(config=settings(Path("unused"), 1))

    def value(logp):
        given = (logp, logp, ref_logp, jnp.array([2.0, -1.0]), mask)
        return Own.loss(trainer)(*given, kl_coef=1.0)[0].value

    found, gradient = jax.value_and_grad(value)(logp)
    np.testing.assert_allclose(found, (-2 * (LN2 - 3) - 3 + K3) / 2, rtol=1e-5)
    of_k3 = 1 - 0.5  # of exp(d) - d - 1 by the policy, at d = -log 2
    np.testing.assert_allclose(gradient, [[(of_k3 - 2) / 4] * 2, [0.5, 0.0]], rtol=1e-5)


def test_a_second_run_into_the_same_place_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as caught:
        as_command("ablation", lambda: ablation_example.main(out=tmp_path))
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ablation: {tmp_path / 'paper'} holds a run already")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_every_variant_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    ablation_example.main(steps=2, out=tmp_path)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert {row.split()[0] for row in rows} >= VARIANTS.keys()
