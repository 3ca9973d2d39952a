"""What a run takes, from shapes alone."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from othink_jax import cli
from othink_jax.checkpoint.load import load
from othink_jax.config import (
    DataConfig,
    GRPOConfig,
    KLConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
)
from othink_jax.errors import UserError
from othink_jax.families import from_hf
from othink_jax.plan import compiled, search
from othink_jax.plan.compiled import Memory, Report, Work
from othink_jax.plan.lowering import lowering
from othink_jax.plan.report import Plan, table
from othink_jax.plan.search import plan
from othink_jax.plan.shapes import SHIPPED, model_config, model_of
from othink_jax.plan.targets import parse_target
from othink_jax.training.parallel import make_parallel
from tests.shallow import shallow

CONFIG = GRPOConfig(
    model=shallow(),
    out=Path("unused"),
    data=DataConfig(task="counting", max_prompt_tokens=64, max_pixels=28 * 28 * 16),
    prompts_per_step=8,
    group_size=2,
    sampling=SamplingConfig(max_new_tokens=8),
    dtype="bfloat16",
)
PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(load(shallow(), abstract=True).params))


def staying(**settings):
    config = dataclasses.replace(CONFIG, **settings)
    return lowering(config, model_of(config), make_parallel(config.parallel)).staying


def test_what_stays_is_counted():
    found = staying()
    assert found["trained parameters"] == 4 * PARAMETERS
    assert found["frozen parameters"] == 0
    assert found["reference"] == 2 * PARAMETERS
    # Two moments, two counts and the KL weight.
    assert 8 * PARAMETERS < found["moments"] < 8 * PARAMETERS + 100


def test_a_mesh_divides_and_replicas_do_not():
    deep = staying(model="tiny")
    mesh = staying(model="tiny", parallel=ParallelConfig(strategy="mesh", devices=8, tensor=2))
    for name, size in mesh.items():
        assert deep[name] / 8 <= size <= deep[name] / 7.5
    one = staying()
    replica = staying(
        parallel=ParallelConfig(strategy="pmap", devices=4),
        optimizer=OptimizerConfig(mu_dtype="bfloat16"),
    )
    assert replica["trained parameters"] == one["trained parameters"]
    assert replica["moments"] == one["moments"] - 2 * PARAMETERS


def test_what_is_frozen_is_there_once_and_has_no_moments():
    found = staying(train="lora")
    assert found["frozen parameters"] == 2 * PARAMETERS
    assert found["reference"] == 0
    adapters = found["trained parameters"]
    assert adapters < PARAMETERS
    assert 2 * adapters < found["moments"] < 2 * adapters + 100


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["rollout", "reference", "update"]),
        ({"train": "text"}, ["images", "rollout", "reference", "update"]),
        ({"kl": KLConfig(kl_schedule="constant", kl_value=0.0)}, ["rollout", "update"]),
        ({"inner_updates": 2}, ["rollout", "reference", "policy", "update"]),
        ({"loss": LossConfig(kl_estimator="full")}, ["rollout", "update"]),
        (
            {"parallel": ParallelConfig(strategy="mesh")},
            ["gathering", "rollout", "reference", "update"],
        ),
    ],
)
def test_the_programs_are_those_of_a_step(settings, names):
    config = dataclasses.replace(CONFIG, **settings)
    made = lowering(config, model_of(config), make_parallel(config.parallel)).programs
    assert [each.name for each in made] == names
    assert [each.times for each in made] == [1] * (len(made) - 1) + [config.inner_updates]


def test_without_bounds_there_is_no_worst_case():
    with pytest.raises(UserError, match="needs --max-prompt-tokens and --max-pixels"):
        staying(data=DataConfig(task="counting", max_pixels=None))


# Compiled


@pytest.fixture(scope="module")
def pieces():
    """With four micro-batches, and with eight, which do not fit either."""
    found = []
    plan(dataclasses.replace(CONFIG, micro_batches=4), device_memory=1000, tried=found.append)
    # Nothing that does not take micro-batches fits: there is no second try.
    assert len(found) == 1
    memory = found[0].needed(found[0].programs[0])
    if found[0].peak > memory:
        plan(dataclasses.replace(CONFIG, micro_batches=4), device_memory=memory, tried=found.append)
    return found


def by_name(made):
    return {each.name: each for each in made.programs}


def test_smaller_pieces_of_the_prompts_take_less(pieces):
    assert [made.micro_batches for made in pieces] == [4, 4, 8]
    four, eight = (by_name(made)["update"].memory.temporaries for made in pieces[1:])
    assert four > eight
    assert by_name(pieces[0])["update"].memory.aliased > 12 * PARAMETERS


def test_a_rollout_in_bfloat16_takes_a_copy_of_the_matrices(pieces):
    rollout = by_name(pieces[0])["rollout"]
    patches = 8 * 64 * 1176 * 4
    copies = rollout.memory.arguments - rollout.held - patches
    assert 1.9 * PARAMETERS < copies < 2.1 * PARAMETERS
    assert pieces[0].needed(rollout) > sum(pieces[0].staying.values()) + copies


def test_the_work_of_an_update_is_three_times_that_of_the_reference(pieces):
    """Four with layers that are computed again; not all of them are."""
    work = {name: each.work.flops for name, each in by_name(pieces[0]).items()}
    assert 3 * work["reference"] < work["update"] < 4.1 * work["reference"]


def test_a_reference_has_the_products_of_matrices_on_paper(pieces):
    shape = model_config(shallow())
    text, vision = shape.text, shape.vision
    B, G, P, T, patches = 8, 2, 64, 8, 64
    width, kv = text.hidden_size, text.num_key_value_heads * text.head_dim
    weights = 2 * width * (width + kv) + 3 * width * text.intermediate_size
    tokens = B * (P + G * (T - 1))
    pairs = B * (P * P + G * (T - 1) * (P + T - 1))
    flops = text.num_hidden_layers * (2 * weights * tokens + 4 * width * pairs)
    flops += 2 * width * text.vocab_size * B * G * T
    area = vision.spatial_merge_size**2
    merged = vision.embed_dim * area
    weights = (4 * vision.embed_dim + 2 * vision.intermediate_size) * vision.embed_dim
    flops += B * vision.depth * (2 * weights * patches + 4 * vision.embed_dim * patches**2)
    flops += B * 2 * vision.patch_dim * vision.embed_dim * patches
    flops += B * 2 * (merged**2 + merged * vision.hidden_size) * patches // area
    assert by_name(pieces[0])["reference"].work.flops == pytest.approx(flops, rel=0.02)


def test_a_plan_is_a_table_and_an_object(pieces):
    lines = table(pieces[0]).splitlines()
    assert lines[0].startswith("--micro-batches 4 on simulated devices")
    assert f"{4 * PARAMETERS / 1e6:.2f} MB" in lines[1]
    made = json.loads(json.dumps(pieces[0].as_json()))
    assert made["fits"] is False
    assert made["peak"] == max(each["needed"] for each in made["programs"].values())
    update = made["programs"]["update"]
    assert update["memory"].keys() == {"arguments", "results", "aliased", "temporaries", "code"}
    assert update["buffers"][0]["lines"][0].count(".py:") == 1
    assert made["settings"]["micro_batches"] == 4
    assert made["versions"]["jax"] == jax.__version__


# The search and the sums, of programs that nobody compiled


def program(name="update", running=10, **settings):
    memory = Memory(arguments=running, results=6, aliased=6, temporaries=0, code=1)
    work = Work(
        flops=int(197e12),
        traffic=int(2 * 819e9),
        moved={},
        sent=int(100e9),
        unknown_loops=(),
        uncounted_kernels=(),
    )
    known = {"times": 1, "held": 4, "memory": memory, "work": work, "buffers": ()}
    return Report(name=name, compile_seconds=1.0, **(known | settings))


def made_of(*programs, memory=100, target="v5e:2x4"):
    return Plan(
        config=CONFIG,
        target=parse_target(target),
        devices=8,
        device_memory=memory,
        staying={"state": 7},
        programs=programs,
        versions={},
    )


def test_a_program_needs_what_stays_beside_its_arguments_and_all_code():
    made = made_of(program(running=10), program("rollout", running=20, held=0))
    assert [made.needed(each) for each in made.programs] == [7 - 4 + 10 + 2, 7 + 20 + 2]
    assert made.peak == 29
    assert made.fits
    assert not made_of(*made.programs, memory=28).fits


def test_the_bound_of_a_step_is_the_sum_of_the_slowest_of_each_program():
    """Here the memory's: two seconds; a second program runs three times."""
    made = made_of(program(), program("other", times=3))
    assert made.step_seconds == pytest.approx(8)
    assert "a bound from their peaks" in table(made)


