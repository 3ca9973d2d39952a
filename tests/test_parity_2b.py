"""Full shapes of Qwen2-VL-2B with random weights: every layer, logits and greedy tokens.

Needs 5 GB of disk, 10 GB of memory and a quarter of an hour; `pytest -s` shows the errors of every
layer.
"""

import functools
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.bench.shapes import qwen2_vl_2b
from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig, SamplingConfig
from othink_jax.families import entries, to_hf
from othink_jax.model.vlm import merge
from othink_jax.sampling import prompt_keys, sample
from tests.model_cases import Case, close, layers_and_logits, load_hub, to_prompts

pytestmark = pytest.mark.slow

CONFIG = qwen2_vl_2b()
GRID = (6, 10)  # rows and columns of merge windows: an image of 168 x 280 pixels
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Weights that keep states of order one, in bf16, so that both precisions load the same."""
    directory = tmp_path_factory.mktemp("2b")
    weight_map = {}
    for seed, entry in enumerate(entries(CONFIG)):
        noise = np.random.default_rng(seed).standard_normal(entry.hub_shape, np.float32)
        if len(entry.hub_shape) > 1:
            noise /= np.sqrt(np.prod(entry.hub_shape[1:]))
        else:
            noise = 0.1 * noise + (entry.path[-1] == "scale")
        file = f"{seed}.safetensors"
        save_file({entry.name: noise.astype(ml_dtypes.bfloat16)}, directory / file)
        weight_map[entry.name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(to_hf(CONFIG)))
    return directory


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 151_000, (2, 20))
    image = [CONFIG.vision_start_token_id, *[CONFIG.image_token_id] * (GRID[0] * GRID[1])]
    pixels = rng.normal(size=(4 * GRID[0] * GRID[1], CONFIG.vision.patch_dim))
    return Case(
        tokens=np.array([*before, *image, CONFIG.vision_end_token_id, *after], np.int32),
        grids=(GRID,),
        pixels=(pixels.astype(np.float32),),
    )


@pytest.fixture(scope="module")
def peer(directory, case, tmp_path_factory):
    """`peer(dtype)`: what transformers makes of the prompt. It is gone before we load anything."""
    place = tmp_path_factory.mktemp("peer")
    grid = [1, *(2 * side for side in GRID)]
    np.savez(place / "case.npz", tokens=case.tokens, pixels=case.pixels[0], grid=grid)

    @functools.cache
    def run(dtype):
        count = NEW_TOKENS if dtype == "float32" else 0
        out = place / f"{dtype}.npz"
        arguments = [directory, place / "case.npz", dtype, count, out]
        subprocess.run(
            [sys.executable, "-m", "tests.parity_2b_peer", *map(str, arguments)], check=True
        )
        return dict(np.load(out))

    return run


def run_ours(directory, case, dtype):
    """Static part, parameters, prompts, and state by layer and logits."""
    graphdef, _ = abstract_model(CONFIG, ComputeConfig(dtype=dtype))
    params = load_hub(directory, CONFIG, dtype)
    prompts = to_prompts(CONFIG, [case])
    states, logits = layers_and_logits(graphdef, params, prompts)
    by_name = {
        f"{tower} layer {number}": np.asarray(state[0], np.float32)
        for tower in ("vision", "text")
        for number, state in enumerate(states[tower])
    }
    return graphdef, params, prompts, by_name | {"logits": np.asarray(logits[0])}


def test_layers_logits_and_greedy_tokens_are_those_of_transformers(directory, case, peer):
    theirs = peer("float32")
    graphdef, params, prompts, ours = run_ours(directory, case, "float32")
    for name, state in ours.items():
        spread = theirs[name].std()
        print(f"{name}: {abs(state - theirs[name]).max() / spread:.1e} of {spread:.2f}")
        close(state / spread, theirs[name] / spread, 3e-5, name)
    assert 0.5 < theirs["logits"].std() < 2

    @jax.jit
    def greedy(params, prompts, keys):
        return sample(
            merge(graphdef, params),
            prompts,
            keys,
            group_size=1,
            config=SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS),
            eos_token_ids=(),
        )

    tokens = greedy(params, prompts, prompt_keys(0, 0, 1)).tokens[0, 0]
    assert theirs["margin"] > 1e-3  # far more than the logits differ by, so no tie decides
    np.testing.assert_array_equal(tokens, theirs["tokens"])


def test_bfloat16_is_no_farther_from_float32_than_in_transformers(directory, case, peer):
    exact, theirs = peer("float32"), peer("bfloat16")
    *_, ours = run_ours(directory, case, "bfloat16")

    def error(made, name):
        return np.sqrt(np.mean((made[name] - exact[name]) ** 2))

    for name in ours:
        print(f"{name}: ours {error(ours, name):.2e}, theirs {error(theirs, name):.2e}")
    assert error(ours, "logits") <= error(theirs, "logits")
