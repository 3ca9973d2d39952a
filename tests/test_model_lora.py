"""Low-rank adapters in the model: their sum, their beginning, scanned layers, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig, LoRAConfig
from othink_jax.errors import UserError
from othink_jax.model.linear import Linear
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.sharding import partition
from othink_jax.model.stack import match_layout
from othink_jax.model.vlm import merge
from othink_jax.training.partial import fresh_adapters, merge_params
from tests.model_cases import make_config, random_case, random_params, to_prompts
from tests.programs import equations

CONFIG = make_config()
LORA = LoRAConfig(lora_rank=3, lora_alpha=6.0)


def make_case():
    rng = np.random.default_rng(0)
    prompts = to_prompts(CONFIG, [random_case(rng, CONFIG, grids) for grids in ([(2, 3)], [])])
    return prompts, jnp.asarray(rng.integers(0, 80, (2, 2, 4)), jnp.int32)


CASE = make_case()


def random_adapters(seed: int = 0):
    """Adapters whose sum is about as large as the kernels it is added to."""
    rng = np.random.default_rng(seed)
    adapters = fresh_adapters(CONFIG, LORA, seed=seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0]), leaf.dtype),
        adapters,
    )


def logp(params, *, lora=LORA, dtype="float32", **settings):
    graphdef, _ = abstract_model(CONFIG, ComputeConfig(dtype=dtype, lora=lora, **settings))
    compute = jax.jit(lambda params: completion_logp(merge(graphdef, params), *CASE, chunk=64))
    return np.asarray(compute(params))


def test_a_layer_adds_the_scaled_product_of_its_factors():
    layer = Linear(5, 4, rngs=nnx.Rngs(0), lora=LORA)
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 5), (5, 3), (3, 4)))
    layer.lora_a[...], layer.lora_b[...], layer.bias[...] = a, b, jnp.arange(4.0)
    expected = x @ (np.asarray(layer.kernel[...]) + 2.0 * a @ b) + np.arange(4.0)  # 6 / 3
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=1e-5)


def test_products_with_a_kernel_and_with_its_adapter_share_no_operand():
    """Else compilers for GPUs merge them, and write both matrices side by side at each token."""
    layer = Linear(4, 6, rngs=nnx.Rngs(0), use_bias=False, lora=LORA)
    found = equations(layer, jnp.ones((5, 4)))
    inputs = [each.invars[0] for each in found if each.primitive.name == "dot_general"]
    assert len(inputs) == len(set(inputs)) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_do_not_change_a_bit(dtype):
    _, params = random_params(CONFIG)
    fresh = fresh_adapters(CONFIG, LORA, seed=0)
    adapted = logp(merge_params(params, fresh), dtype=dtype)
    np.testing.assert_array_equal(adapted, logp(params, lora=None, dtype=dtype))


def test_adapters_begin_as_pefts_do_and_by_their_seed():
    """A uniform within 1 / sqrt(inputs), B zero; f32, and no two alike."""
    first, second = (fresh_adapters(CONFIG, LORA, seed=seed) for seed in (0, 1))
    found = {}
    for path, leaf in jax.tree.leaves_with_path(first):
        assert leaf.dtype == jnp.float32
        if path[-1].key == "lora_b":
            np.testing.assert_array_equal(leaf, 0)
            continue
        bound = leaf.shape[0] ** -0.5
        assert 0.8 * bound < np.abs(leaf).max() <= bound
        np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.2)
        found[np.asarray(leaf).tobytes()] = path
    assert len(found) == 7 * CONFIG.text.num_hidden_layers
    jax.tree.map(np.testing.assert_array_equal, first, fresh_adapters(CONFIG, LORA, seed=0))
    gate = [tree["text"]["layers"][0]["gate"]["lora_a"] for tree in (first, second)]
    assert (gate[0] != gate[1]).mean() > 0.9


def test_adapters_change_prompts_and_completions_as_the_kernels_they_are_added_to_would():
    _, params = random_params(CONFIG)
    adapters = random_adapters()
    merged = jax.tree.map(jnp.copy, params)
    for number, block in adapters["text"]["layers"].items():
        for name, layer in block.items():
            added = LORA.scale * layer["lora_a"] @ layer["lora_b"]
            merged["text"]["layers"][number][name]["kernel"] += added
    ours = logp(merge_params(params, adapters))
    np.testing.assert_allclose(ours, logp(merged, lora=None), rtol=0, atol=1e-4)
    assert np.abs(ours - logp(params, lora=None)).mean() > 0.1


def test_scanned_layers_have_the_adapters_of_unrolled_ones():
    _, params = random_params(CONFIG)
    params = merge_params(params, random_adapters())
    _, like = abstract_model(CONFIG, ComputeConfig(scan_layers="on"))
    made = logp(match_layout(params, like=like), scan_layers="on", remat="layer")
    np.testing.assert_allclose(made, logp(params), rtol=0, atol=1e-5)


def test_an_adapter_is_cut_with_the_kernel_it_is_added_to():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))

    def spec(layer, parameter, shape):
        path = jax.tree_util.tree_flatten_with_path({layer: {parameter: 0}})[0][0][0]
        return partition(path, shape, mesh).spec

    assert spec("q", "lora_a", (8, 16)) == P("fsdp", None)
    assert spec("q", "lora_b", (16, 8)) == P(None, "tensor")
    assert spec("down", "lora_a", (8, 16)) == P("tensor", None)
    assert spec("down", "lora_b", (16, 8)) == P(None, "fsdp")


def test_settings_that_make_no_adapter_are_refused():
    with pytest.raises(UserError, match="lora_rank must be >= 1, got 0"):
        LoRAConfig(lora_rank=0)
    with pytest.raises(UserError, match="lora_alpha must be > 0 and finite, got inf"):
        LoRAConfig(lora_alpha=float("inf"))
