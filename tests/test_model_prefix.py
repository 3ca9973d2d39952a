"""A prompt computed once: extend, decode and gradients equal the computation without that trick."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.stack import match_layout
from othink_jax.model.vlm import init_cache, merge
from tests.model_cases import (
    VOCAB,
    close,
    make_config,
    random_case,
    random_params,
    to_prompts,
)

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1))
GRAPHDEF, PARAMS = random_params(CONFIG)
LENGTH, GROUP = 5, 3


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    layouts = [[(1, 2), (2, 2)], [], [(2, 1)]]
    return [random_case(rng, CONFIG, grids) for grids in layouts]


@pytest.fixture(scope="module")
def prompts(cases):
    return to_prompts(CONFIG, cases, tokens=24, patches=24)


@pytest.fixture(scope="module")
def completions():
    shape = (3, GROUP, LENGTH)
    return jnp.asarray(np.random.default_rng(1).integers(0, 80, shape), jnp.int32)


@jax.jit
def logp_of(params, prompts, completions):
    return completion_logp(merge(GRAPHDEF, params), prompts, completions, chunk=64)


def loss_and_gradient(logp_fn):
    """jitted: (params, prompts, completions, weight) -> loss, log-probs, gradient."""

    def loss(params, prompts, completions, weight):
        logp = logp_fn(params, prompts, completions)
        return (logp * weight).sum(), logp

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def flat(*args):
        (value, logp), gradient = run(*args)
        return value, logp, gradient

    return flat


own_gradient = loss_and_gradient(logp_of)
# A loss that weighs every token differently.
WEIGHT = np.random.default_rng(3).normal(size=(3, GROUP, LENGTH)).astype(np.float32)


def close_trees(actual, expected, tolerance):
    def compare(path, a, b):
        close(a, b, tolerance, jax.tree_util.keystr(path))

    jax.tree.map_with_path(compare, actual, expected)


def test_a_completion_starts_one_past_the_largest_position(cases, prompts):
    # Case 0 holds images of 1x2 and 2x2 windows: six tokens that take 2 + 2 positions.
    expected = [len(cases[0].tokens) - 6 + 4, len(cases[1].tokens), len(cases[2].tokens)]
    np.testing.assert_array_equal(prompts.next_position, expected)


def test_keys_of_a_completion_are_turned_by_its_own_positions(prompts, completions):
    """The same as prefilling prompt and completion as one text, at those positions."""
    whole = append(prompts, completions[:, 0])

    @jax.jit
    def run(params):
        model = merge(GRAPHDEF, params)
        _, prefix = model.prefill(prompts)
        cache = init_cache(CONFIG, 3, 1, LENGTH, jnp.float32)
        return model.extend(completions[:, :1], prefix, cache)[1], model.prefill(whole)[1]

    cache, prefix = run(PARAMS)
    for row, count in enumerate(prompts.mask.sum(axis=1)):
        for own, reference in zip(cache.keys, prefix.keys, strict=True):
            close(own[row, 0], reference[row, count : count + LENGTH], 1e-5)


def append(prompts, completions):
    """Each prompt and one completion of it as one text."""
    arrays = dict(vars(jax.tree.map(np.array, prompts)))
    extra = completions.shape[1]
    for name, filling in {"tokens": 0, "mask": False, "image_index": -1, "positions": 0}.items():
        old = arrays[name]
        arrays[name] = np.concatenate(
            [old, np.full((*old.shape[:-1], extra), filling, old.dtype)], axis=-1
        )
    for row, count in enumerate(np.asarray(prompts.mask).sum(axis=1)):
        place = slice(count, count + extra)
        arrays["tokens"][row, place] = completions[row]
        arrays["mask"][row, place] = True
        arrays["positions"][row, :, place] = int(prompts.next_position[row]) + np.arange(extra)
    return type(prompts)(**jax.tree.map(jnp.asarray, arrays))


def test_values_and_gradients_are_those_of_repeating_the_prompt(prompts, completions):
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, GROUP, axis=0), prompts)
    flat = np.asarray(completions).reshape(-1, LENGTH)
    last = np.asarray(repeated.mask).sum(axis=1)[:, None] - 1

    def naive(params, whole, completions):
        model = merge(GRAPHDEF, params)
        logp = jax.nn.log_softmax(model.logits(model.prefill(whole)[0]))
        rows = np.arange(len(last))[:, None]
        chosen = logp[rows, last + np.arange(LENGTH), completions.reshape(-1, LENGTH)]
        return chosen.reshape(completions.shape)

    value, logp, gradient = own_gradient(PARAMS, prompts, completions, WEIGHT)
    whole = append(repeated, flat)
    expected, reference_logp, reference = loss_and_gradient(naive)(
        PARAMS, whole, completions, WEIGHT
    )
    close(value, expected, 1e-4)
    close(logp, reference_logp, 1e-5)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(reference))
    assert largest > 1
    close_trees(gradient, reference, 1e-5 * largest)


def test_decoding_token_by_token_is_one_extend(prompts, completions):
    prefix = jax.jit(lambda params: merge(GRAPHDEF, params).prefill(prompts)[1])(PARAMS)

    @jax.jit
    def extend(params, tokens, cache):
        return merge(GRAPHDEF, params).extend(tokens, prefix, cache)

    whole, nothing = extend(PARAMS, completions, None)
    assert nothing is None
    cache = init_cache(CONFIG, 3, GROUP, LENGTH + 2, jnp.float32)
    for t in range(LENGTH):
        hidden, cache = extend(PARAMS, completions[:, :, t : t + 1], cache)
        close(hidden[:, :, 0], whole[:, :, t], 1e-5, f"token {t}")
    assert cache.length == LENGTH
    cache = init_cache(CONFIG, 3, GROUP, LENGTH, jnp.float32)
    hidden, cache = extend(PARAMS, completions[:, :, :2], cache)
    rest, _ = extend(PARAMS, completions[:, :, 2:], cache)
    close(jnp.concatenate([hidden, rest], axis=2), whole, 1e-5, "two pieces")


def test_a_single_token_completion_needs_no_extend(prompts, completions):
    close(
        logp_of(PARAMS, prompts, completions[..., :1]),
        logp_of(PARAMS, prompts, completions)[..., :1],
        1e-5,
    )


def test_no_token_sees_a_later_one_or_another_completion(prompts, completions):
    prefix = jax.jit(lambda params: merge(GRAPHDEF, params).prefill(prompts)[1])(PARAMS)
    run = jax.jit(lambda tokens: merge(GRAPHDEF, PARAMS).extend(tokens, prefix)[0])
    before = run(completions)
    changed = abs(run(completions.at[0, 1, 2].add(1)) - before).max(axis=-1) > 0
    expected = np.zeros_like(changed)
    expected[0, 1, 2:] = True
    np.testing.assert_array_equal(changed, expected)


# Scanned and unrolled


def test_scanned_layers_give_the_numbers_of_unrolled_ones(prompts, completions):
    scanned, abstract = abstract_model(CONFIG, ComputeConfig(scan_layers="on"))
    params = match_layout(PARAMS, like=abstract)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)

    def logp(params, prompts, completions):
        return completion_logp(merge(scanned, params), prompts, completions, chunk=64)

    _, found, gradient = loss_and_gradient(logp)(params, prompts, completions, WEIGHT)
    _, expected, reference = own_gradient(PARAMS, prompts, completions, WEIGHT)
    close(found, expected, 1e-5)
    close_trees(gradient, match_layout(reference, like=abstract), 1e-4)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(graphdef, params):
        model = merge(graphdef, params)
        _, prefix = model.prefill(prompts)
        cache = init_cache(CONFIG, 3, GROUP, LENGTH, jnp.float32)
        _, cache = model.extend(completions[..., :2], prefix, cache)
        return model.extend(completions[..., 2:3], prefix, cache)

    close_trees(decode(scanned, params), decode(GRAPHDEF, PARAMS), 1e-5)


# What the backward pass computes again


@pytest.mark.parametrize("scan", ["off", "on"])
@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_computing_layers_again_gives_the_same_gradient(prompts, completions, remat, scan):
    graphdef, like = abstract_model(CONFIG, ComputeConfig(scan_layers=scan, remat=remat))

    def logp(params, prompts, completions):
        return completion_logp(merge(graphdef, params), prompts, completions, chunk=64)

    params = match_layout(PARAMS, like=like)
    _, found, gradient = loss_and_gradient(logp)(params, prompts, completions, WEIGHT)
    _, expected, reference = own_gradient(PARAMS, prompts, completions, WEIGHT)
    close(found, expected, 1e-5)
    close_trees(gradient, match_layout(reference, like=like), 1e-4)


def test_the_more_is_computed_again_the_less_is_kept(prompts, completions):
    """Temporary memory of a deep model, scanned: XLA on a CPU runs unrolled layers again early."""
    deep = make_config(heads=2, kv_heads=1, section=(1, 2, 1), depth=8, vision_depth=8)

    def temporary(remat):
        graphdef, params = abstract_model(deep, ComputeConfig(scan_layers="on", remat=remat))

        def loss(params):
            model = merge(graphdef, params)
            return completion_logp(model, prompts, completions, chunk=64).sum()

        # Half the time to compile, the same buffers.
        options = {"xla_backend_optimization_level": 0}
        program = jax.jit(jax.grad(loss)).lower(params).compile(options)
        return program.memory_analysis().temp_size_in_bytes

    none, dots, layer = (temporary(remat) for remat in ("none", "dots", "layer"))
    assert layer < 0.5 * none
    assert layer < 0.9 * dots < 0.8 * none


# Padding


@pytest.mark.parametrize("garbage", [1e30, -np.inf, np.nan])
def test_what_padding_holds_changes_nothing(prompts, completions, garbage):
    mask = np.arange(LENGTH) < np.array([5, 3, 1])[:, None]  # of the completions of a group
    real = prompts.patch_mask[..., None]
    zeros = dataclasses.replace(prompts, patches=jnp.where(real, prompts.patches, 0.0))
    value, logp, gradient = own_gradient(
        PARAMS, zeros, jnp.where(mask, completions, 0), WEIGHT * mask
    )
    rng = np.random.default_rng(9)
    text = prompts.mask
    dirty = dataclasses.replace(
        prompts,
        tokens=jnp.where(text, prompts.tokens, rng.integers(0, VOCAB, text.shape)),
        positions=jnp.where(text[:, None], prompts.positions, 12_345),
        patches=jnp.where(real, prompts.patches, garbage),
        patch_positions=jnp.where(real, prompts.patch_positions, 54_321),
    )
    noise = jnp.asarray(rng.integers(0, VOCAB, completions.shape), jnp.int32)
    dirty_value, dirty_logp, dirty_gradient = own_gradient(
        PARAMS, dirty, jnp.where(mask, completions, noise), WEIGHT * mask
    )
    assert jnp.isfinite(dirty_logp).all()
    close(dirty_logp * mask, logp * mask, 1e-6)
    close(dirty_value, value, 1e-5)
    close_trees(dirty_gradient, gradient, 1e-5)


def test_empty_image_slots_and_more_padding_change_nothing(cases, completions):
    tight = to_prompts(CONFIG, cases)
    loose = to_prompts(CONFIG, cases, tokens=31, slots=4, patches=32)
    close(logp_of(PARAMS, loose, completions), logp_of(PARAMS, tight, completions), 1e-5)


def test_a_batch_without_images_leaves_the_vision_tower_out(cases, completions):
    texts = to_prompts(CONFIG, [cases[1]])
    assert texts.patches.shape[1] == 0
    with_slots = to_prompts(CONFIG, [cases[1]], slots=2, patches=4)
    logp = logp_of(PARAMS, texts, completions[1:2])
    close(logp, logp_of(PARAMS, with_slots, completions[1:2]), 1e-5)
    without_vision = {
        "text": PARAMS["text"],
        "visual": jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS["visual"]),
    }
    close(logp_of(without_vision, texts, completions[1:2]), logp, 0)


def test_a_row_of_padding_alone_is_finite(prompts, completions):
    nothing = dataclasses.replace(prompts, mask=prompts.mask.at[1].set(False))
    weight = WEIGHT * np.array([1, 0, 1])[:, None, None]
    _, logp, gradient = own_gradient(PARAMS, nothing, completions, weight)
    assert jnp.isfinite(logp).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    close(logp[0], logp_of(PARAMS, prompts, completions)[0], 1e-5)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(prompts, completions):
    graphdef, _ = abstract_model(CONFIG, ComputeConfig(dtype="bfloat16"))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)

    @jax.jit
    def run(params):
        model = merge(graphdef, params)
        return model.prefill(prompts), completion_logp(model, prompts, completions, chunk=64)

    (hidden, prefix), logp = run(params)
    assert hidden.dtype == prefix.keys[0].dtype == prefix.values[0].dtype == jnp.bfloat16
    assert logp.dtype == jnp.float32
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    close(logp, logp_of(rounded, prompts, completions), 0.15)
