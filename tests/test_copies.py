"""Claims of docstrings about copies: which arrays are one, on devices, in files and between."""

import dataclasses
import gc
import sys
import weakref
from pathlib import Path

import datasets
import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from othink_jax import generation, rl
from othink_jax.checkpoint import hf, orbax_model
from othink_jax.checkpoint.load import Checkpoint, abstract_model, load_processor
from othink_jax.checkpoint.tensors import Tensors, in_memory
from othink_jax.config import ComputeConfig, OptimizerConfig, ParallelConfig, SamplingConfig
from othink_jax.data.tables import open_table
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.partial import merge_params
from othink_jax.training.programs import compile_grpo
from othink_jax.training.state import TrainState
from tests.model_cases import make_config, random_params
from tests.test_grpo import config_for

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1), text={"vocab_size": 104})
MESH = ParallelConfig(strategy="mesh")


# Parameters


def test_programs_do_not_keep_the_parameters_they_were_made_with(tmp_path):
    """Those that training begins with are copied, and the originals may go."""
    graphdef, params = random_params(CONFIG)
    tiny = hf.resolve("tiny")
    processor = load_processor(tiny, hf.load_config(tiny))
    checkpoint = Checkpoint(
        config=CONFIG,
        compute=ComputeConfig(),
        graphdef=graphdef,
        params=params,
        processor=processor,
        directory=tiny,
    )
    config = config_for(tmp_path, remat="none")
    tx = make_optimizer(config.optimizer, rl.carry_kl_coef(rl.constant_kl(0.1)), 3)
    programs = compile_grpo(checkpoint, config, make_parallel(config.parallel), tx)
    # One program serves policy and reference where they are of one shape.
    assert programs.logp is programs.ref_logp
    kept = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    del params, checkpoint
    gc.collect()
    assert not any(leaf() is not None for leaf in kept)


def test_joined_parameters_are_the_very_arrays():
    one, other = {"a": {"b": np.ones(1)}}, {"a": {"c": np.ones(1)}, "d": np.ones(1)}
    joined = merge_params(one, other)
    assert joined["a"]["b"] is one["a"]["b"]
    assert joined["a"]["c"] is other["a"]["c"]
    assert joined["d"] is other["d"]


def test_a_second_question_finds_the_program_of_the_first():
    graphdef, _ = abstract_model(CONFIG)
    tiny = hf.resolve("tiny")
    processor = load_processor(tiny, hf.load_config(tiny))
    first, second = (
        generation._compiled_sampler(graphdef, processor, SamplingConfig(max_new_tokens=3))
        for _ in range(2)
    )
    assert first is second


# Devices


def addresses(tree):
    return [
        [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(tree)
    ]


# Cut along both axes of a mesh, for `tensor` alone would not follow heads.
BY_HEADS = {"k", "v", "qkv", "patch_embed"}
ALL = BY_HEADS | {"q", "o", "up", "gate", "down", "proj", "fc1", "fc2", "merger_fc1", "merger_fc2"}


@pytest.mark.parametrize(
    ("config", "layers"),
    [(ParallelConfig(strategy="jit"), set()),
     (ParallelConfig(strategy="pmap", devices=2), set()),
     (MESH, ALL | {"embed"}),
     (ParallelConfig(strategy="mesh", tensor=8), BY_HEADS)],
    ids=["jit", "pmap", "fsdp 8", "tensor 8"],
)  # fmt: skip
def test_to_decode_only_what_lies_elsewhere_is_copied(config, layers):
    parallel = make_parallel(config)
    params = parallel.replicate(random_params(CONFIG)[1])
    whole = parallel.reshard_for_decoding(params)
    same = [
        before == after for before, after in zip(addresses(params), addresses(whole), strict=True)
    ]
    moved = [
        not x.sharding.is_equivalent_to(place, x.ndim)
        for x, place in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(parallel.decoding_shardings(params)),
            strict=True,
        )
    ]
    assert same == [not moves for moves in moved]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert {path[-2].key for path, moves in zip(paths, moved, strict=True) if moves} == layers


