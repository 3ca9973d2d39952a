"""A model cut over a mesh of devices: every layer by its rule, and the numbers of one device."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from othink_jax import rl
from othink_jax.checkpoint.load import abstract_model
from othink_jax.config import (
    ComputeConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
)
from othink_jax.errors import UserError
from othink_jax.model.config import WindowsConfig
from othink_jax.model.linear import Linear
from othink_jax.model.log_probs import Reference, completion_logp, completion_stats
from othink_jax.model.sharding import cut_of, partition
from othink_jax.model.vlm import VLM, merge
from othink_jax.plan.hlo import Program
from othink_jax.sampling import prompt_keys, sample
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from othink_jax.training.update import grpo_update
from othink_jax.types import GRPOBatch
from tests.model_cases import VOCAB, make_config, random_case, random_params, to_prompts

CONFIG = make_config(depth=1, vision_depth=1, text={"vocab_size": 104})
WINDOWED = make_config(
    depth=1,
    vision_depth=1,
    family="qwen2_5_vl",
    vision={"windows": WindowsConfig(window_size=8, full_layers=(0,))},
)
GRAPHDEF, PARAMS = random_params(CONFIG)
ONE = ParallelConfig(strategy="jit")
PMAP = ParallelConfig(strategy="pmap")
MESHES = [ParallelConfig(strategy="mesh"), ParallelConfig(strategy="mesh", tensor=2)]
B, G, T = 8, 2, 5


def optimizer():
    # A large eps: with the usual one, Adam makes a full step of the rounding of a gradient near 0.
    config = OptimizerConfig(learning_rate=1e-3, eps=1e-4, weight_decay=0.1)
    return make_optimizer(config, rl.carry_kl_coef(rl.dynamic_kl(0.1, 1.0, 3)), 3)


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


def stats(params, batch, graphdef=GRAPHDEF):
    model = merge(graphdef, params)
    return completion_stats(model, batch.prompts, batch.completions, chunk=32, entropy=True)


def stats_with_kl(params, batch, graphdef=GRAPHDEF):
    own = {name: part for name, part in params.items() if name != "reference"}
    model, other = merge(graphdef, own), merge(graphdef, params["reference"])
    reference = Reference(model=other, terms=rl.forward_kl_terms)
    given = batch.prompts, batch.completions
    return completion_stats(model, *given, chunk=32, reference=reference)


def logp(params, batch, graphdef=GRAPHDEF):
    return completion_logp(merge(graphdef, params), batch.prompts, batch.completions, chunk=32)


def train(
    config,
    micro_batches=1,
    model=(GRAPHDEF, PARAMS),
    updates=3,
    logp=logp,
    control=(),
    reference=None,
):
    """Some updates; the host's copy of the state, and the metrics of the last update."""
    parallel, tx = make_parallel(config), optax.chain(optimizer(), *control)

    def of_rows(state, given, *, axis_name):
        frozen, rows = given
        return grpo_update(
            state,
            rows,
            logp_fn=functools.partial(logp, graphdef=model[0]),
            tx=tx,
            config=LossConfig(),
            frozen=frozen,
            micro_batches=micro_batches,
            axis_name=axis_name,
        )

    update, rows, frozen = parallel.compile_update(of_rows), batch(), {}
    if reference is not None:
        frozen = {"reference": parallel.replicate(reference)}
        rows = dataclasses.replace(rows, ref_logp=None)
    state = parallel.replicate(TrainState.create(model[1], tx))
    for _ in range(updates):
        state, metrics = update(state, (frozen, parallel.shard(rows)))
    return jax.device_get((parallel.unreplicate(state), metrics))


def assert_same(one, other):
    """States and metrics."""
    for x, y in zip(one, other, strict=True):
        settings = {"rtol": 0 if x is one[0] else 1e-5, "atol": 1e-6}
        jax.tree.map(functools.partial(np.testing.assert_allclose, **settings), y, x)


@functools.cache
def trained_on_one():
    return train(ONE)


@pytest.mark.parametrize(
    ("config", "micro_batches"),
    [(PMAP, 1), (MESHES[0], 1), (MESHES[1], 1), (MESHES[1], 2)],
    ids=["pmap", "fsdp 8", "fsdp 4 x tensor 2", "fsdp 4 x tensor 2, two micro-batches"],
)
def test_three_updates_give_the_parameters_of_one_device(config, micro_batches):
    one, other = trained_on_one(), train(config, micro_batches)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), one[0].params, PARAMS)
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert_same(one, other)


def test_an_entropy_bonus_is_that_of_one_device_where_the_vocabulary_is_cut():
    settings = {"updates": 1, "logp": stats}
    with_bonus = settings | {"control": [rl.carry_entropy_coef(5.0)]}
    one, other = (train(config, **with_bonus) for config in (ONE, MESHES[1]))
    without = train(ONE, **settings | {"logp": logp})
    changed = jax.tree.map(lambda x, y: np.abs(x - y).max(), one[0].params, without[0].params)
    assert min(jax.tree.leaves(changed)) > 1e-5
    assert_same(one, other)


