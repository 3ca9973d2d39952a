"""The example of ablations: what each variant changes, and that it runs."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ablation_example
from experiments.ablation_example import VARIANTS, settings
from experiments.lab.experiment import as_command
from othink_jax.rl import kl_coef

LN2 = 0.6931472
K1, K2, K3 = LN2, LN2**2 / 2, 0.5 + LN2 - 1  # of a token that the policy gives twice as much


def weights(variant, out, updates=4):
    """The KL weights of a run's updates, with a measured KL of 1 nat."""
    trainer = variant.__new__(variant)
    trainer.config = settings(out, updates)
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
        ("cosine", [0.1, 0.05 + 0.05 * 0.5**0.5, 0.05, 0.05 - 0.05 * 0.5**0.5]),
        ("reacting", [0.07, 0.07 * 1.02, 0.07 * 1.02**2, 0.07 * 1.02**3]),
    ],
)
def test_each_schedule_gives_its_weights(tmp_path, name, expected):
    np.testing.assert_allclose(weights(VARIANTS[name], tmp_path), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper", K3 / 2),
        ("k1", K1 / 2),
        ("k2", K2 / 2),
        ("per_token", 2 * K3 / 3),
        ("constant_length", 2 * K3 / 40 / 2),
    ],
)
def test_each_loss_has_its_kl_term(name, expected):
    """Two tokens that the policy gives twice as much as the reference, and one that both agree on.

    They are two sequences; without an advantage, the KL term is all of the loss.
    """
    ref_logp = jnp.full((2, 2), -3.0)
    logp = ref_logp + jnp.array([[LN2, LN2], [0.0, 0.0]])
    mask = jnp.array([[True, True], [True, False]])
    trainer = SimpleNamespace(config=settings(Path("unused"), 1))
    loss, _ = VARIANTS[name].loss(trainer)(*(logp, logp, ref_logp, jnp.zeros(2), mask), kl_coef=1.0)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)


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
