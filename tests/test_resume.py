"""A run that goes on: after damage, elsewhere, with other settings, by what made it, or not."""

import dataclasses
import importlib
import json
import shutil
import sys

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from othink_jax import cli
from othink_jax.config import (
    ParallelConfig,
    ResumeConfig,
    SFTConfig,
    read_run,
)
from othink_jax.digests import SUMS
from othink_jax.errors import UserError
from othink_jax.training import run_directory, runs, shapes
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.runs import resume_run, start_run
from othink_jax.training.sft import SFTTrainer, resume, train
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.test_grpo import final_params, rows_of, without_times
from tests.test_sft import DATA, config_for
from tests.tiny_processor import noise


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Nearly all runs here have the same settings; those of test_sft each compile their own."""
    with programs_of_equal_settings_are_compiled_once():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four steps, with checkpoints after 2 and 4."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(out))
    return out


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def halfway(copy):
    """As if it had been killed in step 3."""
    shutil.rmtree(copy / "checkpoints" / "4")
    return copy


def assert_same_run(run, finished):
    assert without_times(rows_of(run)) == without_times(rows_of(finished))
    for ours, whole in zip(final_params(run), final_params(finished), strict=True):
        np.testing.assert_array_equal(ours, whole)


def flip(file, byte=-1):
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


# Damage


@pytest.mark.parametrize("harm", ["flipped bit", "cut file", "lost folder", "lost progress"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_its_steps_are_made_again(
    finished, copy, capsys, harm
):
    newest = copy / "checkpoints" / "4"
    if harm == "flipped bit":
        flip(largest(newest), byte=largest(newest).stat().st_size // 2)
    elif harm == "cut file":
        file = largest(newest)
        file.write_bytes(file.read_bytes()[:100])
    elif harm == "lost folder":
        shutil.rmtree(newest / "state")
    else:
        (newest / SUMS).unlink()  # as of an earlier version: Orbax itself finds it
        shutil.rmtree(newest / "progress")
    resume(copy)
    assert "the run goes on from step 2" in capsys.readouterr().err
    assert (copy / "damaged" / "4").is_dir()
    assert_same_run(copy, finished)


def test_a_run_goes_on_with_its_own_shapes_though_others_would_be_chosen_now(
    finished, halfway, monkeypatch
):
    """Their numbers differ in the last digits."""
    monkeypatch.setattr(shapes, "round_up", lambda size: 4 * size)
    resume(halfway)
    assert_same_run(halfway, finished)


def test_a_run_without_a_whole_checkpoint_is_one_line_and_stays_as_it_is(copy):
    for step in (2, 4):
        flip(largest(copy / "checkpoints" / str(step)))
    with pytest.raises(UserError, match=r"no checkpoint of this run is whole: .*/4 is damaged"):
        resume(copy)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"2", "4"}


def test_a_flipped_bit_in_the_settings_is_noticed_by_whoever_reads_them(copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("0.0003", "0.0007"))
    for read in (resume, read_run):
        with pytest.raises(UserError, match=r"config\.json differs"):
            read(copy)


def test_metrics_that_are_not_what_was_written_are_noticed(finished, copy, capsys):
    rows = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(rows.replace('"loss": 0.', '"loss": 1.', 1))
    assert (copy / "metrics.jsonl").read_text() != rows
    resume(copy)
    assert "metrics.jsonl is not what was written up to step 4" in capsys.readouterr().err
    resume(finished)
    assert "is not what was written" not in capsys.readouterr().err


@pytest.mark.parametrize("harm", [b"\xff\xfe\n", b"{}\n", b"[1]\n", b'{"step": "x"}\n', b'{"st'])
def test_lines_of_metrics_that_say_nothing_are_dropped(finished, copy, harm):
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(harm)
    resume(copy)
    assert rows_of(copy) == rows_of(finished)


def test_a_run_that_was_killed_while_it_began_begins_with_the_same_command(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".beginning").touch()
    shutil.copytree(finished / "reference", out / "reference")  # and no config.json
    largest(out / "reference").unlink()
    with pytest.raises(UserError, match="stopped before it began: give the command that began"):
        resume(out)
    train(config_for(out))
    assert_same_run(out, finished)
    assert not (out / ".beginning").exists()


def test_what_is_not_of_a_run_is_not_taken_for_its_beginning(tmp_path):
    (tmp_path / "reference").mkdir()
    with pytest.raises(UserError, match="not empty: give another --out, or remove it"):
        train(config_for(tmp_path))


def test_a_run_that_another_process_has_is_refused(copy):
    with filelock.FileLock(copy / ".lock"), pytest.raises(UserError, match="another process is at"):
        resume(copy)


# Other settings


def test_more_steps_are_made_and_recorded(finished, halfway):
    resume(ResumeConfig(resume=halfway, steps=5, micro_batches=2))
    assert [row["step"] for row in rows_of(halfway)] == [1, 2, 3, 4, 5]
    record = read_run(halfway)
    assert (record.total_steps, record.config.steps, record.config.micro_batches) == (5, 5, 2)
    changed = {"steps": [None, 5], "micro_batches": [1, 2]}
    assert record.changes == [{"after_step": 2, "settings": changed}]
    resume(halfway)  # nothing is changed, nothing recorded
    assert len(read_run(halfway).changes) == 1


def test_fewer_steps_than_are_done_are_refused_and_nothing_is_changed(copy):
    before = (copy / "config.json").read_text()
    with pytest.raises(UserError, match="--steps is 3, but 4 steps are done already"):
        resume(ResumeConfig(resume=copy, steps=3))
    assert (copy / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("strategy", "scan_layers"), [("jit", "on"), ("pmap", None), ("mesh", "on")]
)
def test_a_run_goes_on_over_other_devices_and_scans_layers(
    finished, halfway, strategy, scan_layers
):
    devices = None if strategy == "jit" else 2
    resume(
        ResumeConfig(resume=halfway, strategy=strategy, devices=devices, scan_layers=scan_layers)
    )
    for ours, one in zip(
        without_times(rows_of(halfway)), without_times(rows_of(finished)), strict=True
    ):
        assert ours == pytest.approx(one, rel=1e-3)
    assert arrays_of(halfway / "checkpoints" / "4") == arrays_of(finished / "checkpoints" / "4")


def arrays_of(checkpoint):
    """Names and shapes of the arrays that a checkpoint holds."""
    stored = ocp.StandardCheckpointer().metadata(checkpoint / "state").item_metadata
    named = jax.tree_util.tree_leaves_with_path(stored.tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in named}


def test_another_strategy_does_not_inherit_the_devices_of_the_old_one(tmp_path):
    config = config_for(tmp_path, parallel=ParallelConfig(strategy="mesh", devices=4, tensor=2))
    changed = ResumeConfig(resume=tmp_path, strategy="jit").applied(config)
    assert changed.parallel == ParallelConfig()
    same = ResumeConfig(resume=tmp_path, devices=2).applied(config)
    assert same.parallel == ParallelConfig(strategy="mesh", devices=2, tensor=2)


@pytest.mark.parametrize("command", ["grpo", "sft"])
def test_what_may_not_change_is_refused_in_one_line(capsys, command):
    with pytest.raises(SystemExit) as refused:
        cli.run([command, "--resume", "RUN", "--learning_rate", "1", "--steps", "5", "--seed=1"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "--learning-rate, --seed cannot change where a run goes on; what can: --steps" in said
    assert said.count("\n") == 1


# Elsewhere


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory):
    """A run over a data set that was named by a relative path."""
    home = tmp_path_factory.mktemp("home")
    rows = [
        {"question": f"How many? {n}", "ground_truth": str(n), "image_path": "a.png"}
        for n in range(4)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    noise(56, 56).save(home / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        data = dataclasses.replace(DATA, task=None, dataset="rows.jsonl", limit=None)
        train(config_for(home / "run", data=data, steps=2, checkpoint_every=1))
    return home


def test_a_relative_data_set_is_found_from_another_directory(of_a_file, tmp_path, monkeypatch):
    run = shutil.copytree(of_a_file / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "2")
    monkeypatch.chdir(tmp_path)
    resume(run)
    assert len(rows_of(run)) == 2
    assert read_run(run).config.data.dataset == "rows.jsonl"


def test_a_data_set_that_was_moved_is_taken_from_where_it_is_if_it_is_the_same(of_a_file, tmp_path):
    run = shutil.copytree(of_a_file / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "2")
    moved = shutil.copytree(of_a_file, tmp_path / "moved", ignore=lambda *_: ["run"])
    rows = (moved / "rows.jsonl").read_text()
    (moved / "rows.jsonl").write_text(rows.replace('"0"', '"7"'))
    changes = ResumeConfig(resume=run, dataset=str(moved / "rows.jsonl"))
    with pytest.raises(UserError, match="the data set is not what this run has read"):
        resume(changes)
    (moved / "rows.jsonl").write_text(rows)
    resume(changes)
    assert len(rows_of(run)) == 2


def test_a_task_has_no_place(copy):
    with pytest.raises(UserError, match="this one has a task"):
        resume(ResumeConfig(resume=copy, dataset="rows.jsonl"))


# What made it

OWN = """
from othink_jax.training.sft import SFTTrainer

