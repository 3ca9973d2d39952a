"""Claims of docstrings about memory, traffic and work done once, checked in programs and arrays."""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from othink_jax import rl
from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import ComputeConfig, OptimizerConfig, ParallelConfig, SamplingConfig
from othink_jax.model.attention import SelfMask, reference
from othink_jax.model.linear import Linear
from othink_jax.model.log_probs import Reference, completion_logp, token_stats
from othink_jax.model.vlm import cast_matrices, merge
from othink_jax.sampling import kth_largest, sample
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from othink_jax.training.update import grpo_update
from othink_jax.types import GRPOBatch
from tests.model_cases import make_config, random_case, to_prompts
from tests.programs import equations, inside, products_with, saved, shapes_in
from tests.test_grpo import config_for

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1), text={"vocab_size": 104})
B, G, T = 4, 3, 6
MESH = ParallelConfig(strategy="mesh")


LAYOUTS = ([(1, 2), (2, 2)], [], [(2, 1)], [(1, 1)])  # images of the prompts
RNG = np.random.default_rng(0)
PROMPTS = to_prompts(CONFIG, [random_case(RNG, CONFIG, grids) for grids in LAYOUTS])


@functools.cache
def model(dtype="float32", **settings):
    compute = ComputeConfig(dtype=dtype, param_dtype="float32", **settings)
    return abstract_model(CONFIG, compute)


def completions():
    return jnp.zeros((B, G, T), jnp.int32)


# Attention


def test_keys_are_not_repeated_for_the_heads_that_share_them():
    """Nor in the gradient. Scores are the largest array; repeated keys would have 1540 numbers."""
    B, S, P, KV, R, H = 2, 3, 11, 2, 5, 7
    query, key = jnp.ones((B, S, KV, R, H)), jnp.ones((B, P, KV, H))
    mask = SelfMask(real=jnp.ones((B, P), bool))

    def total(query, key, value):
        return reference.attention(query, key, value, mask).sum()

    made = shapes_in(jax.grad(total, argnums=(0, 1, 2)), query, key, key)
    assert max(map(math.prod, made)) == B * KV * R * S * P == 660


def test_a_prompts_keys_are_not_repeated_for_its_completions():
    B, G, T, P, KV, R, H = 2, 3, 2, 5, 2, 1, 31
    query, prefix = jnp.ones((B, G, T, KV, R, H)), jnp.ones((B, P, KV, H))
    key = jnp.ones((B, G, T, KV, H))

    def total(query, prefix_key, prefix_value, key, value):
        real = jnp.ones((B, P), bool)
        return reference.shared_prefix_attention(
            query, prefix_key, prefix_value, real, key, value
        ).sum()

    made = shapes_in(jax.grad(total, argnums=(0, 1, 2, 3, 4)), query, prefix, prefix, key, key)
    assert max(map(math.prod, made)) == query.size < B * G * P * KV * H


# Linear layers and embeddings


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_one_product_of_two_matrices_however_many_axes_lead(bias):
    graphdef, weights = nnx.split(Linear(5, 7, use_bias=bias, rngs=nnx.Rngs(0)))
    found = equations(lambda w, x: nnx.merge(graphdef, w)(x), weights, jnp.ones((2, 3, 4, 5)))
    products = [each for each in found if each.primitive.name == "dot_general"]
    assert [[v.aval.shape for v in each.invars] for each in products] == [[(24, 5), (5, 7)]]


def casts(found):
    """The shapes of what is cast."""
    return [each.outvars[0].aval.shape for each in found
            if each.primitive.name == "convert_element_type"]  # fmt: skip


def test_rows_of_the_embedding_are_cast_and_not_the_table():
    graphdef, params = model("bfloat16")

    def embed(params):
        return merge(graphdef, params).text.embed(jnp.zeros((2, 3), jnp.int32))

    assert casts(equations(embed, params)) == [(2, 3, CONFIG.text.hidden_size)]


# A prompt and its images once


@pytest.mark.parametrize(
    ("mode", "image_copies", "text_rows"),
    [
        ("naive", G, lambda P: [B * G * (P + T - 1)]),
        ("vision_once", 1, lambda P: [B * G * (P + T - 1)]),
        ("shared", 1, lambda P: [B * P, B * G * (T - 1)]),
    ],
)
def test_each_way_to_log_probs_computes_images_and_prompts_as_often_as_it_says(
    mode, image_copies, text_rows
):
    graphdef, params = model()

    def logp(params):
        return completion_logp(merge(graphdef, params), PROMPTS, completions(), chunk=99, mode=mode)

    found = equations(logp, params)
    images, patches = PROMPTS.patches.shape[1:3]
    opening = params["visual"]["patch_embed"]["kernel"].shape
    assert products_with(opening, found) == [image_copies * B * images * patches]
    gate = params["text"]["layers"][0]["gate"]["kernel"].shape  # `up` has the same shape
    expected = 4 * text_rows(PROMPTS.tokens.shape[1])
    assert sorted(products_with(gate, found)) == sorted(expected)


