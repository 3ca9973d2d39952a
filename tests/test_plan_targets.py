"""Machines that are not here: their names, their compilers, and what a user is told of both."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from othink_jax import cli
from othink_jax.config import ParallelConfig
from othink_jax.errors import UserError
from othink_jax.plan import devices, search
from othink_jax.plan.compiled import compiled
from othink_jax.plan.devices import compile_only_devices
from othink_jax.plan.lowering import lowering
from othink_jax.plan.shapes import SHIPPED, model_of
from othink_jax.plan.targets import CHIPS, gpu_description, parse_target
from othink_jax.training.parallel import make_parallel
from tests.test_plan import CONFIG

LIBTPU = pytest.mark.skipif(not devices._installed("libtpu"), reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("name", "count", "platform"),
    [("v5e:2x4", 8, "tpu"), ("v5p:2x2x1", 4, "tpu"), ("v6e:1x1", 1, "tpu"), ("h100:8", 8, "cuda")],
)
def test_a_target_is_a_kind_of_chip_and_a_shape(name, count, platform):
    target = parse_target(name)
    assert (target.name, target.count, target.chip.platform) == (name, count, platform)


@pytest.mark.parametrize("name", ["v9:2x4", "v5e", "v5e:2x3", "v5p:2x4", "h100:3", "h100:", ""])
def test_an_unknown_target_is_one_line_that_lists_those_there_are(name):
    with pytest.raises(UserError) as raised:
        parse_target(name)
    message = str(raised.value)
    assert message.startswith(f"there is no --target {name};")
    assert "\n" not in message
    for kind, chip in CHIPS.items():
        assert f"{kind}:{chip.shapes[0]}" in message


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "aot-tpu"), ("h100:1", "aot-cuda")])
def test_a_compiler_that_is_missing_is_one_line_that_says_what_to_install(name, extra, monkeypatch):
    monkeypatch.setattr(devices, "_installed", lambda module: False)
    with pytest.raises(UserError, match=rf"needs .*pip install 'othink_jax\[{extra}\]'$"):
        compile_only_devices(parse_target(name))


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("ABORTED: libtpu multi-process lockfile is held", "another process has loaded libtpu"),
        ("INVALID_ARGUMENT: no such thing\nand more", "INVALID_ARGUMENT: no such thing$"),
    ],
)
def test_a_compiler_that_does_not_start_is_one_line(said, heard, monkeypatch):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(devices, "_installed", lambda module: True)
    monkeypatch.setattr(devices.topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=heard):
        compile_only_devices(parse_target("v5e:2x4"))


@pytest.mark.parametrize("kind", [kind for kind, chip in CHIPS.items() if chip.gpu])
def test_a_gpu_is_described_as_what_the_table_says(kind):
    chip = CHIPS[kind]
    words = gpu_description(chip).split()
    for name, value in {
        "device_memory_size:": str(chip.memory),
        "memory_bandwidth:": str(int(chip.bandwidth)),
        "core_count:": str(chip.gpu["cores"]),
    }.items():
        assert words[words.index(name) + 1] == value


def test_a_slice_that_does_not_divide_the_batch_is_refused(monkeypatch):
    monkeypatch.setattr(search, "compile_only_devices", lambda target: tuple(jax.devices()[:8]))
    for strategy in ("pmap", "mesh"):
        with pytest.raises(UserError, match="12 prompts do not divide over 8 devices"):
            cli.run(
                f"plan tiny --target v5e:2x4 --strategy {strategy} --prompts-per-step 12"
                " --max-prompt-tokens 64 --max-pixels 12544".split()
            )


def test_a_wrong_target_is_told_in_one_line():
    told = subprocess.run(
        [sys.executable, "-m", "othink_jax", "plan", "tiny", "--target", "v9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.startswith("othink-jax: there is no --target v9; those that there are: v5e:")
    assert told.stderr.count("\n") == 1


@LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy", "devices_used"),
    [("v5e:2x4", "mesh", 8), ("v5p:2x2x1", "pmap", 4), ("v6e:1x1", "jit", 1)],
)
def test_a_run_is_compiled_by_a_tpus_own_compiler(name, strategy, devices_used):
    config = dataclasses.replace(CONFIG, parallel=ParallelConfig(strategy=strategy))
    made = search.plan(config, target=parse_target(name))
    assert made.fits
    assert made.devices == devices_used
    assert made.device_memory == parse_target(name).chip.memory
    for program in made.programs:
        assert program.refused is None
        assert program.memory.arguments > 0
        assert program.name == "gathering" or program.work.flops > 0
        assert made.seconds(program) > 0
        # What puts weights together is all the compiler's own.
        assert program.name == "gathering" or any(buffer.lines for buffer in program.buffers)
    moved = {each.name: each.work.moved for each in made.programs}
    assert (
        set(moved["update"])
        >= {
            "mesh": {"all-gather", "reduce-scatter"},
            "pmap": {"all-reduce"},
            "jit": set(),
        }[strategy]
    )
    assert moved["rollout"] == {}


@LIBTPU
@pytest.mark.slow
def test_an_update_in_micro_batches_is_compiled_by_a_tpus_own_compiler(tmp_path):
    """libtpu fails where it moves a sum over devices out of a loop that adds it up in bf16."""
    shape = json.loads((SHIPPED / "Qwen/Qwen2-VL-7B-Instruct.json").read_text())
    shape |= {"vocab_size": 152064, "hidden_size": 512, "intermediate_size": 1024}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    shape["rope_scaling"]["mrope_section"] = [8, 12, 12]
    shape["vision_config"] |= {"embed_dim": 256, "num_heads": 8, "depth": 2, "hidden_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = dataclasses.replace(
        CONFIG,
        model=str(tmp_path),
        dtype="bfloat16",
        prompts_per_step=16,
        micro_batches=2,
        parallel=ParallelConfig(strategy="mesh"),
    )
    parallel = make_parallel(config.parallel, compile_only_devices(parse_target("v6e:2x4")))
    run = lowering(config, model_of(config, "tpu"), parallel)
    (update,) = (program for program in run.programs if program.name == "update")
    assert compiled(update).refused is None


@LIBTPU
@pytest.mark.slow
def test_every_slice_of_the_table_is_known_to_libtpu():
    for kind, chip in CHIPS.items():
        if chip.platform == "tpu":
            for shape in chip.shapes:
                target = parse_target(f"{kind}:{shape}")
                assert len(compile_only_devices(target)) == target.count
