"""A model cut over a mesh of devices: every layer by its rule, and the numbers of one device."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from othink_jax import rl
from othink_jax.config import LossConfig, OptimizerConfig, ParallelConfig, SamplingConfig
from othink_jax.errors import UserError
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.qwen2_vl import merge
from othink_jax.model.sharding import partition
from othink_jax.sampling import prompt_keys, sample
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from othink_jax.training.update import grpo_update
from othink_jax.types import GRPOBatch
from tests.model_cases import VOCAB, make_config, random_case, random_params, to_prompts

CONFIG = make_config(depth=1, vision_depth=1, text={"vocab_size": 104})
GRAPHDEF, PARAMS = random_params(CONFIG)
ONE = ParallelConfig(strategy="jit")
PMAP = ParallelConfig(strategy="pmap")
MESHES = [ParallelConfig(strategy="mesh"), ParallelConfig(strategy="mesh", tensor=2)]
B, G, T = 8, 2, 5


def optimizer():
    # A large eps: with the usual one, Adam makes a full step of the rounding of a gradient near 0.
    config = OptimizerConfig(learning_rate=1e-3, eps=1e-4, weight_decay=0.1)
    return make_optimizer(config, rl.dynamic_kl(0.1, 1.0, 3), 3)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    grids = [[(2, 3)], [], [(1, 1), (3, 1)], [(1, 2)]] * 2
    prompts = to_prompts(CONFIG, [random_case(rng, CONFIG, each) for each in grids])
    return GRPOBatch(
        prompts=jax.tree.map(np.asarray, prompts),
        completions=rng.integers(0, VOCAB - 10, (B, G, T)).astype(np.int32),
        mask=np.arange(T) < rng.integers(1, T + 1, (B, G, 1)),
        advantages=rng.normal(size=(B, G)).astype(np.float32),
        ref_logp=-rng.uniform(1, 4, (B, G, T)).astype(np.float32),
    )


def logp(params, batch):
    return completion_logp(merge(GRAPHDEF, params), batch.prompts, batch.completions, chunk=32)


@functools.cache
def train(config, micro_batches=1):
    """Three updates; the host's copy of the state."""
    parallel, tx = make_parallel(config), optimizer()
    update = parallel.update(
        functools.partial(
            grpo_update, logp_fn=logp, tx=tx, config=LossConfig(), micro_batches=micro_batches
        )
    )
    state = parallel.replicate(TrainState.create(PARAMS, tx))
    for _ in range(3):
        state, _ = update(state, parallel.shard(batch()))
    return jax.device_get(parallel.unreplicate(state))


@pytest.mark.parametrize(
    ("config", "micro_batches"),
    [(PMAP, 1), (MESHES[0], 1), (MESHES[1], 1), (MESHES[1], 2)],
    ids=["pmap", "fsdp 8", "fsdp 4 x tensor 2", "fsdp 4 x tensor 2, two micro-batches"],
)
def test_three_updates_give_the_parameters_of_one_device(config, micro_batches):
    one, other = train(ONE), train(config, micro_batches)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), one.params, PARAMS)
    assert min(jax.tree.leaves(moved)) > 1e-4
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), other, one)


@functools.cache
def drawing(config, temperature):
    """The compiled sampler, and what it takes."""
    parallel = make_parallel(config)

    def sampler(params, prompts, keys):
        return sample(
            merge(GRAPHDEF, params),
            prompts,
            keys,
            group_size=G,
            config=SamplingConfig(max_new_tokens=T, temperature=temperature),
            eos_token_ids=range(3, 30),  # so that rows end at different times
        )

    weights = parallel.whole(parallel.replicate(PARAMS))
    given = weights, *parallel.shard((batch().prompts, prompt_keys(0, 1, B)))
    return parallel.apply(sampler).lower(*given).compile(), given


def draw(config, temperature):
    program, given = drawing(config, temperature)
    return make_parallel(config).gather(program(*given))


