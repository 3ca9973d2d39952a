"""Every kernel of attention gives the reference's values and gradients."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig
from othink_jax.errors import UserError
from othink_jax.model import attention as rooms
from othink_jax.model.attention import SelfMask, check_attention, chunked, cudnn, reference, splash
from othink_jax.model.config import WindowsConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from tests.model_cases import VOCAB, make_config, random_case, random_params, to_prompts
from tests.programs import shapes_in

B, G, T, P, KV, R, H = 2, 3, 37, 40, 2, 2, 8
LENGTHS = [P, 29]  # of the prompts

REAL = jnp.arange(P)[None] < jnp.array(LENGTHS)[:, None]
MASKS = {
    "prompts": SelfMask(real=REAL, causal=True),
    "images": SelfMask(real=REAL),
    "windows": SelfMask(real=REAL, windows=jnp.arange(P)[None] // 7 % 3 + jnp.zeros((B, 1), int)),
}
OF_PLATFORM = {"tpu": "splash", "gpu": "cudnn", "cpu": "chunked"}


@pytest.fixture(autouse=True)
def few_scores_at_a_time(monkeypatch):
    """So that these small cases take several blocks."""
    monkeypatch.setattr(chunked, "_SCORES", G * KV * R * (P + T) * 16)
    monkeypatch.setattr(chunked, "_FEWEST", 16)


def normal(*shape, seed, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def of_tokens(dtype="float32"):
    shapes = (B, P, KV, R, H), (B, P, KV, H), (B, P, KV, H)
    return tuple(normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


def of_completions(dtype="float32"):
    """Query, prefix keys and values, own keys and values."""
    shapes = (B, G, T, KV, R, H), (B, P, KV, H), (B, P, KV, H), (B, G, T, KV, H), (B, G, T, KV, H)
    return tuple(normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


def over_tokens(kernel, mask, **options):
    def run(query, key, value):
        return kernel.attention(query, key, value, mask, **options)

    return run


def over_prefix(kernel, **options):
    def run(query, prefix_key, prefix_value, key, value):
        return kernel.shared_prefix_attention(
            query, prefix_key, prefix_value, REAL, key, value, **options
        )

    return run


def results(run, given, real=None):
    """Values and gradients of all that is given; of padding, whose values nobody uses, neither."""
    weight = normal(*given[0].shape, seed=9)
    if real is not None:
        weight = jnp.where(real[:, :, None, None, None], weight, 0.0)

    @jax.jit
    def both(*given):
        def loss(*given):
            made = run(*given)
            return (made.astype(jnp.float32) * weight).sum(), jnp.where(weight == 0, 0, made)

        gradients, made = jax.grad(loss, argnums=range(len(given)), has_aux=True)(*given)
        return made, *gradients

    return jax.device_get(both(*given))


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0.01
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def asked_of_xla(*given, ask=jax.nn.dot_product_attention, implementation, **settings):
    assert implementation == "cudnn"
    return ask(*given, implementation="xla", **settings)


def by_xla(name):
    """What is asked of cuDNN, of XLA, which knows the same function."""

    def run(*given):
        with mock.patch("jax.nn.dot_product_attention", asked_of_xla):
            return getattr(cudnn, name)(*given)

    return run


KERNELS = {
    "chunked": (chunked, {}),
    "splash": (splash, {"interpret": True}),
    "cudnn": (
        types.SimpleNamespace(
            attention=by_xla("attention"),
            shared_prefix_attention=by_xla("shared_prefix_attention"),
        ),
        {},
    ),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


@every_kernel
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_tokens_attend_as_in_the_reference(name, mask):
    kernel, options = KERNELS[name]
    found = results(over_tokens(kernel, mask, **options), of_tokens(), REAL)
    assert_equal(found, results(over_tokens(reference, mask), of_tokens(), REAL))


@every_kernel
def test_completions_attend_as_in_the_reference(name):
    kernel, options = KERNELS[name]
    found = results(over_prefix(kernel, **options), of_completions())
    assert_equal(found, results(over_prefix(reference), of_completions()))


@every_kernel
def test_bfloat16_is_no_farther_from_float32_than_the_reference_is(name):
    kernel, options = KERNELS[name]
    given = of_completions("bfloat16")
    exact = results(over_prefix(reference), [x.astype("float32") for x in given])

    def errors(run):
        return [
            np.sqrt(np.mean((np.float32(one) - other) ** 2))
            for one, other in zip(results(run, given), exact, strict=True)
        ]

    for ours, theirs in zip(
        errors(over_prefix(kernel, **options)), errors(over_prefix(reference)), strict=True
    ):
        assert ours <= 1.1 * theirs


@every_kernel
def test_an_image_that_is_all_padding_gets_finite_numbers(name):
    kernel, options = KERNELS[name]
    mask = SelfMask(real=jnp.zeros((B, P), bool))
    for made in results(over_tokens(kernel, mask, **options), of_tokens()):
        assert np.isfinite(made).all()


def test_no_more_scores_exist_than_those_of_a_block():
    """Of one prompt, forward and backward: the largest array has a block's."""
    made = shapes_in(
        jax.grad(lambda *given: over_prefix(chunked)(*given).sum(), argnums=range(5)),
        *of_completions(),
    )
    block = G * KV * R * 16
    scores = [shape for shape in made if {P, T} & set(shape[-1:]) and len(shape) == 6]
    assert scores
    assert max(np.prod(shape) // shape[-1] for shape in scores) == block


# cuDNN: without a GPU, what is asked of it can be read at least.


def asked_of_cudnn(run, given, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)

    def total(*given):
        return run(*given).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total, argnums=range(len(given)))).trace(*given)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return [line for line in text.splitlines() if "custom_call @__cudnn" in line]


