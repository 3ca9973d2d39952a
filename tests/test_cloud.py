"""`gs://` in the place of a directory: models, data and results, and runs that are killed."""

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import datasets
import fsspec
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from othink_jax import cli, files
from othink_jax.checkpoint import model_directory
from othink_jax.checkpoint.convert import to_hf, to_orbax
from othink_jax.checkpoint.load import load
from othink_jax.config import DataConfig, EvaluateConfig, ResumeConfig, SFTConfig, read_run
from othink_jax.config.record import from_dict, to_dict
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.evaluation import PARTIAL, Kept, evaluate
from othink_jax.files import GrowingFile, as_path, is_locked
from othink_jax.report import write_report
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.sft import SFTTrainer, resume, train
from tests import buckets
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.shallow import shallow
from tests.test_grpo import final_params, rows_of, without_times
from tests.test_sft import config_for
from tests.test_sources import png, r1v_rows


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """The directory that `gs://bucket` stands for."""
    monkeypatch.setenv(buckets.SETTING, "")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    buckets.install(tmp_path / "buckets", monkeypatch.setattr)
    yield tmp_path / "buckets" / "bucket"
    buckets.uninstall()


PLACE = "gs://bucket/place"


# Paths


def test_a_path_in_a_bucket_stays_what_it_is():
    for name in (PLACE, Path(PLACE), as_path(PLACE)):
        assert str(as_path(name)) == PLACE
    assert str(as_path(PLACE) / "a" / "b") == f"{PLACE}/a/b"
    config = SFTConfig(model="tiny", out=Path(PLACE), data=DataConfig(task="counting"))
    for found in (
        config,
        dataclasses.replace(config, steps=3),
        from_dict(SFTConfig, to_dict(config)),
    ):
        assert str(found.out) == PLACE
    assert to_dict(config)["out"] == PLACE
    assert str(ResumeConfig(resume=PLACE).resume) == PLACE


def test_other_addresses_are_refused_and_other_paths_are_what_they_were():
    for name in ("s3://bucket/place", "https://host/place", Path("s3://bucket/place")):
        with pytest.raises(
            UserError, match="is an address that cannot be read: give a path, or gs"
        ):
            as_path(name)
    for name in ("a/b", "/a", "C:/a", "a:b", "."):
        assert as_path(name) == Path(name)


def test_without_the_package_that_reads_buckets_it_is_one_line(monkeypatch):
    def absent(name):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(
        UserError, match=r"needs the package gcsfs: pip install 'othink_jax\[cloud\]"
    ):
        as_path(PLACE)


def test_a_place_that_cannot_be_written_is_one_line_before_anything_is_done(monkeypatch, capsys):
    def refuse(self, path, mode="rb", **_):
        raise PermissionError("no permission for the bucket")

    monkeypatch.setattr(buckets.Buckets, "_open", refuse)
    monkeypatch.setattr(sys, "argv", ["othink-jax", "convert", "tiny", PLACE])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error == f"othink-jax: {PLACE} cannot be written: no permission for the bucket\n"


def test_a_bucket_that_does_not_answer_is_one_line(monkeypatch, tmp_path):
    def refuse(self, path, **_):
        raise RuntimeError("no credentials\nwere found")

    monkeypatch.setattr(buckets.Buckets, "exists", refuse)
    data = DataConfig(dataset=f"{PLACE}/rows.jsonl")
    for use in (lambda: load(PLACE), lambda: resume(as_path(PLACE)), lambda: open_source(data)):
        with pytest.raises(UserError, match=r"gs://bucket/place.* cannot be read: no credentials$"):
            use()


# Models