@pytest.mark.parametrize(
    ("config", "compile_by"),
    [
        (ParallelConfig(strategy="jit"), "jit"),
        (ParallelConfig(strategy="pmap", devices=2), "pmap"),
        (MESH, "jit"),
    ],
    ids=["jit", "pmap", "mesh"],
)
def test_moments_are_made_where_they_are_to_stand(config, compile_by):
    """From the first on, no device holds more of the state than its share."""
    parallel = make_parallel(config)
    params = random_params(CONFIG)[1]
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(rl.constant_kl(0.1)), 3)
    programs = []

    def recorded(fn, **options):
        made = compiled(fn, **options)
        return lambda *given: programs.append(made.lower(*given).compile()) or made(*given)

    compiled = getattr(jax, compile_by)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, compile_by, recorded)
        state = parallel.create_state(params, tx)
    (program,) = programs
    memory = program.memory_analysis()
    share = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
    assert memory.alias_size_in_bytes == own  # the parameters are not copied
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 1.2 * share
    if config is MESH:
        assert share < sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 4


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_moments_are_not_copied_when_a_run_begins(strategy, monkeypatch):
    """Made on one device and copied, they would be there twice; nor do they share memory."""
    parallel = make_parallel(ParallelConfig(strategy=strategy))
    params, copied = {"a": {"kernel": np.ones((3, 5), np.float32)}}, []
    replicate = parallel.replicate
    monkeypatch.setattr(parallel, "replicate", lambda tree: copied.append(tree) or replicate(tree))
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(rl.constant_kl(0.1)), 3)
    state = parallel.create_state(params, tx)
    assert copied == [params]
    places = [place for of_leaf in addresses(state) for place in of_leaf]
    assert len(set(places)) == len(places)
    made, expected = jax.device_get(parallel.unreplicate(state)), TrainState.create(params, tx)
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_replicas_are_put_on_their_devices_one_by_one(monkeypatch):
    """Stacked first, all copies would need room on one device."""
    put, shapes = jax.device_put, []
    monkeypatch.setattr(
        jax, "device_put", lambda x, *rest, **how: shapes.append(x.shape) or put(x, *rest, **how)
    )
    parallel = make_parallel(ParallelConfig(strategy="pmap", devices=4))
    copies = parallel.replicate({"a": np.ones((3, 5), np.float32)})
    assert shapes == [(3, 5)] * 4
    assert copies["a"].shape == (4, 3, 5)


@pytest.mark.parametrize("strategy", ["jit", "mesh"])
def test_a_checkpoint_is_written_from_the_state_itself(strategy):
    parallel = make_parallel(ParallelConfig(strategy=strategy))
    state = parallel.replicate({"a": np.ones(8, np.float32)})
    assert parallel.unreplicate(state) is state


# Files


def counted(tensors: Tensors) -> tuple[Tensors, list[int]]:
    """The same, and how many of them were in memory as each was read."""
    alive: list[weakref.ref] = []
    counts: list[int] = []

    def read(entry, index):
        own = np.array(tensors.read(entry, index))
        alive.append(weakref.ref(own))
        counts.append(sum(ref() is not None for ref in alive))
        return own

    return dataclasses.replace(tensors, read=read), counts


def test_models_are_written_and_converted_tensor_by_tensor(tmp_path):
    """The one that is read and the one before it: never a model beside another one."""
    params = jax.tree.map(np.asarray, random_params(CONFIG)[1])
    tensors, counts = counted(in_memory(CONFIG, params))
    hf.save(tmp_path / "hf", CONFIG, tensors)
    assert max(counts) <= 2 < len(counts)
    tensors, counts = counted(hf.stored_tensors(tmp_path / "hf", CONFIG))
    orbax_model.save_model(tmp_path / "orbax", tensors, companions=tmp_path / "hf")
    assert max(counts) <= 2 < len(counts)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_weight_file_is_not_left_mapped_between_its_tensors(tmp_path):
    params = jax.tree.map(np.asarray, random_params(CONFIG)[1])
    hf.save(tmp_path, CONFIG, in_memory(CONFIG, params))
    tensors = hf.stored_tensors(tmp_path, CONFIG)
    kept = [tensors.read(entry, ()) for entry in tensors.dtypes]
    assert len(kept) == len(tensors.dtypes)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_tables_size_does_not_matter_to_memory(tmp_path, monkeypatch):
    """Of 24 MB that are read row by row, Arrow holds no more than a few rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    rows = [rng.bytes(100_000) for _ in range(240)]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "rows.parquet")
    table = open_table(str(tmp_path / "rows.parquet"), "train")
    before = pyarrow.total_allocated_bytes()
    for row in range(len(table)):
        assert table[row]["image"] == rows[row]
        assert pyarrow.total_allocated_bytes() - before < 2_000_000