def test_a_kl_over_a_vocabulary_that_is_cut_is_that_of_one_device():
    reference = jax.tree.map(lambda leaf: 1.1 * leaf + 0.01, PARAMS)
    settings = {"updates": 1, "logp": stats_with_kl, "reference": reference}
    one, other = (train(config, **settings) for config in (ONE, MESHES[1]))
    without = train(ONE, **settings | {"reference": PARAMS})
    changed = jax.tree.map(lambda x, y: np.abs(x - y).max(), one[0].params, without[0].params)
    assert min(jax.tree.leaves(changed)) > 1e-5
    assert_same(one, other)


@pytest.mark.parametrize("config", MESHES, ids=["fsdp 8", "fsdp 4 x tensor 2"])
def test_heads_that_are_normed_and_states_of_several_layers_are_those_of_one_device(config):
    """Qwen3-VL, with fewer key-value heads than devices."""
    shape = make_config(
        kv_heads=1, depth=2, vision_depth=2, family="qwen3_vl", text={"vocab_size": 104}
    )
    model = random_params(shape)
    one, other = (train(each, model=model, updates=1) for each in (ONE, config))
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), one[0].params, model[1])
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert_same(one, other)


@pytest.mark.parametrize(("kv_heads", "tied"), [(1, True), (2, False)])
def test_devices_share_what_does_not_divide(kv_heads, tied):
    """A key-value head, where there are fewer than devices, and all of an odd vocabulary."""
    settings = {"kv_heads": kv_heads, "tied": tied, "vision": {"num_heads": 4}}
    model = random_params(
        make_config(depth=1, vision_depth=1, text={"vocab_size": 103}, **settings)
    )
    mesh = ParallelConfig(strategy="mesh", tensor=4)
    one, other = (train(config, model=model, updates=1) for config in (ONE, mesh))
    assert_same(one, other)


