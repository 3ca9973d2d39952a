"""The memory of a run from shapes alone."""

import dataclasses
from pathlib import Path

import jax
import pytest

from othink_jax.checkpoint.load import load
from othink_jax.config import (
    DataConfig,
    GRPOConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
)
from othink_jax.errors import UserError
from othink_jax.training import plan
from othink_jax.training.plan import plans, table

CONFIG = GRPOConfig(
    model="tiny",
    out=Path("unused"),
    data=DataConfig(task="counting", max_prompt_tokens=64, max_pixels=28 * 28 * 16),
    prompts_per_step=8,
    group_size=2,
    sampling=SamplingConfig(max_new_tokens=8),
    dtype="bfloat16",
)
PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(load("tiny", abstract=True).params))


@pytest.fixture(scope="module")
def one():
    return list(plans(dataclasses.replace(CONFIG, micro_batches=4)))


@pytest.fixture
def uncompiled(monkeypatch):
    """For what stays: it is counted, and nothing has to be compiled for it."""
    monkeypatch.setattr(plan, "_running_bytes", lambda program: 0)


def test_what_stays_is_counted(one):
    staying = one[0].staying
    assert staying["trained parameters"] == 4 * PARAMETERS
    assert staying["frozen parameters"] == 0
    assert staying["reference"] == 2 * PARAMETERS
    # Two moments, two counts and the KL weight.
    assert 8 * PARAMETERS < staying["moments"] < 8 * PARAMETERS + 100


def test_a_rollout_in_bfloat16_takes_a_copy_of_the_matrices(one):
    wide = next(plans(dataclasses.replace(CONFIG, micro_batches=8, dtype="float32")))
    # On a CPU the rest of it is computed in float32 either way.
    assert one[0].running["rollout"] - wide.running["rollout"] > 1.8 * PARAMETERS


def test_ever_smaller_pieces_of_the_prompts_are_tried_and_take_less(one):
    assert [made.micro_batches for made in one] == [4, 8]
    updates = [made.running["update"] for made in one]
    assert updates == sorted(updates, reverse=True)
    assert updates[0] > updates[-1] > 4 * PARAMETERS  # of the gradient
    assert one[0].peak == sum(one[0].staying.values()) + max(one[0].running.values())


def test_a_mesh_divides_and_replicas_do_not(one, uncompiled):
    def first(**settings):
        return next(plans(dataclasses.replace(CONFIG, **settings)))

    mesh = first(parallel=ParallelConfig(strategy="mesh", devices=8, tensor=2))
    for name, size in mesh.staying.items():
        assert one[0].staying[name] / 8 <= size <= one[0].staying[name] / 7.5
    replica = first(
        parallel=ParallelConfig(strategy="pmap", devices=4),
        optimizer=OptimizerConfig(mu_dtype="bfloat16"),
    )
    assert replica.staying["trained parameters"] == one[0].staying["trained parameters"]
    assert replica.staying["moments"] == one[0].staying["moments"] - 2 * PARAMETERS


def test_what_is_frozen_is_there_once_and_has_no_moments(uncompiled):
    made = next(plans(dataclasses.replace(CONFIG, train="lora")))
    assert made.staying["frozen parameters"] == 2 * PARAMETERS
    assert made.staying["reference"] == 0
    adapters = made.staying["trained parameters"]
    assert adapters < PARAMETERS
    assert 2 * adapters < made.staying["moments"] < 2 * adapters + 100


def test_a_plan_is_a_table(one):
    lines = table(one[0]).splitlines()
    assert lines[0] == "--micro-batches 4, GB on each device"
    assert [line.split()[-1] for line in lines[1:3]] == [
        f"{4 * PARAMETERS / 1e9:.2f}",
        f"{one[0].staying['moments'] / 1e9:.2f}",
    ]
    assert lines[-1].split()[-1] == f"{one[0].peak / 1e9:.2f}"


def test_without_bounds_there_is_no_worst_case():
    data = DataConfig(task="counting", max_pixels=None)
    with pytest.raises(UserError, match="needs --max-prompt-tokens and --max-pixels"):
        next(plans(dataclasses.replace(CONFIG, data=data)))
