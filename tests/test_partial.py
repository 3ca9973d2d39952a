"""Training a part of the model: the rest stands still, and is there once."""

import dataclasses
import functools
import gc
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from othink_jax import rl
from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.config import GRPOConfig, LoRAConfig, OptimizerConfig, ParallelConfig
from othink_jax.data.synthetic import generate
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vision import VisionTower
from othink_jax.model.vlm import VLM, merge
from othink_jax.sampling import prompt_keys
from othink_jax.training.grpo import GRPOTrainer, resume, train
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.partial import merge_params, reference_only_params, split_params
from othink_jax.training.programs import compile_grpo
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.shallow import shallow
from tests.test_grpo import config_for, final_params, rows_of, without_times

RANK = 4
B, G, T = 2, 2, 4


def part_config(out: Path, part: str, **changes) -> GRPOConfig:
    settings = {
        "train": part,
        "steps": 3,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "lora": LoRAConfig(lora_rank=RANK, lora_alpha=8.0),
        "checkpoint_every": 1,
        "keep_checkpoints": 3,
    }
    return config_for(out, **{**settings, **changes})


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Of a run, and of its continuation."""
    with programs_of_equal_settings_are_compiled_once():
        yield


@functools.cache
def base() -> Checkpoint:
    return load(shallow())


@pytest.fixture(scope="module", params=["text", "lora"])
def part(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(part, tmp_path_factory) -> SimpleNamespace:
    """An uninterrupted run of three steps, and what was seen of it while it ran."""
    out, step, embed = tmp_path_factory.mktemp("runs") / part, GRPOTrainer.step, VLM.embed
    seen = SimpleNamespace(out=out, copies={}, prompts_with_features=set())
    embedding = base().params["text"]["embed"]["embedding"].shape
    patches = base().params["visual"]["patch_embed"]["kernel"].shape

    def count() -> dict[str, int]:
        gc.collect()
        shapes = [array.shape for array in jax.live_arrays()]
        return {"text": shapes.count(embedding), "vision": shapes.count(patches)}

    def counted(self, number, *rest):
        if number == 1:  # later ones run beside a checkpoint being saved
            seen.copies = {tower: copies - before[tower] for tower, copies in count().items()}
        return step(self, number, *rest)

    def watched(self, prompts):
        seen.prompts_with_features.add(prompts.features is not None)
        return embed(self, prompts)

    before = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", counted)
        patch.setattr(VLM, "embed", watched)
        train(part_config(out, part))
    return seen


@pytest.fixture(scope="module")
def finished(run) -> Path:
    return run.out


def named(params) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }


# Runs


def test_what_is_trained_moves_and_not_a_bit_of_the_rest(part, finished):
    before, after = named(base().params), named(load(finished).params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    text = {name for name in before if name.startswith("text.")}
    kernels = {name for name in text if name.startswith("text.layers") and "kernel" in name}
    assert moved == (text if part == "text" else kernels)


def test_the_first_step_has_no_kl_and_the_last_one_has(finished):
    kl = [row["kl"] for row in rows_of(finished)]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-5


def test_a_resumed_run_equals_the_uninterrupted_one(finished, tmp_path):
    """From the checkpoint of step 2: the same metrics and parameters, bit for bit."""
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "checkpoints" / "3")
    resume(again)
    assert without_times(rows_of(again)) == without_times(rows_of(finished))
    for ours, whole in zip(final_params(again), final_params(finished), strict=True):
        np.testing.assert_array_equal(ours, whole)


def trains_as_one_device(part, finished, out, parallel):
    train(part_config(out, part, parallel=parallel))
    for ours, one in zip(
        without_times(rows_of(out)), without_times(rows_of(finished)), strict=True
    ):
        assert ours == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_replicas_train_as_one_device_does(part, finished, tmp_path):
    parallel = ParallelConfig(strategy="pmap", devices=2)
    trains_as_one_device(part, finished, tmp_path / "replicas", parallel)


def test_a_mesh_trains_as_one_device_does(part, finished, tmp_path):
    parallel = ParallelConfig(strategy="mesh", devices=4, tensor=2)
    trains_as_one_device(part, finished, tmp_path / "mesh", parallel)


def test_a_checkpoint_holds_what_is_trained_and_its_moments_in_f32(part, finished):
    text = base().config.text
    if part == "lora":
        width, hidden = text.hidden_size, text.intermediate_size
        kv = text.num_key_value_heads * text.head_dim
        sides = [(width, width), (width, kv), (width, kv), (width, width)]  # q, k, v, o
        sides += [(width, hidden), (width, hidden), (hidden, width)]  # gate, up, down
        count = text.num_hidden_layers * sum(RANK * sum(pair) for pair in sides)
    else:
        count = sum(leaf.size for leaf in jax.tree.leaves(base().params["text"]))
    config = part_config(finished, part)
    tx = make_optimizer(config.optimizer, rl.carry_kl_coef(lambda _: 0.0), 3)
    like = jax.eval_shape(lambda: TrainState.create(split_params(base(), config).trained, tx))
    state, _ = TrainingStore(finished / "checkpoints", keep=3).restore(like)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert stored == 3 * 4 * count  # parameters, and Adam's two moments of each


def test_a_step_holds_what_is_frozen_once(part, run):
    """Of what is trained there are a policy, two moments and a reference; of the rest, one copy."""
    assert run.copies == {"text": 4 if part == "text" else 1, "vision": 1}


def test_every_program_of_a_run_is_given_the_features_of_its_images(run):
    assert run.prompts_with_features == {True}


# Programs


@functools.cache
def batch() -> GRPOBatch:
    processor, rng = base().processor, np.random.default_rng(0)
    examples = [generate("counting", "train", number) for number in range(B)]
    prompts = processor.batch(
        [processor.encode(example.question, example.images) for example in examples]
    )
    completions = rng.integers(20, 200, (B, G, T)).astype(np.int32)
    logp = completion_logp(merge(base().graphdef, base().params), prompts, completions, chunk=64)
    return GRPOBatch(
        prompts=prompts,
        completions=completions,
        mask=np.arange(T) < rng.integers(1, T + 1, (B, G, 1)),
        advantages=rng.normal(size=(B, G)).astype(np.float32),
        ref_logp=np.asarray(logp) + rng.uniform(-1, 1, (B, G, T)).astype(np.float32),
    )


def compiled(part: str):
    """Programs, parts, and the state before an update that is one step of plain descent."""
    config = part_config(Path("unused"), part, group_size=G)
    tx = optax.chain(optax.sgd(1.0), rl.carry_kl_coef(rl.constant_kl(0.1)))
    programs = compile_grpo(base(), config, make_parallel(config.parallel), tx)
    parts = split_params(base(), config)
    # Copied: the update writes the new parameters where the old ones were.
    state = jax.tree.map(np.array, TrainState.create(parts.trained, tx))
    return programs, parts, state


def with_features(programs, parts) -> GRPOBatch:
    prompts = batch().prompts
    features = programs.encode(merge_params(parts.trained, parts.frozen), prompts)
    return dataclasses.replace(batch(), prompts=dataclasses.replace(prompts, features=features))


def test_nothing_but_encode_runs_a_frozen_vision_tower(part, monkeypatch):
    programs, parts, state = compiled(part)
    policy = merge_params(parts.trained, parts.frozen)
    reference = merge_params(
        reference_only_params(base(), part_config(Path("unused"), part)), parts.frozen
    )
    given = with_features(programs, parts)

    def fail(*_):
        raise AssertionError("the vision tower is run")

    monkeypatch.setattr(VisionTower, "__call__", fail)
    with pytest.raises(AssertionError, match="tower"):
        jax.eval_shape(programs.logp, policy, batch().prompts, batch().completions)
    jax.eval_shape(programs.sample, policy, None, given.prompts, prompt_keys(0, 1, B))
    jax.eval_shape(programs.logp, policy, given.prompts, given.completions)
    jax.eval_shape(programs.ref_logp, reference, given.prompts, given.completions)
    jax.eval_shape(programs.update, state, (parts.frozen, given))


def test_beside_a_frozen_vision_tower_the_text_tower_has_the_gradient_it_has_otherwise():
    whole, whole_parts, state = compiled("all")
    expected, expected_metrics = whole.update(state, (whole_parts.frozen, batch()))
    programs, parts, state = compiled("text")
    given = with_features(programs, parts)
    made, metrics = programs.update(state, (parts.frozen, given))
    for name in ("loss", "kl"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)
    assert metrics["grad_norm"] < expected_metrics["grad_norm"]
    assert made.params.keys() == {"text"}
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), made.params, parts.trained)
    assert min(jax.tree.leaves(moved)) > 1e-5
    for ours, theirs in zip(
        jax.tree.leaves(made.params["text"]), jax.tree.leaves(expected.params["text"]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