class Own(SFTTrainer):
    def row(self, *given):
        return super().row(*given) | {{"own": {value}}}
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(value):
        (tmp_path / "own_trainer.py").write_text(OWN.format(value=value))
        sys.modules.pop("own_trainer", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_trainer", None)


def test_a_run_of_an_own_trainer_goes_on_as_that(tmp_path, write_module):
    write_module(1)
    own = importlib.import_module("own_trainer").Own
    out = tmp_path / "run"
    start_run(own, config_for(out, steps=2, checkpoint_every=1))
    shutil.rmtree(out / "checkpoints" / "2")
    write_module(1)
    resume(out)  # by the command's own way in
    assert [row["own"] for row in rows_of(out)] == [1, 1]

    write_module(2)
    with pytest.raises(UserError, match="the source of own_trainer:Own is not what it was"):
        resume(out)
    shutil.rmtree(out / "checkpoints" / "2")
    resume(ResumeConfig(resume=out, allow_changed_source=True))
    assert [row["own"] for row in rows_of(out)] == [1, 2]

    (tmp_path / "own_trainer.py").unlink()
    sys.modules.pop("own_trainer", None)
    with pytest.raises(UserError, match=r"made by own_trainer:Own, which cannot be imported"):
        resume(out)


def test_a_run_of_a_trainer_inside_a_function_needs_that_one(tmp_path):
    def with_value(value):
        class Inside(SFTTrainer):
            def row(self, *given):
                return super().row(*given) | {"own": value}

        return Inside

    out = tmp_path / "run"
    start_run(with_value(1), config_for(out, steps=2, checkpoint_every=1))
    shutil.rmtree(out / "checkpoints" / "2")
    with pytest.raises(UserError, match="stands in a script or inside a function"):
        resume(out)
    with pytest.raises(UserError, match=r"the source of .*Inside is not what it was"):
        resume_run(with_value(2), SFTConfig, out)
    resume_run(with_value(1), SFTConfig, out)
    assert [row["own"] for row in rows_of(out)] == [1, 1]


# Steps that are not finite


class Poisoned(SFTTrainer):
    """One whose pictures hold a nan in the steps numbered here."""

    steps_with_nan: tuple[int, ...] = (2,)

    def step(self, step, *rest):
        self.poisoned = step in self.steps_with_nan
        return super().step(step, *rest)

    def update(self, state, batch):
        if self.poisoned:
            patches = jnp.full_like(batch.prompts.patches, jnp.nan)
            prompts = dataclasses.replace(batch.prompts, patches=patches)
            batch = dataclasses.replace(batch, prompts=prompts)
        return super().update(state, batch)


class PoisonedTwice(Poisoned):
    steps_with_nan = (2, 3)


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path):
    run = tmp_path / "run"
    settings = {"skip_nonfinite": 1, "checkpoint_every": 1, "keep_checkpoints": 4}
    start_run(Poisoned, config_for(run, **settings))
    rows = rows_of(run)
    assert [row["nonfinite"] for row in rows] == [0, 1, 1, 1]
    assert "loss" not in rows[1]
    assert rows[2]["loss"] < rows[0]["loss"]
    first, second, third = (final_params(run / "checkpoints" / str(n)) for n in (1, 2, 3))
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((before != after).any() for before, after in zip(second, third, strict=True))
    resume_run(Poisoned, SFTConfig, run)
    assert len(rows_of(run)) == 4


