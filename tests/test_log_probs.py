"""Log-probabilities of completions: three ways to the same numbers, a chunk of logits at a time."""

import dataclasses
import functools
import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from othink_jax import rl
from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig
from othink_jax.model.config import VLMConfig
from othink_jax.model.log_probs import (
    Mode,
    Reference,
    completion_logp,
    completion_stats,
    token_logp,
    token_stats,
)
from othink_jax.model.vlm import merge
from othink_jax.rl import grpo_loss
from othink_jax.types import Prompts
from tests.model_cases import (
    Grid,
    close,
    make_config,
    random_case,
    random_params,
    to_prompts,
)

MODES = get_args(Mode)
CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1))
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}  # half the time, the same numbers


@dataclasses.dataclass(frozen=True)
class Setup:
    """Shapes of a model and of a batch of ragged prompts and completions."""

    config: VLMConfig = CONFIG
    layouts: tuple[tuple[Grid, ...], ...] = (((1, 2), (2, 2)), (), ((2, 1),))  # images of prompts
    group: int = 4
    length: int = 9
    padding: int = 2  # columns after the longest prompt, and image slots, that hold nothing
    chunk: int = 40
    seed: int = 0

    def prompts(self) -> Prompts:
        rng = np.random.default_rng(self.seed)
        cases = [
            random_case(rng, self.config, grids, words=int(rng.integers(1, 5)))
            for grids in self.layouts
        ]
        return to_prompts(
            self.config,
            cases,
            tokens=max(len(case.tokens) for case in cases) + self.padding,
            slots=max(len(grids) for grids in self.layouts) + self.padding,
            patches=24,  # of 2x3 windows, the largest image here
        )


def make_compute(setup: Setup, mode: Mode, dtype: str):
    """Log-probs and the gradient of the GRPO loss, with a KL to a reference, by parameters' seed.

    Parameters are float32, as in training, but in float64; the model computes in `dtype`. Results
    are float64, on the host.
    """
    stored = "float64" if dtype == "float64" else "float32"
    graphdef, _ = abstract_model(setup.config, ComputeConfig(dtype=dtype, param_dtype=stored))
    prompts, rng = setup.prompts(), np.random.default_rng(setup.seed + 1)
    shape = (len(setup.layouts), setup.group, setup.length)
    completions = jnp.asarray(rng.integers(0, 80, shape), jnp.int32)
    lengths = rng.integers(1, setup.length + 1, shape[:2])
    lengths[0, 0] = 0
    mask = jnp.asarray(np.arange(setup.length) < lengths[..., None])
    advantages, drift, distance_to_reference = (
        jnp.asarray(rng.normal(size=s), stored) for s in (shape[:2], shape, shape)
    )

    def logp_of(params):
        model = merge(graphdef, params)
        return completion_logp(model, prompts, completions, chunk=setup.chunk, mode=mode)

    def loss(params):
        logp = logp_of(params)
        old_logp = jax.lax.stop_gradient(logp) + 0.2 * drift
        ref_logp = jax.lax.stop_gradient(logp) + distance_to_reference
        value, _ = grpo_loss(logp, old_logp, ref_logp, advantages, mask, kl_coef=0.5)
        return value, jnp.where(mask, logp, 0.0)

    run = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_TO_COMPILE)

    def compute_for(seed: int):
        _, params = random_params(setup.config, seed=seed)
        gradient, logp = run(jax.tree.map(lambda leaf: leaf.astype(stored), params))
        assert logp.dtype == stored
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (logp, gradient))

    return compute_for


def compute(setup: Setup, mode: Mode, dtype: str):
    return make_compute(setup, mode, dtype)(setup.seed)