def test_cudnn_is_asked_once_forward_and_once_backward(monkeypatch):
    """With a mask where one is needed; of an odd number of tokens, cuDNN would have no graph."""
    for run, given, mask in (
        (over_tokens(cudnn, MASKS["prompts"]), of_tokens("bfloat16"), None),
        (over_tokens(cudnn, MASKS["windows"]), of_tokens("bfloat16"), (B, 1, P, P)),
        (over_prefix(cudnn), of_completions("bfloat16"), (B, 1, T + 1, P + T + 1)),
    ):
        asked = asked_of_cudnn(run, given, monkeypatch)
        assert len(asked) == 2
        if mask is not None:
            assert all(f"tensor<{'x'.join(map(str, mask))}xbf16>" in line for line in asked)


# The choice


@pytest.mark.parametrize("platform", OF_PLATFORM)
def test_auto_takes_the_kernel_of_the_platform_where_scores_are_many(platform, monkeypatch):
    taken = []

    def record(name):
        def run(query, *_, **__):
            taken.append(name)
            return query

        return run

    for name, kernel in rooms._KERNELS.items():
        for function in ("attention", "shared_prefix_attention"):
            monkeypatch.setattr(kernel, function, record(name))
    compute = ComputeConfig(platform=platform, dtype="bfloat16")
    query, *keys = of_completions("bfloat16")
    for few in (10**9, 10):
        monkeypatch.setattr(rooms, "_FEW", few)
        rooms.shared_prefix_attention(query, *keys[:2], REAL, *keys[2:], compute)
        rooms.attention(*of_tokens("bfloat16"), MASKS["images"], compute)
    assert taken == ["reference"] * 2 + [OF_PLATFORM[platform]] * 2


def test_an_attention_that_the_platform_has_not_is_refused():
    for name, where in (("splash", "gpu"), ("cudnn", "cpu")):
        with pytest.raises(
            UserError, match=f"--attention {name} is of .*s, but this runs on a {where}"
        ):
            check_attention(ComputeConfig(attention=name, platform=where, dtype="bfloat16"))
    with pytest.raises(UserError, match="--attention cudnn needs --dtype bfloat16, not float32"):
        check_attention(ComputeConfig(attention="cudnn", platform="gpu"))
    for platform, name in OF_PLATFORM.items():
        check_attention(ComputeConfig(attention=name, platform=platform, dtype="bfloat16"))


# A whole model


CONFIGS = {
    "Qwen2-VL": make_config(depth=1, vision_depth=1),
    "Qwen2.5-VL": make_config(
        depth=1,
        vision_depth=2,
        family="qwen2_5_vl",
        vision={"windows": WindowsConfig(window_size=8, full_layers=(1,))},
    ),
    "Qwen3-VL": make_config(depth=2, vision_depth=1, family="qwen3_vl"),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_has_the_log_probs_and_gradients_of_the_reference(family):
    """M-RoPE, ragged prompts and completions, images of several sizes and a prompt without any."""
    config = CONFIGS[family]
    _, params = random_params(config)
    rng = np.random.default_rng(0)
    prompts = to_prompts(
        config, [random_case(rng, config, grids) for grids in ([(2, 3), (1, 2)], [], [(3, 1)])]
    )
    completions = rng.integers(0, VOCAB - 10, (3, 2, 5)).astype(np.int32)
    weight = normal(*completions.shape, seed=3)

    def gradient(name):
        compute = ComputeConfig(attention=name, platform="cpu")
        graphdef, _ = abstract_model(config, compute)

        @jax.jit
        def run(params):
            def loss(params):
                logp = completion_logp(merge(graphdef, params), prompts, completions, chunk=64)
                return (logp * weight).sum(), logp

            return jax.grad(loss, has_aux=True)(params)

        return jax.device_get(run(params))

    expected, found = gradient("reference"), gradient("chunked")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))
