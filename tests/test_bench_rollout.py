"""The benchmarks of rollout and scaling at shapes that take seconds: what they record."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.bench import rollout, scaling
from experiments.bench.shapes import make_batch, make_model
from tests.test_bench_update import TINY

SHAPES = dataclasses.replace(TINY, group=3, length=9, micro_batches=1)


@pytest.fixture(scope="module")
def record():
    ways = ("copied_prefix", "repeated_prompt", "transformers")
    return rollout.measure(SHAPES, repeats=2, names=ways, megabytes=1)


def test_all_ways_draw_from_the_distribution_of_the_update(record):
    """The record says by how much they differ; more than rounding would have raised."""
    ways = {"shared", "prefill", "copied_prefix", "repeated_prompt", "transformers"}
    assert set(record["max_logp_diff"]) == set(record["ways"]) == ways
    assert max(record["max_logp_diff"].values()) < 1e-5


def test_another_model_is_noticed():
    graphdef, params = make_model(SHAPES)
    prompts = make_batch(SHAPES).prompts
    sampler = rollout.make_samplers(SHAPES, graphdef)["shared"]
    drawn = sampler(params, prompts, np.zeros((SHAPES.prompts, 2), np.uint32))
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    with pytest.raises(AssertionError, match="log-probabilities differ by"):
        rollout.max_logp_diff(SHAPES, graphdef, other, prompts, drawn.tokens, drawn.logp)


def test_a_token_takes_what_a_rollout_takes_without_its_prefill(record):
    shared, prefill = (record["ways"][name]["min_s"] for name in ("shared", "prefill"))
    assert record["token_s"] == pytest.approx((shared - prefill) / 8)
    assert record["tokens_per_second"] == pytest.approx(6 / record["token_s"])
    copied = record["ways"]["copied_prefix"]["min_s"]
    assert record["copied_prefix_over_shared"] == copied / shared
    assert "transformers" in rollout.table(record)


def test_bytes_of_a_token_are_those_of_weights_and_of_keys_and_values():
    text = SHAPES.model.text
    _, params = make_model(SHAPES)
    layers = jax.tree.leaves(params["text"]["layers"])
    matrices = sum(leaf.size for leaf in layers if leaf.ndim == 2)
    tokens = 2 * 9 + 2 * 3 * 4.5
    kept = text.num_hidden_layers * tokens * 2 * text.num_key_value_heads * text.head_dim
    head = text.vocab_size * text.hidden_size
    assert rollout.bytes_of_a_token(SHAPES) == 4 * (matrices + head + kept)


def test_sweeps_change_one_thing_at_a_time_and_keep_the_text():
    base = SHAPES.record()
    for axis, found in scaling.sweeps(SHAPES).items():
        changed = {name for shapes in found for name in base if shapes.record()[name] != base[name]}
        assert changed - {"image"} == {axis}
        for shapes in found:
            rows, columns = shapes.image
            assert shapes.prompt_tokens - rows * columns == 7


def test_devices_share_the_state_of_one(tmp_path):
    rows = scaling.over_devices(dataclasses.replace(SHAPES, prompts=4), (1, 4), repeats=1)
    one, four = (row["state_bytes"] for row in rows)
    assert one / 4 < four < one / 3
    modes = {name: {"min_s": 1.0} for name in ("naive", "vision_once", "shared")}
    axes = {axis: [{axis: 1, "modes": modes}] for axis in scaling.sweeps(SHAPES)}
    result = {"device": "cpu", "repeats": 1, **axes, "devices": rows}
    assert "MB of state" in scaling.table(result)
    scaling.draw(result, tmp_path / "new" / "scaling.png")
    assert (tmp_path / "new" / "scaling.png").stat().st_size > 10_000


def test_what_runs_on_a_gpu_needs_neither_datasets_nor_tyro_nor_grain():
    blocked = "import sys\nfor name in ('datasets', 'tyro', 'grain'): sys.modules[name] = None\n"
    imports = "from experiments.bench import logits, peer, rollout, update"
    subprocess.run([sys.executable, "-c", blocked + imports], check=True)