@pytest.mark.parametrize("write", [to_hf, to_orbax], ids=["Hugging Face", "Orbax"])
def test_a_model_is_written_and_read_bit_for_bit(write, tmp_path, bucket):
    write("tiny", as_path(PLACE))
    write("tiny", tmp_path / "local")

    def names(place):
        return {file.relative_to(place).parts[:2] for file in place.rglob("*") if file.is_file()}

    assert {n for n in names(bucket / "place") if n[1:] != ("d",)} == {
        n for n in names(tmp_path / "local") if n[1:] != ("d",)
    }
    expected = load("tiny", on_host=True).params
    for found in (load(PLACE, on_host=True), load(PLACE, lazy=True)):
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.map(np.asarray, found.params), expected
        )
    to_hf(PLACE, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (
        bucket / "place" / "tokenizer.json"
    ).read_bytes()


def test_a_model_that_was_not_written_to_its_end_is_none(monkeypatch):
    """Nor is the one that it was to replace."""
    copy, copied = model_directory.copy_file, []

    def interrupted(source, target):
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target)
        copy(source, target)

    to_hf("tiny", as_path(PLACE))
    with monkeypatch.context() as patch:
        patch.setattr(model_directory, "copy_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            to_hf("tiny", as_path(PLACE), force=True)
    assert len(copied) == 3
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(PLACE)


def test_a_place_without_a_model_is_one_line():
    with pytest.raises(UserError, match=f"there is nothing in {PLACE}"):
        load(PLACE)


def test_a_model_is_not_written_over_without_leave():
    to_hf("tiny", as_path(PLACE))
    with pytest.raises(UserError, match="is not empty: give another place, or --force"):
        to_orbax("tiny", as_path(PLACE))
    to_orbax("tiny", as_path(PLACE), force=True)
    assert not list(as_path(PLACE).glob("*.safetensors"))
    load(PLACE)


# Data


def test_examples_are_those_of_the_files(tmp_path, bucket, monkeypatch):
    """Rows with images beside them, a table, and a folder of tables."""
    # What is not on a disk is a network to `datasets`.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows = [{"question": f"q {i}", "ground_truth": i, "image_path": f"{i}.png"} for i in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for place in (bucket, tmp_path / "local"):
        (place / "table").mkdir(parents=True)
        (place / "rows.jsonl").write_text(text)
        for i in range(3):
            (place / f"{i}.png").write_bytes(png(i))
        pq.write_table(pa.Table.from_pylist(r1v_rows(3)), place / "one.parquet")
        pq.write_table(pa.Table.from_pylist(r1v_rows(3)), place / "table" / "train-0.parquet")
    pq.write_table(pa.Table.from_pylist(r1v_rows(1)), bucket / "table" / "test-0.parquet")
    for name in ("rows.jsonl", "one.parquet", "table"):
        ours, theirs = (
            open_source(DataConfig(dataset=f"{place}/{name}"))
            for place in ("gs://bucket", tmp_path / "local")
        )
        assert len(ours) == len(theirs) == 3
        for i in range(3):
            assert ours[i].question == theirs[i].question
            assert ours[i].answer == theirs[i].answer
            (image,), (expected,) = ours[i].images, theirs[i].images
            np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


# Results


def test_an_interrupted_evaluation_goes_on_and_is_graded_again(monkeypatch, tmp_path, capsys):
    config = EvaluateConfig(
        model=shallow(),
        out=Path(PLACE),
        data=DataConfig(task="counting", split="test", min_pixels=None, max_pixels=None),
        count=6,
        batch_size=2,
        sampling=dataclasses.replace(EvaluateConfig.sampling, max_new_tokens=8),
    )
    add, kept = Kept.add, []

    def interrupted(self, answers):
        add(self, answers)
        kept.append(answers)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config)
    assert len((as_path(PLACE) / PARTIAL).read_text().splitlines()) == 1 + 4
    result = evaluate(config)
    local = evaluate(dataclasses.replace(config, out=tmp_path / "local"))
    assert result["accuracy"] == local["accuracy"]
    assert not (as_path(PLACE) / PARTIAL).exists()
    rows = (as_path(PLACE) / "predictions.jsonl").read_text()
    assert rows == (tmp_path / "local" / "predictions.jsonl").read_text()
    cli.run(["grade", f"{PLACE}/predictions.jsonl", "--task", "counting", "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["accuracy"]


def test_a_file_that_grows_is_written_now_and_then_and_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    path = as_path(PLACE) / "rows"
    growing = GrowingFile(path)
    growing.append(b"1\n")
    assert not path.exists()
    now[0] = 31.0
    growing.append(b"2\n")
    assert path.read_bytes() == b"1\n2\n"
    growing.append(b"3\n")
    assert path.read_bytes() == b"1\n2\n"
    growing.flush()
    assert path.read_bytes() == GrowingFile(path).read() == b"1\n2\n3\n"


# Runs


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """In a bucket, and on a disk."""
    with programs_of_equal_settings_are_compiled_once():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same run on a disk, without an interruption."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(out))
    return out


def test_a_run_in_a_bucket_that_is_killed_goes_on_bit_for_bit(finished, bucket, monkeypatch):
    """At the moment of step 4, the bucket holds what a process that is killed then leaves."""
    step = SFTTrainer.step

    def copied(self, number, *rest):
        if number == 4:
            while not (bucket / "place/checkpoints/2/commit_success.txt").exists():
                time.sleep(0.01)
            shutil.copytree(bucket / "place", bucket / "killed")
        return step(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "step", copied)
        train(config_for(PLACE))
    run = as_path("gs://bucket/killed")
    # Row 3 was made after the checkpoint, and went with the process.
    assert [row["step"] for row in rows_of(run)] == [1, 2]
    with pytest.raises(UserError, match="holds a run already"):
        train(config_for(run))
    resume(run)
    for found in (run, as_path(PLACE)):
        assert without_times(rows_of(found)) == without_times(rows_of(finished))
        for ours, whole in zip(final_params(found), final_params(finished), strict=True):
            np.testing.assert_array_equal(ours, whole)
    assert read_run(run).total_steps == 4
    assert str(write_report(run)) == "gs://bucket/killed/report.html"
    assert is_locked(run / ".lock") is None  # another machine may hold it
    with RunDirectory(run).held():
        assert is_locked(run / ".lock") is True
    assert "<html" in (bucket / "killed" / "report.html").read_text()


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_that_is_damaged_is_set_aside(finished, bucket, capsys):
    train(config_for(PLACE))
    for file in (bucket / "place/checkpoints/4/state").rglob("*"):
        if file.is_file():
            file.unlink()
    resume(as_path(PLACE))
    assert "the run goes on from step 2" in capsys.readouterr().err
    assert (bucket / "place/damaged/4/commit_success.txt").exists()
    assert without_times(rows_of(as_path(PLACE))) == without_times(rows_of(finished))