def test_what_the_compiler_refuses_does_not_fit_and_is_no_error(monkeypatch):
    """As two versions of the TPU's compiler say it."""
    messages = {
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (193.00G) exceeds available HBM (15.75G).": (193 * 2**30, []),
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.\n"
        '  Largest program allocations in hbm:\n\n  1. Size: 1.50G\n     Operator: op_name="a"\n'
        "     Shape: f32[1024,8]{1,0:T(8,128)}\n": (int(18.5 * 2**30), ["f32[1024,8]"]),
    }
    for message, (needed, buffers) in messages.items():

        def refuse(message=message):
            raise jax.errors.JaxRuntimeError(message)

        lowered = type("Lowered", (), {"compile": lambda self, refuse=refuse: refuse()})
        made = compiled.compiled(
            compiled.RunProgram(name="update", times=1, cut=True, lower=lowered, held=4)
        )
        assert made.refused_bytes == needed
        assert [each.array for each in made.buffers] == buffers
        whole = made_of(made)
        assert not whole.fits
        assert whole.peak == needed + 3
        assert whole.step_seconds is None
        assert "the compiler refuses it" in table(whole)
        assert json.dumps(whole.as_json())


@pytest.mark.parametrize(
    ("needed", "expected", "tried"),
    [
        (lambda n: 50, 1, [1]),
        (lambda n: 700 // n, 8, [1, 24, 4, 8, 6]),
        (lambda n: 10_000, 24, [1, 24]),
    ],
)
def test_the_least_micro_batches_are_found_by_halves(needed, expected, tried):
    found = []

    def make(pieces):
        found.append(pieces)
        return dataclasses.replace(
            made_of(program(running=needed(pieces))),
            config=dataclasses.replace(CONFIG, micro_batches=pieces),
        )

    divisors = [1, 2, 3, 4, 6, 8, 12, 24]
    best = search._least(make, divisors, {})
    assert best.micro_batches == expected
    assert found == tried


def test_a_share_of_a_gpu_that_jax_does_not_take_by_itself_is_said():
    made = made_of(program(running=80), target="h100:8")
    assert any("XLA_PYTHON_CLIENT_MEM_FRACTION=0.85" in note for note in made.notes)
    assert not made_of(program(running=50), target="h100:8").notes


def test_devices_that_the_run_leaves_alone_are_said():
    made = dataclasses.replace(made_of(program()), devices=1)
    assert made.notes == ["--strategy jit uses 1 of the 8 devices of v5e:2x4"]


# Models


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as many as the hub's weight files have
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
    ],
)
def test_models_of_the_hub_are_known_by_their_shapes(name, parameters, monkeypatch):
    monkeypatch.setattr("othink_jax.checkpoint.hf.snapshot_download", None)  # nobody is asked
    model = model_of(dataclasses.replace(CONFIG, model=name))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params)) == parameters