@functools.cache
def drawing(config, temperature):
    """The compiled sampler, and what it takes."""
    parallel = make_parallel(config)

    def sampler(params, _, prompts, keys):
        return sample(
            merge(GRAPHDEF, params),
            prompts,
            keys,
            group_size=G,
            config=SamplingConfig(max_new_tokens=T, temperature=temperature),
            eos_token_ids=range(3, 30),  # so that rows end at different times
        )

    weights = parallel.reshard_for_decoding(parallel.replicate(PARAMS))
    given = weights, None, *parallel.shard((batch().prompts, prompt_keys(0, 1, B)))
    return parallel.compile_sampler(sampler).lower(*given).compile(), given


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
    whole = parallel.reshard_for_decoding(parallel.replicate(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), PARAMS)
    layer = whole["text"]["layers"][0]
    assert layer["q"]["kernel"].addressable_shards[0].data.size * 2 == layer["q"]["kernel"].size
    for leaf, place in zip(
        jax.tree.leaves(whole), jax.tree.leaves(parallel.decoding_shardings(whole)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_no_device_asks_others_for_anything_while_it_decodes():
    program, _ = drawing(MESHES[0], 1.0)
    assert Program(program.as_text()).collectives == ()


@pytest.mark.parametrize("config", MESHES, ids=["fsdp 8", "fsdp 4 x tensor 2"])
def test_a_cut_model_gives_the_log_probs_of_a_whole_one(config):
    parallel = make_parallel(config)
    placed = parallel.compile_apply(logp)(parallel.replicate(PARAMS), parallel.shard(batch()))
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
        assert _spec(text["k"]["kernel"]) == P(("fsdp", "tensor"), None)
        assert _spec(vision["qkv"]["kernel"]) == P(("fsdp", "tensor"), None)
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
    update = parallel.compile_update(
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


@pytest.mark.parametrize(
    "config",
    [CONFIG, WINDOWED, make_config(family="qwen3_vl")],
    ids=["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL"],
)
def test_layers_know_how_the_rules_cut_them(config):
    model = nnx.eval_shape(lambda: VLM(config, rngs=nnx.Rngs(0)))
    linears = [(path[-1], each) for path, each in nnx.iter_graph(model) if type(each) is Linear]
    assert {name for name, _ in linears} >= {"q", "o", "qkv", "proj", "patch_embed", "merger_fc2"}
    for name, layer in linears:
        assert layer.cut == cut_of(name), name


def test_a_model_that_does_not_divide_is_refused():
    parallel = make_parallel(ParallelConfig(strategy="mesh", tensor=4))
    with pytest.raises(UserError, match="--tensor 4 does not divide the 6 attention heads of the"):
        parallel.check_model(make_config(heads=6, kv_heads=2))
    with pytest.raises(UserError, match="--tensor 4 does not divide the 6 key-value heads of the"):
        parallel.check_model(make_config(heads=12, kv_heads=6))
    parallel.check_model(make_config(heads=4, kv_heads=2, vision={"num_heads": 4}))


# Collectives of compiled programs


SCANNED = make_config(heads=4, kv_heads=2, depth=3, vision_depth=2, text={"vocab_size": 104})
ROWS, PROMPT, LENGTH = 16, 16, 24


@functools.cache
def exchanged(program, tensor, remat):
    """The collectives of a reference or an update of scanned layers, and the parameters' places."""
    rng = np.random.default_rng(0)
    cases = [random_case(rng, SCANNED, grids) for grids in [[(2, 3)], [(2, 2)]] * (ROWS // 2)]
    prompts = jax.tree.map(np.asarray, to_prompts(SCANNED, cases))
    assert prompts.tokens.shape[1] == PROMPT
    batch = GRPOBatch(
        prompts=prompts,
        completions=np.zeros((ROWS, G, LENGTH), np.int32),
        mask=np.ones((ROWS, G, LENGTH), bool),
        advantages=np.ones((ROWS, G), np.float32),
        ref_logp=np.zeros((ROWS, G, LENGTH), np.float32),
    )
    graphdef, params = abstract_model(SCANNED, ComputeConfig(scan_layers="on", remat=remat))

    def logp(params, batch):
        return completion_logp(merge(graphdef, params), batch.prompts, batch.completions, chunk=32)

    parallel, tx = make_parallel(ParallelConfig(strategy="mesh", tensor=tensor)), optimizer()
    state = parallel.checkpoint_shapes(jax.eval_shape(lambda p: TrainState.create(p, tx), params))
    if program == "reference":
        lowered = parallel.compile_apply(logp).lower(state.params, parallel.shard(batch))
    else:
        update = functools.partial(grpo_update, logp_fn=logp, tx=tx, config=LossConfig())
        lowered = parallel.compile_update(update).lower(state, parallel.shard(batch))
    return Program(lowered.compile().as_text()).collectives, state.params


def gathered_bytes(params, tensor, *, text_times, vision_times):
    """Of matrices that are put together: those of layers so many times, any other one once."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [getattr(key, "key", None) for key in path]
        times = {"text": text_times, "visual": vision_times}[names[0]] if "layers" in names else 1
        if "fsdp" in str(leaf.sharding.spec):
            share = tensor if "tensor" in leaf.sharding.spec else 1
            total += times * leaf.size * 4 // share
        if tensor > 1 and ("fsdp", "tensor") in leaf.sharding.spec:  # first, along `tensor`
            total += times * leaf.size * 4 // (8 // tensor)
    return total


def exchanged_bytes(collectives, kind):
    """Of float32 results."""
    return sum(
        each.nbytes for each in collectives if each.kind == kind and each.results[0].dtype == "f32"
    )


@pytest.mark.parametrize(("tensor", "remat"), [(1, "none"), (1, "layer"), (2, "layer")])
def test_an_update_puts_matrices_together_twice_and_moves_no_row(tensor, remat):
    """A layer's are gathered once for prompts and completions, and again in the backward pass."""
    collectives, params = exchanged("update", tensor, remat)
    assert exchanged_bytes(collectives, "all-gather") == gathered_bytes(
        params, tensor, text_times=2, vision_times=2
    )
    assert_only_columns_and_rows_are_exchanged(collectives, tensor, times=2)
    if tensor == 1:
        assert exchanged_bytes(collectives, "reduce-scatter") * 8 == gathered_bytes(
            params, 1, text_times=1, vision_times=1
        )
        whole = sum(
            leaf.size * 4
            for leaf in jax.tree.leaves(params)
            if "fsdp" not in str(leaf.sharding.spec)
        )
        figures = 400
        assert whole <= exchanged_bytes(collectives, "all-reduce") < whole + figures


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_reference_puts_matrices_together_and_moves_no_row(tensor):
    collectives, params = exchanged("reference", tensor, "layer")
    assert exchanged_bytes(collectives, "all-gather") == gathered_bytes(
        params, tensor, text_times=1, vision_times=1
    )
    assert_only_columns_and_rows_are_exchanged(collectives, tensor, times=1)


def assert_only_columns_and_rows_are_exchanged(collectives, tensor, times):
    """Those of embeddings: a device gets those of its own prompts and completions."""
    others = {each.kind for each in collectives} - {"all-gather", "all-reduce", "reduce-scatter"}
    assert others == {"all-to-all"}
    tokens = ROWS // (8 // tensor) * (PROMPT + G * (LENGTH - 1))
    size = times * tokens * SCANNED.text.hidden_size * 4
    assert exchanged_bytes(collectives, "all-to-all") == size


def test_a_block_cut_along_tensor_is_entered_and_left_once():
    """Five sums a layer and kind of token: in, out, out again in the backward pass, and back."""
    collectives, _ = exchanged("update", 2, "layer")
    device_rows = ROWS // 4
    width = SCANNED.text.hidden_size
    states = {(device_rows * G * (LENGTH - 1), width), (device_rows, G, LENGTH - 1, width)}
    sums = [
        each.times
        for each in collectives
        if each.kind == "all-reduce" and each.times > 1
        for result in each.results
        if result.shape in states
    ]
    assert sums == [SCANNED.text.num_hidden_layers] * 5


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