@pytest.mark.parametrize("config", MESHES, ids=["fsdp 8", "fsdp 4 x tensor 2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cut_model_draws_the_tokens_of_a_whole_one(config, temperature):
    one, other = draw(ONE, temperature), draw(config, temperature)
    np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_allclose(other.logp, one.logp, rtol=0, atol=1e-5)


def test_to_decode_layers_are_put_together_but_for_the_tensor_axis():
    parallel = make_parallel(MESHES[1])
    whole = parallel.whole(parallel.replicate(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), PARAMS)
    layer = whole["text"]["layers"][0]
    assert layer["q"]["kernel"].addressable_shards[0].data.size * 2 == layer["q"]["kernel"].size
    for leaf, place in zip(
        jax.tree.leaves(whole), jax.tree.leaves(parallel.decoding(whole)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_no_device_asks_others_for_numbers_while_it_decodes():
    """But whether all completions are done."""
    program, _ = drawing(MESHES[0], 1.0)
    exchanged = re.findall(r"= (\w+)\[.*\]\S* (?:all-\w+|collective-\w+)\(", program.as_text())
    assert set(exchanged) == {"pred"}


@pytest.mark.parametrize("config", MESHES, ids=["fsdp 8", "fsdp 4 x tensor 2"])
def test_a_cut_model_gives_the_log_probs_of_a_whole_one(config):
    parallel = make_parallel(config)
    placed = parallel.apply(logp)(parallel.replicate(PARAMS), parallel.shard(batch()))
    expected = jax.jit(logp)(PARAMS, batch())
    np.testing.assert_allclose(parallel.gather(placed), expected, rtol=0, atol=1e-5)


def test_layers_are_cut_by_their_rules_and_moments_with_them():
    parallel, tx = make_parallel(MESHES[1]), optimizer()
    state = parallel.replicate(TrainState.create(PARAMS, tx))
    (moments,) = (s for s in jax.tree.leaves(state.opt_state, is_leaf=_has_mu) if _has_mu(s))
    for tree in (state.params, moments.mu, moments.nu):
        text, vision = tree["text"]["layers"][0], tree["visual"]["layers"][0]
        assert _spec(text["q"]["kernel"]) == P("fsdp", "tensor")
        assert _spec(text["o"]["kernel"]) == P("tensor", "fsdp")
        assert _spec(text["q"]["bias"]) == P("tensor")
        assert _spec(vision["fc2"]["bias"]) == P(None)
        assert _spec(vision["norm1"]["bias"]) == P(None)
        assert _spec(tree["text"]["embed"]["embedding"]) == P("tensor", "fsdp")
    assert _spec(state.step) == P()
    kernel = state.params["text"]["layers"][0]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_what_does_not_divide_stays_whole_and_scanned_layers_are_cut_alike():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    path = jax.tree_util.tree_flatten_with_path({"gate": {"kernel": 0}})[0][0][0]
    assert partition(path, (8, 6), mesh).spec == P("fsdp", "tensor")
    assert partition(path, (6, 6), mesh).spec == P(None, "tensor")
    assert partition(path, (28, 8, 7), mesh).spec == P(None, "fsdp", None)


def test_the_state_is_overwritten_in_place():
    parallel, tx = make_parallel(MESHES[1]), optimizer()
    update = parallel.update(
        functools.partial(grpo_update, logp_fn=logp, tx=tx, config=LossConfig())
    )
    state = parallel.replicate(TrainState.create(PARAMS, tx))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    program = update.lower(state, parallel.shard(batch())).compile()
    assert program.memory_analysis().alias_size_in_bytes == held
    new, _ = program(state, parallel.shard(batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert before.sharding.is_equivalent_to(after.sharding, after.ndim)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="8 devices, 8 a process, do not divide by --tensor 3"):
        make_parallel(ParallelConfig(strategy="mesh", tensor=3))
    with pytest.raises(UserError, match="--tensor 2 needs --strategy mesh"):
        ParallelConfig(strategy="pmap", tensor=2)
    with pytest.raises(UserError, match="6 prompts do not divide over 4 devices"):
        make_parallel(MESHES[1]).check_batch(6)


def _has_mu(node):
    return hasattr(node, "mu")


def _spec(leaf):
    return leaf.sharding.spec
