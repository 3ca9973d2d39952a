"""The benchmark of the update, at shapes that take seconds: what it records, not how fast it is."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.bench import update
from experiments.bench.shapes import make_batch, presets, unique_flops
from experiments.bench.timing import write_json
from tests.model_cases import make_config

TINY = dataclasses.replace(
    presets()["cpu"],
    model=make_config(depth=1, vision_depth=1),
    prompts=2,
    group=2,
    prompt_tokens=9,
    image=(1, 2),
    length=3,
    micro_batches=2,
)


def test_the_record_holds_the_three_modes_their_ratios_and_where_it_ran(tmp_path):
    write_json(tmp_path / "new" / "record.json", update.measure(TINY, repeats=2))
    record = json.loads((tmp_path / "new" / "record.json").read_text())
    assert set(record["modes"]) == {"naive", "vision_once", "shared"}
    for row in record["modes"].values():
        assert 0 < row["min_s"] <= row["median_s"]
        assert row["temp_bytes"] > 0
    naive, shared = record["modes"]["naive"], record["modes"]["shared"]
    assert record["naive_over_shared"] == naive["min_s"] / shared["min_s"]
    assert record["naive_over_shared_memory"] == naive["temp_bytes"] / shared["temp_bytes"]
    assert 0 < record["max_rel_grad_diff"] < 1e-4
    assert record["repeats"] == 2
    assert record["shapes"]["length"] == 3
    assert record["versions"]["jax"] == jax.__version__
    assert 0 < record["share_of_peak"] < 1
    assert "largest relative difference" in update.table(record)


def test_positions_of_the_measured_prompts_are_those_of_the_processor():
    from othink_jax.data.images import patch_positions
    from othink_jax.data.positions import mrope_positions

    prompts = make_batch(dataclasses.replace(TINY, image=(2, 3), prompt_tokens=12)).prompts
    is_image = prompts.image_index[0] >= 0
    np.testing.assert_array_equal(prompts.positions[0], mrope_positions(is_image, [(1, 2, 3)]))
    np.testing.assert_array_equal(prompts.patch_positions[0, 0], patch_positions(4, 6, 2))


def test_flops_equal_those_that_xla_counts():
    """Of one forward pass, a quarter of them; XLA counts masked scores and small things too."""
    shapes = dataclasses.replace(
        TINY,
        model=make_config(
            vision={"embed_dim": 64}, text={"intermediate_size": 512, "vocab_size": 4000}
        ),
    )
    graphdef, params = update.make_model(dataclasses.replace(shapes, micro_batches=1))
    shapes = dataclasses.replace(shapes, micro_batches=1)
    logp, _ = update.make_programs(shapes, graphdef, "shared", None)
    counted = logp.lower(params, make_batch(shapes)).compile().cost_analysis()["flops"]
    assert unique_flops(shapes) / 4 == pytest.approx(counted, rel=0.1)
