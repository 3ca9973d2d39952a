"""A run of two processes, two simulated devices each, over loopback: the run of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from othink_jax.checkpoint.load import load
from othink_jax.config import ProcessConfig
from othink_jax.errors import UserError
from othink_jax.training import processes
from tests.shallow import shallow

SETTINGS = (
    *("--task", "counting", "--steps", "3", "--prompts-per-step", "4", "--strategy", "mesh"),
    *("--group-size", "2", "--max-new-tokens", "16"),
)


def new_run():
    """The words of a new run."""
    return ("grpo", "--model", shallow(), *SETTINGS)


def start(devices, *words):
    """A process of the command line with so many simulated devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "OTHINK_JAX_COMPILATION_CACHE": jax.config.jax_compilation_cache_dir,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "othink_jax", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(*words):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        start(
            2,
            *words,
            *("--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", number),
        )
        for number in range(2)
    ]


def finish(*started):
    """Their exit codes, and what they wrote."""
    written = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], written


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    codes, written = finish(start(4, *new_run(), "--out", out))
    assert codes == [0], written
    return out


def assert_same_run(run, one):
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    for ours, expected in zip(rows(run), rows(one), strict=True):
        for name in ("reward", "reward_accuracy", "entropy", "completion_length", "loss", "kl"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    apart = jax.tree.map(
        lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).ravel(),
        load(run, on_host=True).params,
        load(one, on_host=True).params,
    )
    # Where a gradient is next to nothing, Adam makes a step of its rounding.
    assert np.mean(np.concatenate(jax.tree.leaves(apart)) > 1e-6) < 1e-3


def test_two_processes_make_the_run_of_one_and_go_on_after_an_interruption(one, tmp_path):
    out = tmp_path / "run"
    two = start_two(*new_run(), "--out", out)
    # Only a process that is in its first step, or past it, takes the signal for a request.
    while two[1].poll() is None and not ((out / "metrics.jsonl").exists() and rows(out)):
        time.sleep(0.1)
    two[1].send_signal(signal.SIGINT)  # one is told, both stop
    codes, written = finish(*two)
    assert codes == [130, 130], written
    assert "Continue with" in written[0][1]
    assert "Continue with" not in written[1][1]
    assert len(rows(out)) < 3
    codes, written = finish(*start_two("grpo", "--resume", out))
    assert codes == [0, 0], written
    assert "report:" in written[0][0]
    assert "report:" not in written[1][0]
    assert_same_run(out, one)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(one, tmp_path, before, after):
    """With the very examples that it would have had: rewards and losses are those of one."""
    out = tmp_path / "run"

    def start_as(count, *words):
        return [start(4, *words)] if count == 1 else start_two(*words)

    short = [word if word != "3" else "2" for word in new_run()]
    codes, written = finish(*start_as(before, *short, "--out", out))
    assert set(codes) == {0}, written
    codes, written = finish(*start_as(after, "grpo", "--resume", out, "--steps", "3"))
    assert set(codes) == {0}, written
    rewards = [row["reward"] for row in rows(out)]
    assert rewards == pytest.approx([row["reward"] for row in rows(one)], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["before the first step", "in mid-run"])
def test_a_process_that_dies_takes_the_other_along_and_the_run_goes_on(
    one, tmp_path, victim, moment
):
    out = tmp_path / "run"
    two = start_two(*new_run(), "--checkpoint-every", "1", "--out", out)
    begun = (out / "reference") if moment == "before the first step" else (out / "checkpoints/1")
    while two[victim].poll() is None and not begun.exists():
        time.sleep(0.05)
    two[victim].kill()
    start_s = time.monotonic()
    code, (_, said) = two[1 - victim].wait(), two[1 - victim].communicate()
    assert code == 1, said
    assert time.monotonic() - start_s < 60
    (line,) = [line for line in said.splitlines() if line.startswith("othink-jax:")]
    assert "goes on from its last checkpoint with --resume" in line
    assert "Traceback" not in said
    resumable = (out / "config.json").exists()
    again = ("grpo", "--resume", out) if resumable else (*new_run(), "--out", out)
    codes, written = finish(*start_two(*again))
    assert codes == [0, 0], written
    assert_same_run(out, one)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(tmp_path):
    """Each has other solutions, of other lengths: the loss is the mean over the tokens of both."""
    words = ("sft", "--model", shallow(), "--task", "counting", "--steps", "3")
    words += ("--strategy", "mesh")
    codes, written = finish(start(4, *words, "--out", tmp_path / "one"))
    assert codes == [0], written
    codes, written = finish(*start_two(*words, "--out", tmp_path / "two"))
    assert codes == [0, 0], written
    for ours, expected in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours["tokens"] == expected["tokens"]
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-4), name


def test_a_process_that_finds_no_other_waits_no_longer_than_it_is_told(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    alone = start(
        1,
        *("sft", "--model", "tiny", "--task", "counting", "--strategy", "mesh"),
        *("--out", tmp_path / "run", "--coordinator", address, "--num-processes", 2),
        *("--process-id", 1, "--connect-timeout-s", 2),
    )
    (code,), ((_, said),) = finish(alone)
    assert code == 1
    assert "another one of the run has died" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_other_strategies_are_refused_by_every_process(tmp_path):
    words = [word if word != "mesh" else "pmap" for word in new_run()]
    codes, written = finish(*start_two(*words, "--out", tmp_path / "run"))
    assert codes == [1, 1]
    for _, err in written:
        assert "a run of 2 processes needs --strategy mesh" in err
    assert not (tmp_path / "run").exists()


def test_a_process_alone_exchanges_with_itself():
    processes.initialize(ProcessConfig())
    assert processes.first()
    assert processes.all_gather({"a": [1]}) == [{"a": [1]}]


def test_half_of_an_address_is_refused_and_so_is_no_time_to_connect():
    with pytest.raises(UserError, match="--connect-timeout-s must be at least 1"):
        ProcessConfig(connect_timeout_s=0)
    with pytest.raises(UserError, match="--coordinator, --num-processes and --process-id go"):
        ProcessConfig(coordinator="localhost:1")
