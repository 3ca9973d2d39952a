"""The start of a run: parameters are read where they are to stand, and nobody holds all of them."""

import weakref
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.bench import startup
from othink_jax import rl
from othink_jax.checkpoint import hf, orbax_model, safetensors_file
from othink_jax.checkpoint.load import abstract_model, load
from othink_jax.checkpoint.tensors import (
    LazyArray,
    Tensors,
    adapted,
    in_memory,
    lazy_params,
    read_params,
)
from othink_jax.config import ComputeConfig, OptimizerConfig, ParallelConfig
from othink_jax.errors import UserError
from othink_jax.model.sharding import FSDP, place_shards
from othink_jax.model.stack import match_layout
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from tests.model_cases import make_config, random_params, save_hub

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1), text={"vocab_size": 104})
PARAMS = jax.tree.map(np.asarray, random_params(CONFIG)[1])
STRATEGIES = [
    ParallelConfig(strategy="jit"),
    ParallelConfig(strategy="pmap", devices=2),
    ParallelConfig(strategy="mesh"),
    ParallelConfig(strategy="mesh", tensor=2),
]
PART = (slice(1, 3), slice(2, 5))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def compare(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, a, b)


@pytest.fixture(params=["Hugging Face", "Orbax"])
def stored(request, tmp_path):
    save_hub(tmp_path / "hub", CONFIG, PARAMS)
    tensors = hf.stored_tensors(tmp_path / "hub", CONFIG)
    if request.param == "Hugging Face":
        return tensors
    orbax_model.save_model(tmp_path / "orbax", tensors, companions=tmp_path / "hub")
    return orbax_model.stored_tensors(tmp_path / "orbax", CONFIG)


def test_a_part_of_a_tensor_is_what_stands_there(stored):
    for entry in stored.dtypes:
        part = PART[: len(entry.shape)]
        np.testing.assert_array_equal(stored.read(entry, part), stored.read(entry, ())[part])


def test_of_a_tensor_in_a_file_no_rows_but_those_asked_for_are_read(tmp_path):
    save_hub(tmp_path, CONFIG, PARAMS)
    file = tmp_path / "model.safetensors"
    *_, last = safetensors_file.read_header(file)
    rows = last.shape[0]
    expected = safetensors_file.read(last, last.shape, (slice(0, rows // 2),))
    half = last.begin + expected.nbytes
    file.write_bytes(file.read_bytes()[:half])
    found = safetensors_file.read(last, last.shape, (slice(0, rows // 2),))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: it ends within"):
        safetensors_file.read(last, last.shape, ())


def test_a_part_of_adapted_parameters_has_the_bits_of_the_whole():
    adapters = {
        entry: np.random.default_rng(0).normal(size=entry.shape).astype(np.float32)
        for entry in orbax_model.adapter_entries(CONFIG, 3)
    }
    over = Tensors(
        dtypes={entry: array.dtype for entry, array in adapters.items()},
        read=lambda entry, index: adapters[entry][index],
    )
    made = adapted(in_memory(CONFIG, PARAMS), over, 0.3)
    for entry in made.dtypes:
        part = PART[: len(entry.shape)]
        np.testing.assert_array_equal(made.read(entry, part), made.read(entry, ())[part])


@pytest.mark.parametrize("scan", ["off", "on"], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: f"{config.strategy}")
def test_parameters_that_are_not_yet_read_begin_the_run_of_those_that_are(stored, config, scan):
    unread, read = lazy_params(stored), read_params(stored, on_host=True)
    assert all(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(unread))
    if scan == "on":
        _, like = abstract_model(CONFIG, ComputeConfig(scan_layers="on"))
        unread, read = match_layout(unread, like=like), match_layout(read, like=like)
        assert all(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(unread))
        equal(read_params(in_memory(CONFIG, unread), on_host=True), PARAMS)
    parallel = make_parallel(config)
    tx = _tx()
    begun = parallel.unreplicate(parallel.create_state(unread, tx))
    equal(jax.device_get(begun), jax.device_get(TrainState.create(read, tx)))


def _tx():
    return make_optimizer(OptimizerConfig(), rl.carry_kl_coef(rl.dynamic_kl(0.005, 0.16, 100)), 100)


def unaligned(array):
    """A copy that a CPU has to copy: what lies at a multiple of 64 bytes, it takes as it is."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    begin = (16 - memory.ctypes.data) % 64
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("config", STRATEGIES[:3], ids=lambda config: config.strategy)
def test_a_run_begins_with_few_tensors_at_a_time_on_the_host(tmp_path, config):
    save_hub(tmp_path, CONFIG, PARAMS)
    tensors = hf.stored_tensors(tmp_path, CONFIG)
    alive, counts = [], []

    def read(entry, index):
        own = unaligned(tensors.read(entry, index))
        alive.append(weakref.ref(own))
        counts.append(sum(ref() is not None for ref in alive))
        return own

    unread = lazy_params(Tensors(dtypes=tensors.dtypes, read=read))
    jax.block_until_ready(make_parallel(config).create_state(unread, _tx()))
    # JAX lets go of what it has copied at one of its next calls.
    assert max(counts) <= 4 < len(counts) / 4


def test_a_process_reads_the_part_of_its_own_devices_once(monkeypatch):
    """Of eight devices, the four of the first of two processes."""
    whole, asked = np.arange(48).reshape(6, 8), []
    stored = LazyArray(whole.shape, whole.dtype, lambda index: asked.append(index) or whole[index])
    mesh = jax.make_mesh((8,), (FSDP,))
    every = NamedSharding(mesh, PartitionSpec(None, FSDP)).devices_indices_map(whole.shape)
    own = dict(list(every.items())[:4])
    process = SimpleNamespace(addressable_devices_indices_map=lambda shape: own)

    def made(shape, sharding, piece):
        pieces = [piece(index) for index in own.values()]
        return SimpleNamespace(block_until_ready=lambda: pieces)

    monkeypatch.setattr(jax, "make_array_from_callback", made)
    np.testing.assert_array_equal(
        np.concatenate(place_shards(stored, process), axis=1), whole[:, :4]
    )
    assert asked == [(slice(0, 6), slice(0, 4))]


def test_a_model_is_left_unread_where_that_is_asked_for():
    unread, read = load("tiny", lazy=True), load("tiny", on_host=True)
    assert all(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(unread.params))
    equal(jax.tree.map(np.asarray, unread.params), read.params)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), unread.params)
    equal(jax.tree.map(np.asarray, half), load("tiny", dtype="bfloat16", on_host=True).params)


def test_of_two_processes_each_reads_the_half_that_its_devices_hold(tmp_path):
    record = startup.measure(CONFIG, tmp_path / "hub", count=2, devices=2, whole=False)
    own = [each["own_bytes"] for each in record["processes"]]
    # What is not cut, each of the four devices has.
    assert all(record["model_bytes"] / 2 <= each < 0.6 * record["model_bytes"] for each in own)
