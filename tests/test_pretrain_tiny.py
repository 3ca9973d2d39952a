"""The script that makes the embedded model."""

import pytest

from experiments.pretrain_tiny import PretrainConfig, pretrain
from othink_jax.checkpoint.load import load


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_one_another(tmp_path):
    def made(name, seed):
        settings = {"vision_steps": 110, "vision_batch_size": 8, "steps": 110, "batch_size": 4}
        pretrain(PretrainConfig(out=tmp_path / name, seed=seed, **settings))
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = made("first", 0)
    assert made("again", 0) == first
    assert made("other", 1) != first
    assert load(tmp_path / "first").processor.eos_token_ids
