"""DeepStack, learned positions and normed heads of Qwen3-VL: every way gives equal numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig
from othink_jax.data.images import patch_positions
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.rope import text_angles
from othink_jax.model.stack import match_layout
from othink_jax.model.vision import interpolated
from othink_jax.model.vlm import init_cache, merge
from tests.model_cases import close, make_config, random_case, random_params, to_prompts

CONFIG = make_config(
    heads=2,
    kv_heads=1,
    section=(3, 2, 1),
    depth=3,
    vision_depth=3,
    family="qwen3_vl",
    text={"head_dim": 12, "hidden_size": 20},
    vision={"hidden_size": 20, "deepstack": (0, 2)},
)
GRAPHDEF, PARAMS = random_params(CONFIG)
LENGTH, GROUP = 5, 3
WEIGHT = np.random.default_rng(3).normal(size=(3, GROUP, LENGTH)).astype(np.float32)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    cases = [random_case(rng, CONFIG, grids) for grids in ([(1, 2), (2, 2)], [], [(3, 1)])]
    return to_prompts(CONFIG, cases, tokens=24, patches=24)


@pytest.fixture(scope="module")
def completions():
    shape = (3, GROUP, LENGTH)
    return jnp.asarray(np.random.default_rng(1).integers(0, 80, shape), jnp.int32)


@functools.partial(jax.jit, static_argnames=("graphdef", "mode"))
def gradient_of(params, prompts, completions, *, graphdef=GRAPHDEF, mode="shared"):
    """Log-probs, and the gradient of a loss that weighs every token differently."""

    def loss(params):
        model = merge(graphdef, params)
        logp = completion_logp(model, prompts, completions, chunk=64, mode=mode)
        return (logp * WEIGHT).sum(), logp

    gradient, logp = jax.grad(loss, has_aux=True)(params)
    return logp, gradient


def assert_same(found, expected):
    (logp, gradient), (expected_logp, expected_gradient) = found, expected
    close(logp, expected_logp, 1e-5)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradient))
    jax.tree.map_with_path(
        lambda path, a, b: close(a, b, 1e-5 * largest, jax.tree_util.keystr(path)),
        gradient,
        expected_gradient,
    )


@pytest.mark.parametrize("mode", ["naive", "vision_once"])
def test_a_prompt_computed_once_gives_the_gradient_of_repeating_it(prompts, completions, mode):
    expected = gradient_of(PARAMS, prompts, completions, mode=mode)
    moved = [float(abs(leaf).max()) for leaf in jax.tree.leaves(expected[1])]
    assert min(moved) > 1e-3  # deepstack, positions and norms of heads too
    assert_same(gradient_of(PARAMS, prompts, completions), expected)


@pytest.mark.parametrize("remat", ["none", "dots", "layer"])
def test_scanned_layers_give_the_numbers_of_unrolled_ones(prompts, completions, remat):
    graphdef, like = abstract_model(CONFIG, ComputeConfig(scan_layers="on", remat=remat))
    params = match_layout(PARAMS, like=like)
    found = gradient_of(params, prompts, completions, graphdef=graphdef)
    logp, expected = gradient_of(PARAMS, prompts, completions)
    assert_same(found, (logp, match_layout(expected, like=like)))


def test_features_that_are_there_are_taken(prompts, completions):
    """As where the vision tower is frozen: of every merge window what all text layers get."""
    features = jax.jit(lambda params: merge(GRAPHDEF, params).encode_images(prompts))(PARAMS)
    assert features.shape[-1] == CONFIG.vision.feature_dim == 3 * CONFIG.text.hidden_size
    blind = dataclasses.replace(
        prompts, patches=jnp.full_like(prompts.patches, jnp.nan), features=features
    )
    close(
        gradient_of(PARAMS, blind, completions)[0],
        gradient_of(PARAMS, prompts, completions)[0],
        1e-5,
    )


def test_decoding_token_by_token_gives_the_log_probs_of_the_whole(prompts, completions):
    @jax.jit
    def decode(params):
        model = merge(GRAPHDEF, params)
        _, prefix = model.prefill(prompts)
        cache = init_cache(CONFIG, 3, GROUP, LENGTH, jnp.float32)
        states = []
        for t in range(LENGTH):
            hidden, cache = model.extend(completions[..., t : t + 1], prefix, cache)
            states.append(hidden)
        logits = model.logits(jnp.concatenate(states, axis=2)[:, :, :-1])
        return jax.nn.log_softmax(logits)

    logp = jnp.take_along_axis(decode(PARAMS), completions[..., 1:, None], axis=-1)[..., 0]
    close(logp, gradient_of(PARAMS, prompts, completions)[0][..., 1:], 1e-5)


@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_what_padding_holds_changes_nothing(prompts, completions, garbage):
    real = prompts.patch_mask[..., None]
    dirty = dataclasses.replace(
        prompts,
        patches=jnp.where(real, prompts.patches, garbage),
        patch_positions=jnp.where(real, prompts.patch_positions, 54_321),
    )
    clean = dataclasses.replace(prompts, patches=jnp.where(real, prompts.patches, 0.0))
    assert_same(gradient_of(PARAMS, dirty, completions), gradient_of(PARAMS, clean, completions))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 10), (12, 6), (2, 48)])
def test_learned_positions_are_those_of_a_bilinear_resize(rows, columns):
    """Of torch, whose corners lie on those of the table; more patches than places, and fewer."""
    side, width = 7, 3
    table = np.random.default_rng(0).normal(size=(side * side, width)).astype(np.float32)
    positions = patch_positions(rows, columns, 2)
    padded = np.concatenate([positions, np.full((5, 2), 99, np.int32)])[None]
    mask = (np.arange(len(padded[0])) < len(positions))[None]
    found = interpolated(jnp.asarray(table), side, jnp.asarray(padded), jnp.asarray(mask))
    resized = torch.nn.functional.interpolate(
        torch.tensor(table).reshape(1, side, side, width).permute(0, 3, 1, 2),
        size=(rows, columns),
        mode="bilinear",
        align_corners=True,
    )[0].permute(1, 2, 0)
    close(found[0, : len(positions)], resized[positions[:, 0], positions[:, 1]], 1e-5)


def test_axes_take_turns_until_they_have_their_share():
    """Of frequencies 0 to 5, by hand: time, height, width, time, height, and time again."""
    positions = jnp.asarray([[[100], [10], [1]]])
    turned = text_angles(positions, (3, 2, 1), 1.0, interleaved=True)
    np.testing.assert_array_equal(turned[0, 0], [100, 10, 1, 100, 10, 100])
    in_a_row = text_angles(positions, (3, 2, 1), 1.0)
    np.testing.assert_array_equal(in_a_row[0, 0], [100, 100, 100, 10, 10, 1])