def test_what_the_library_has_as_defaults_is_what_ships():
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig

    for kind in (Qwen2VLConfig, Qwen2_5_VLConfig):
        theirs = kind().to_dict()
        shipped = [
            json.loads(file.read_text())
            for file in SHIPPED.rglob("*.json")
            if json.loads(file.read_text())["model_type"] == theirs["model_type"]
        ]
        assert len(shipped) == 2
        for ours in shipped:
            for name in ("image_token_id", "video_token_id", "vision_start_token_id"):
                assert ours[name] == theirs[name]
            vision = theirs["vision_config"]
            for name in ("depth", "num_heads", "patch_size", "spatial_merge_size"):
                assert ours["vision_config"][name] == vision[name]
            if "window_size" in vision:
                assert ours["vision_config"]["window_size"] == vision["window_size"]
                assert ours["vision_config"]["fullatt_block_indexes"] == [7, 15, 23, 31]
            from_hf(ours)


def test_a_directory_goes_before_a_shape_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen/Qwen2-VL-2B-Instruct").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):
        model_config("Qwen/Qwen2-VL-2B-Instruct")


# The command


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(
        search, "compiled", lambda each: program(each.name, running=1000, held=each.held)
    )


ARGUMENTS = [
    "plan",
    "tiny",
    "--max-prompt-tokens",
    "64",
    "--max-pixels",
    "12544",
    "--prompts-per-step",
    "8",
]


def test_the_command_prints_one_object(uncompiled, capsys):
    cli.run([*ARGUMENTS, "--json"])
    printed = capsys.readouterr().out
    made = json.loads(printed)
    assert printed.count("\n") == 1
    assert made["fits"] is True
    assert made["target"] == "cpu"
    assert set(made["programs"]) == {"rollout", "reference", "update"}


def test_the_command_says_that_nothing_fits(uncompiled, capsys):
    cli.run([*ARGUMENTS, "--json", "--device-memory", "0.001"])
    assert json.loads(capsys.readouterr().out)["fits"] is False
    with pytest.raises(UserError, match="no number of micro-batches makes it fit"):
        cli.run([*ARGUMENTS, "--device-memory", "0.001"])
    assert "most at one time" in capsys.readouterr().out