def drawing(dtype, **settings):
    graphdef, params = model(dtype)

    def draw(params, keys):
        return sample(
            merge(graphdef, params),
            PROMPTS,
            keys,
            group_size=G,
            config=SamplingConfig(max_new_tokens=T, **settings),
            eos_token_ids=[3],
        )

    return draw, params, jax.ShapeDtypeStruct((B, 2), jnp.uint32)


def test_a_rollout_computes_a_prompt_and_its_images_once():
    draw, params, keys = drawing("float32")
    found = equations(draw, params, keys)
    opening = params["visual"]["patch_embed"]["kernel"].shape
    assert len(products_with(opening, found)) == 1
    gate = params["text"]["layers"][0]["gate"]["kernel"].shape
    whole, token = B * PROMPTS.tokens.shape[1], B * G
    assert products_with(gate, found) == 4 * [whole] + 4 * [token]


def test_weights_cast_once_are_not_cast_at_each_token():
    draw, params, keys = drawing("bfloat16")
    kernel = params["text"]["layers"][0]["gate"]["kernel"].shape

    def casts_of_the_loop(params):
        loops = [list(inside(each)) for each in equations(draw, params, keys)
                 if each.primitive.name == "while"]  # fmt: skip
        return casts(max(loops, key=len))

    assert kernel in casts_of_the_loop(params)
    cast = jax.eval_shape(functools.partial(cast_matrices, dtype=jnp.bfloat16), params)
    assert kernel not in casts_of_the_loop(cast)


def test_a_scanned_program_is_no_longer_for_a_deeper_model():
    def length(depth, scan):
        config = make_config(depth=depth, vision_depth=depth)
        graphdef, params = abstract_model(config, ComputeConfig(scan_layers=scan))
        given = to_prompts(config, [random_case(np.random.default_rng(0), config, [(1, 2)])])
        found = equations(lambda params: merge(graphdef, params).prefill(given)[0], params)
        return sum(each.primitive.name == "dot_general" for each in found)

    assert length(2, scan="on") == length(4, scan="on")
    assert length(2, scan="off") < length(4, scan="off")


# Logits


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("tokens", [5, 48], ids=["one chunk", "six chunks"])
def test_no_logits_are_kept_for_the_backward_pass(tokens, whole):
    graphdef, params = model("bfloat16")
    vocabulary = CONFIG.text.vocab_size

    def total(params, hidden):
        targets = jnp.zeros(tokens, jnp.int32)
        settings = {}
        if whole:
            other = Reference(model=merge(graphdef, params), terms=rl.reverse_kl_terms)
            settings = {"entropy": True, "reference": other, "ref_hidden": 0.5 * hidden}
        stats = token_stats(merge(graphdef, params), hidden, targets, 8, **settings)
        return sum(each.sum() for each in jax.tree.leaves(stats))

    hidden = jax.ShapeDtypeStruct((tokens, CONFIG.text.hidden_size), jnp.bfloat16)
    assert not [shape for _, shape in saved(total, params, hidden) if vocabulary in shape]
    made = [shape for shape in shapes_in(total, params, hidden) if vocabulary in shape]
    rows = {shape[0] for shape in made} - {vocabulary, CONFIG.text.hidden_size}
    assert rows == {min(tokens, 8)}


def test_the_largest_k_of_rows_on_many_devices_are_found_without_gathering_them():
    rows = make_parallel(MESH).batch_sharding
    logits = jax.ShapeDtypeStruct((8, 104), jnp.float32, sharding=rows)

    def gathers(fn):
        program = jax.jit(fn, out_shardings=rows).lower(logits).compile().as_text()
        return bool(re.search(r" all-gather\(", program))

    assert not gathers(lambda logits: kth_largest(logits, 5))
    assert gathers(lambda logits: jax.lax.top_k(logits, 5)[0][:, -1:])


# Updates


def test_an_update_takes_one_piece_of_the_prompts_at_a_time():
    """No product of the program has more rows than a piece."""
    graphdef, params = model()
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(rl.constant_kl(0.1)), 3)
    zeros = jnp.zeros((B, G, T))
    batch = GRPOBatch(prompts=PROMPTS, completions=completions(), mask=zeros == 0,
                      advantages=zeros[..., 0], ref_logp=zeros)  # fmt: skip

    def logp(params, batch):
        model = merge(graphdef, params)
        return completion_logp(model, batch.prompts, batch.completions, chunk=99)

    def update(state, batch, pieces):
        config = config_for(Path("unused")).loss
        return grpo_update(state, batch, logp_fn=logp, tx=tx, config=config, micro_batches=pieces)

    state = jax.eval_shape(functools.partial(TrainState.create, tx=tx), params)
    opening = params["visual"]["patch_embed"]["kernel"].shape
    patches = math.prod(PROMPTS.patches.shape[:3])
    for pieces in (1, 2):
        found = equations(functools.partial(update, pieces=pieces), state, batch)
        assert products_with(opening, found) == [patches // pieces]