def test_too_many_of_them_in_a_row_end_the_run_and_the_count_outlives_an_interruption(tmp_path):
    out = tmp_path / "run"
    config = config_for(out, skip_nonfinite=1, checkpoint_every=1)
    for run in (
        lambda: start_run(PoisonedTwice, config),
        lambda: resume_run(PoisonedTwice, SFTConfig, out),
    ):
        with pytest.raises(UserError, match=r"step 3: .* not finite; the last good checkpoint"):
            run()
    assert [row["step"] for row in rows_of(out)] == [1, 2]


def test_without_leave_the_first_one_ends_the_run(tmp_path):
    with pytest.raises(UserError, match=r"step 2: .* not finite"):
        start_run(Poisoned, config_for(tmp_path / "run"))


def test_a_run_whose_place_is_not_common_to_its_processes_does_not_begin(tmp_path, monkeypatch):
    """Each would write its part of a checkpoint onto a disk of its own."""
    exchange = runs.processes.all_gather

    def with_a_stranger(value):
        return [value, False] if isinstance(value, bool) else exchange(value)

    with monkeypatch.context() as patch:
        patch.setattr(runs.processes, "all_gather", with_a_stranger)
        with pytest.raises(UserError, match=r"not all processes of the run see .*gs://BUCKET"):
            train(config_for(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.setattr(run_directory, "_SEEN_S", 0.0)
    assert RunDirectory(tmp_path / "run", writes=False).sees_beginning()
    assert not RunDirectory(tmp_path / "other", writes=False).sees_beginning()
