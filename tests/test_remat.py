"""Residuals that each layer keeps under `--remat none`, `dots` and `layer`."""

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig, LoRAConfig
from othink_jax.model.config import WindowsConfig
from othink_jax.model.precision import wide_einsum
from othink_jax.model.vlm import merge
from tests.model_cases import make_config
from tests.programs import equations, numbers, saved

RANK = 3
B, P, G, T = 2, 11, 4, 5  # prompts, their tokens, completions, their tokens
N, K = 2, 12  # images, patches
GATED = {"windows": WindowsConfig(window_size=16, full_layers=(1,))}
GIVEN = {(B, P, 1, 8), ()}  # a prompt's keys and values, and whether a layer sees beyond a window
# Of the shapes below: width, that of keys and values, that of the MLP.
TEXT, KV, MLP = 16, 8, 48
VISION, VISION_MLP = 32, 64


def model_of(depth, remat, dtype, *, scan, lora=None, **shape):
    config = make_config(
        heads=2, kv_heads=1, section=(1, 2, 1), depth=depth, vision_depth=depth, **shape
    )
    return abstract_model(
        config,
        ComputeConfig(
            dtype=dtype,
            param_dtype="float32",
            scan_layers=scan,
            remat=remat,
            lora=lora,
        ),
    )


def prefill(graphdef, dtype):
    def run(params, x):
        positions = jnp.broadcast_to(jnp.arange(P), (B, 3, P))
        return merge(graphdef, params).text.prefill(x, positions, jnp.ones((B, P), bool))

    return run, jax.ShapeDtypeStruct((B, P, TEXT), dtype)


def extend(graphdef, dtype):
    def run(params, x):
        text = merge(graphdef, params).text
        keys = jnp.ones((B, P, 1, 8), dtype)
        prefix = ((keys, keys),) * text.config.num_hidden_layers
        positions = jnp.broadcast_to(jnp.arange(T), (B, 1, 3, T))
        return text.extend(x, positions, prefix, jnp.ones((B, P), bool), None, 0)

    return run, jax.ShapeDtypeStruct((B, G, T, TEXT), dtype)


def encode(graphdef, dtype):
    def run(params, x):
        positions = jnp.ones((N, K, 2), jnp.int32)
        return merge(graphdef, params).visual(x, positions, jnp.ones((N, K), bool))

    return run, jax.ShapeDtypeStruct((N, K, 96), dtype)


def kept_by_a_layer(make, remat, dtype, *, scan, **settings):
    """Residuals that one more layer adds to a model, as arrays of one layer."""

    def kept(depth):
        graphdef, params = model_of(depth, remat, dtype, scan=scan, **settings)
        run, x = make(graphdef, dtype)
        return saved(lambda params, x: run(params, x)[0], params, x)

    if scan == "off":
        return kept(2) - kept(1)
    # Of a scan, each array holds those of all layers; what each layer was given is among them.
    rows = {(dtype, shape[1:]): n for (dtype, shape), n in kept(7).items() if shape[0] == 7}
    return Counter({array: n for array, n in rows.items() if array[1] not in GIVEN})


def arrays(dtype, leading, *widths):
    short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    return Counter((short, (*leading, width)) for width in widths)


TEXT_LINEARS = (TEXT, KV, KV, TEXT, MLP, MLP)  # q, k, v, o, gate, up; nothing needs what down gives
CASES = {
    "a prompt": (prefill, (B, P), TEXT, TEXT_LINEARS, {}),
    "completions": (extend, (B, G, T), TEXT, TEXT_LINEARS, {}),
    "images": (encode, (N, K), VISION, (3 * VISION, VISION, VISION_MLP), {}),  # qkv, proj, fc1
    "images, gated": (
        *(encode, (N, K), VISION, (3 * VISION, VISION, VISION_MLP, VISION_MLP)),
        {"family": "qwen2_5_vl", "vision": GATED},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_layout = pytest.mark.parametrize("scan", ["off", "on"], ids=["unrolled", "scanned"])


@every_case
@every_layout
def test_layer_keeps_the_input_of_a_layer_alone(case, scan):
    make, leading, width, _, settings = case
    kept = kept_by_a_layer(make, "layer", "bfloat16", scan=scan, **settings)
    assert kept == arrays("bfloat16", leading, width)


@every_case
@pytest.mark.parametrize(
    ("scan", "dtype"), [("off", "float32"), ("off", "bfloat16"), ("on", "bfloat16")]
)
def test_dots_keeps_what_linear_layers_put_out_too(case, scan, dtype):
    """With a bias and without, in the dtype of the computation, and nothing else."""
    make, leading, width, linears, settings = case
    kept = kept_by_a_layer(make, "dots", dtype, scan=scan, **settings)
    assert kept == arrays(dtype, leading, width, *linears)


@pytest.mark.parametrize(
    ("make", "leading"), [(prefill, (B, P)), (extend, (B, G, T))], ids=["a prompt", "completions"]
)
def test_dots_keeps_what_adapters_put_out_and_their_low_rank_inputs(make, leading):
    lora = LoRAConfig(lora_rank=RANK)
    kept = kept_by_a_layer(make, "dots", "bfloat16", scan="off", lora=lora)
    low = arrays("bfloat16", (math.prod(leading),), *[RANK] * 7)
    assert kept == arrays("bfloat16", leading, TEXT, *TEXT_LINEARS) + low
    kept = kept_by_a_layer(make, "layer", "bfloat16", scan="off", lora=lora)
    assert kept == arrays("bfloat16", leading, TEXT)


@pytest.mark.parametrize(("make", "scan"), [(prefill, "off"), (extend, "on"), (encode, "on")])
def test_none_keeps_more_than_dots(make, scan):
    none, dots = (kept_by_a_layer(make, remat, "float32", scan=scan) for remat in ("none", "dots"))
    assert numbers(none) > 2 * numbers(dots)


@pytest.mark.parametrize(
    ("scan", "rank", "again"),
    # q, k, v, o, gate and up; with adapters three products each, and the first of down's.
    [(False, None, 6), (True, None, 6), (False, RANK, 3 * 6 + 1)],
    ids=["unrolled", "scanned", "adapters"],
)
def test_dots_computes_no_product_with_weights_again(scan, rank, again):
    lora = None if rank is None else LoRAConfig(lora_rank=rank)

    def products(remat):
        graphdef, params = model_of(2, remat, "bfloat16", scan=scan, lora=lora)
        run, x = prefill(graphdef, "bfloat16")
        gradient = jax.grad(lambda *given: run(*given)[0].astype(jnp.float32).sum(), argnums=(0, 1))
        # Those of attention have three axes or more.
        return sum(
            each.primitive.name == "dot_general" and each.invars[1].aval.ndim == 2
            for each in equations(gradient, params, x)
        )

    none, dots, layer = map(products, ("none", "dots", "layer"))
    assert dots == none
    assert layer == none + again * (1 if scan == "on" else 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wide_product_keeps_its_operands_alone(dtype):
    x, y = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((5, 6), (6, 7)))
    assert not saved(functools.partial(wide_einsum, "ni,io->no"), x, y)