def distance(actual, expected) -> float:
    """Euclidean, of all leaves together, relative to the length of `expected`."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    difference = sum(np.sum((x - y) ** 2) for x, y in pairs)
    return float(np.sqrt(difference / sum(np.sum(y**2) for _, y in pairs)))


def assert_every_leaf_close(actual, expected, tolerance):
    """Each leaf within `tolerance` of its own largest number."""

    def compare(path, x, y):
        close(x, y, tolerance * abs(y).max(), jax.tree_util.keystr(path))

    jax.tree.map_with_path(compare, actual, expected)


grids = st.tuples(st.integers(1, 2), st.integers(1, 3))
setups = st.builds(
    Setup,
    config=st.builds(
        lambda kv_heads, share, **rest: make_config(
            heads=kv_heads * share, kv_heads=kv_heads, **rest
        ),
        kv_heads=st.integers(1, 2),
        share=st.integers(1, 3),
        section=st.sampled_from([(1, 2, 1), (2, 1, 1), (1, 3, 2)]),
        depth=st.integers(1, 2),
        vision_depth=st.integers(1, 2),
        tied=st.booleans(),
    ),
    layouts=st.lists(st.lists(grids, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple),
    group=st.integers(1, 4),
    length=st.integers(1, 8),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 1000),
)  # fmt: skip


def assert_modes_agree(setup: Setup) -> None:
    with jax.enable_x64(True):
        logp, gradient = compute(setup, "naive", "float64")
        for mode in ("vision_once", "shared"):
            found_logp, found = compute(setup, mode, "float64")
            close(found_logp, logp, 1e-12, mode)
            assert_every_leaf_close(found, gradient, 1e-12)


# Some seconds a shape, for each of them is compiled.
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])
@given(setups)
def test_the_three_ways_agree_in_float64_at_any_shape(setup):
    assert_modes_agree(setup)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(setups)
def test_the_three_ways_agree_in_float64_at_many_shapes(setup):
    assert_modes_agree(setup)


@pytest.fixture(scope="module")
def single():
    """A setup, and the naive way in float32."""
    setup = Setup()
    return setup, compute(setup, "naive", "float32")


@pytest.mark.parametrize("mode", ["vision_once", "shared"])
def test_the_three_ways_agree_in_float32(single, mode):
    setup, (logp, gradient) = single
    found_logp, found = compute(setup, mode, "float32")
    close(found_logp, logp, 1e-5)
    assert distance(found, gradient) < 1e-5


def test_in_bfloat16_no_way_is_further_from_float32_than_the_naive_one():
    """Log-probs and gradient, on average over sets of weights: for a single one, it is chance."""
    setup, seeds = Setup(), range(32)
    compute_exactly = make_compute(setup, "naive", "float32")
    exact = [compute_exactly(seed) for seed in seeds]
    errors = {}
    for mode in MODES:
        rounded = make_compute(setup, mode, "bfloat16")
        errors[mode] = np.array(
            [[distance(*pair) for pair in zip(rounded(i), exact[i], strict=True)] for i in seeds]
        )
    for mode in ("vision_once", "shared"):
        ratio = np.exp(np.log(errors[mode] / errors["naive"]).mean(axis=0))
        assert (ratio < 1.05).all(), f"{mode}: {ratio}"


# Logits


SHALLOW = Setup(config=make_config(heads=2, kv_heads=1, section=(1, 2, 1), depth=1, vision_depth=1))


@pytest.fixture(scope="module")
def in_one_chunk():
    with jax.enable_x64(True):
        return compute(dataclasses.replace(SHALLOW, chunk=108), "shared", "float64")


@pytest.mark.parametrize("chunk", [7, 54, 107])
def test_log_probs_do_not_depend_on_the_chunk(in_one_chunk, chunk):
    """108 tokens: cut in the middle, cut evenly, and one too many for one chunk."""
    with jax.enable_x64(True):
        logp, gradient = compute(dataclasses.replace(SHALLOW, chunk=chunk), "shared", "float64")
    close(logp, in_one_chunk[0], 1e-12)
    assert_every_leaf_close(gradient, in_one_chunk[1], 1e-12)


@pytest.mark.parametrize("name", rl.KL_DIVERGENCES)
def test_entropies_and_divergences_are_those_of_whole_distributions_and_so_are_their_gradients(
    name, x64
):
    """In three chunks, against all logits at once."""
    _, params = random_params(CONFIG)
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
    ref_params = jax.tree.map(lambda leaf: leaf * 1.1 + 0.01, params)
    graphdef, _ = abstract_model(CONFIG, ComputeConfig(dtype="float64", param_dtype="float64"))
    rng = np.random.default_rng(0)
    width, vocabulary = CONFIG.text.hidden_size, CONFIG.text.vocab_size
    hidden, ref_hidden = (jnp.asarray(rng.normal(size=(10, width))) for _ in range(2))
    targets = jnp.asarray(rng.integers(0, vocabulary, 10), jnp.int32)
    weights, others = (jnp.asarray(rng.normal(size=10)) for _ in range(2))

    def chunked(params, hidden):
        reference = Reference(model=merge(graphdef, ref_params), terms=rl.KL_DIVERGENCES[name])
        settings = {"entropy": True, "reference": reference, "ref_hidden": ref_hidden}
        stats = token_stats(merge(graphdef, params), hidden, targets, 4, **settings)
        return weights @ stats.entropy + others @ stats.kl, stats

    def whole(params, hidden):
        models = (merge(graphdef, each).text for each in (params, ref_params))
        logp, ref_logp = (
            jax.nn.log_softmax(text.logits(states, text.head_matrix()))
            for text, states in zip(models, (hidden, ref_hidden), strict=True)
        )
        entropy = -(jnp.exp(logp) * logp).sum(axis=-1)
        one, other = (logp, ref_logp) if name == "full" else (ref_logp, logp)
        kl = (jnp.exp(one) * (one - other)).sum(axis=-1)
        return weights @ entropy + others @ kl, (logp[jnp.arange(10), targets], entropy, kl)

    gradients = functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    found, stats = gradients(chunked)(params, hidden)
    expected, (logp, entropy, kl) = gradients(whole)(params, hidden)
    close(stats.logp, logp, 1e-12)
    close(stats.entropy, entropy, 1e-12)
    close(stats.kl, kl, 1e-12)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(ours, theirs, 1e-12)


LARGE_VOCABULARY = Setup(config=make_config(depth=1, vision_depth=1, text={"vocab_size": 5003}))


def gradient_program(setup: Setup, mode: Mode, dtype: str, whole: bool = False):
    """Log-probs and their gradient, forward and backward, lowered.

    With `whole`, entropies and divergences from a second model too.
    """
    graphdef, params = abstract_model(
        setup.config, ComputeConfig(dtype=dtype, param_dtype="float32")
    )
    prompts = setup.prompts()
    completions = jnp.zeros((len(setup.layouts), setup.group, setup.length), jnp.int32)

    def loss(params):
        model, settings = merge(graphdef, params), {"chunk": setup.chunk, "mode": mode}
        if whole:
            other = merge(graphdef, jax.tree.map(lambda leaf: leaf * 1.1, params))
            settings |= {"entropy": True}
            settings |= {"reference": Reference(model=other, terms=rl.reverse_kl_terms)}
        stats = completion_stats(model, prompts, completions, **settings)
        return sum(each.sum() for each in jax.tree.leaves(stats))

    return jax.jit(jax.value_and_grad(loss)).lower(params)


def largest_buffer(chunk: int, mode: Mode, dtype: str, whole: bool = False) -> int:
    """Numbers in the largest array of the compiled program."""
    setup = dataclasses.replace(LARGE_VOCABULARY, chunk=chunk)
    program = gradient_program(setup, mode, dtype, whole).compile(FAST_TO_COMPILE).as_text()
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program)
    return max(int(np.prod([int(side) for side in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize(
    ("mode", "dtype"), [(mode, "float32") for mode in MODES] + [("shared", "bfloat16")]
)
def test_no_buffer_holds_logits_of_all_tokens_forward_or_backward(mode, dtype):
    assert largest_buffer(12, mode, dtype) < 3 * 4 * 9 * 5003


def test_nor_does_one_where_entropies_and_divergences_are_asked_for():
    assert largest_buffer(12, "shared", "float32", whole=True) < 3 * 4 * 9 * 5003


def test_one_chunk_of_all_tokens_does_hold_their_logits():
    assert largest_buffer(108, "shared", "float32") >= 3 * 4 * 9 * 5003


def test_every_product_of_a_bfloat16_model_is_one_of_bfloat16_by_bfloat16():
    """Backwards too: float32 by bfloat16 is what matrix units do not know."""
    program = gradient_program(Setup(chunk=16), "shared", "bfloat16").as_text()
    products = re.findall(r"dot_general .* : \(tensor<([^>]*)>, tensor<([^>]*)>\)", program)
    assert len(products) > 50
    assert {operand.split("x")[-1] for pair in products for operand in pair} == {"bf16"}


# The gradient of the embeddings


def bfloat16_model(tied: bool):
    config = make_config(tied=tied)
    graphdef, _ = abstract_model(config, ComputeConfig(dtype="bfloat16", param_dtype="float32"))
    return graphdef, random_params(config)[1]


def test_gradients_of_4096_occurrences_of_a_token_add_up_in_float32():
    """4096 times one. In bfloat16 the sum stops at 256: 257 is no number there."""
    graphdef, params = bfloat16_model(tied=True)
    tokens = jnp.full((1, 4096), 7)

    def total(params):
        return merge(graphdef, params).text.embed(tokens).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(params)["text"]["embed"]["embedding"]
    expected = np.zeros_like(gradient)
    expected[7] = 4096
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_1024_chunks_of_logits_add_up_in_float32(tied):
    """All chunks the same, so that the sum is 1024 times one of them: exactly."""
    graphdef, params = bfloat16_model(tied)
    hidden = jnp.ones((4, merge(graphdef, params).config.text.hidden_size), jnp.bfloat16)

    def gradient(copies):
        def total(params):
            rows, targets = jnp.tile(hidden, (copies, 1)), jnp.full(4 * copies, 7)
            return token_logp(merge(graphdef, params), rows, targets, 4).sum()

        found = jax.jit(jax.grad(total))(params)["text"]
        return found["embed"]["embedding"] if tied else found["head"]["kernel"]

    one = gradient(1)
    assert abs(one).max() > 1
    np.testing.assert_array_equal(gradient(1024), 1024 * one)
