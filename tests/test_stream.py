"""Data sets that are read while they are used: their order, what is stored, what is refused."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from othink_jax.config import TINY_TEMPLATE, DataConfig, EvaluateConfig
from othink_jax.data import stream
from othink_jax.data.example import UnreadableExample
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import Processor
from othink_jax.data.sources import open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.evaluation import evaluate
from othink_jax.training.sft import resume, train
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.fake_hub import serving
from tests.test_clevr import CUBE, write_scenes
from tests.test_grpo import final_params, rows_of, without_times
from tests.test_loader import run_as_processes
from tests.test_sft import config_for
from tests.test_sources import assert_same_pixels, r1v_rows, write_jsonl, write_parquet
from tests.tiny_processor import noise, write_directory


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Where `datasets` would store something. It waits five seconds at the end of each pass."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Three files of ten rows for training, and one of four for tests."""
    rows = r1v_rows(30)
    for number in range(3):
        part = rows[10 * number : 10 * number + 10]
        write_parquet(tmp_path / "set" / "data" / f"train-0000{number}-of-00003.parquet", part)
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", rows[:4])
    return str(tmp_path / "set")


def opened(dataset, **settings):
    return open_source(DataConfig(dataset=str(dataset), streaming=True, **settings))


def answers(source, *indices):
    return [int(source[index].answer) for index in indices]


def test_an_example_is_that_of_the_row(folder):
    source = opened(folder)
    (place,) = (i for i in range(30) if source[i].answer == "17")
    example = source[place]
    assert (example.question, example.solution) == ("question 17", "<answer> 17 </answer>")
    assert_same_pixels(example.images[0], noise(8, 6, seed=17))
    assert example.id == f"{folder}:{place}"


def test_every_pass_shows_every_row_once_in_another_order(folder):
    source = opened(folder)
    assert len(source) == ENDLESS
    drawn = answers(source, *range(90))
    passes = [drawn[:30], drawn[30:60], drawn[60:]]
    assert all(sorted(shown) == list(range(30)) for shown in passes)
    assert len({tuple(shown) for shown in passes}) == 3
    assert {number // 10 for number in drawn[:8]} == {0, 1, 2}  # from all files


def test_the_order_is_a_function_of_the_seed(folder):
    source = opened(folder)
    of_seeds = [answers(source.shuffled(seed), *range(30)) for seed in (0, 1, 1)]
    assert of_seeds[0] != of_seeds[1] == of_seeds[2]


@pytest.mark.parametrize("window", [4, 1000])
def test_an_example_is_the_same_whatever_was_read_before(folder, window, monkeypatch):
    """Also one that is no longer at hand."""
    monkeypatch.setattr(stream, "WINDOW", window)
    whole = answers(opened(folder), *range(70))
    source = opened(folder)
    asked = [5, 3, 64, 63, 2, 40, 41, 0, 69]
    assert answers(source, *asked) == [whole[index] for index in asked]


def test_rows_at_hand_are_not_read_again(folder, monkeypatch):
    """The first ones are asked for twice: a run looks whether there is a batch that can be used."""
    passes = []
    one_pass = stream.Stream._pass
    monkeypatch.setattr(
        stream.Stream, "_pass", lambda self, number: passes.append(number) or one_pass(self, number)
    )
    source = opened(folder)
    answers(source, *range(8), *range(40), 20)
    assert passes == [0, 1]


def test_a_single_file_is_streamed(folder):
    source = opened(f"{folder}/data/train-00001-of-00003.parquet", split="test")
    assert sorted(answers(source, *range(10))) == list(range(10, 20))


def test_nothing_is_stored(folder, cache):
    answers(opened(folder), *range(30))
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".lock"]
    open_source(DataConfig(dataset=folder))  # this does store something
    assert ".arrow" in {file.suffix for file in cache.rglob("*")}


def test_a_limit_takes_the_first_rows_of_its_seed(folder):
    few = opened(folder, limit=5, limit_seed=3)
    assert len(few) == 5
    first = answers(opened(folder).shuffled(3), *range(5))
    assert answers(few, *range(5)) == first
    other = opened(folder, limit=5, limit_seed=4)
    assert set(answers(few, *range(5))) != set(answers(other, *range(5)))
    with pytest.raises(UserError, match=r"limit asks for 31 examples, but .* holds only 30"):
        opened(folder, limit=31)


# In training


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_pretrained(write_directory(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def load(folder, processor):
    def make(*, seed=7, batch_size=4, **settings):
        return PromptLoader(
            opened(folder),
            processor,
            batch_size=batch_size,
            seed=seed,
            template="{question}",
            max_prompt_tokens=None,
            **settings,
        )

    return make


def take(loader, batches):
    examples = (next(loader)[0] for _ in range(batches))
    return [int(example.answer) for example in itertools.chain.from_iterable(examples)]


def test_prompts_come_in_the_order_of_the_runs_seed(load, folder):
    assert take(load(), 10) == answers(opened(folder).shuffled(7), *range(40))
    assert take(load(seed=8), 10) != take(load(), 10)


def test_a_stream_goes_on_where_it_stopped(load):
    loader = load()
    take(loader, 9)
    state = json.loads(json.dumps(loader.get_state()))
    expected = take(loader, 5)
    again = load()
    take(again, 2)
    again.set_state(state)
    assert take(again, 5) == expected
    again.set_state(state)  # while prompts further on are being prepared
    assert take(again, 5) == expected


def test_processes_share_the_stream(load):
    whole = take(load(), 8)

    def use(process, share, exchange):
        return take(load(share=share, all_gather=exchange), 8)

    first, second = run_as_processes(2, use)
    batches = zip(*[iter(first)] * 2, *[iter(second)] * 2, strict=True)
    assert list(itertools.chain.from_iterable(batches)) == whole


def test_a_run_learns_from_a_stream_and_resumes(folder, tmp_path):
    data = DataConfig(
        dataset=folder,
        streaming=True,
        template=TINY_TEMPLATE,
        min_pixels=None,
        max_pixels=None,
    )
    settings = {"data": data, "steps": 2, "checkpoint_every": 1}
    with programs_of_equal_settings_are_compiled_once():
        train(config_for(tmp_path / "whole", **settings))
        train(config_for(tmp_path / "stopped", **settings))
        (last,) = (tmp_path / "stopped" / "checkpoints").glob("2")
        last.rename(tmp_path / "removed")  # as if it had been stopped after step 1
        resume(tmp_path / "stopped")
    rows = [without_times(rows_of(tmp_path / run)) for run in ("whole", "stopped")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[1]] == [1, 2]
    pairs = zip(*(final_params(tmp_path / run) for run in ("whole", "stopped")), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_a_run_without_an_end_is_refused(folder, tmp_path):
    data = DataConfig(dataset=folder, streaming=True)
    with pytest.raises(UserError, match="a stream has no end: give --steps, or --limit"):
        train(config_for(tmp_path / "run", data=data))
    config = EvaluateConfig(model="tiny", out=tmp_path / "run", data=data)
    with pytest.raises(UserError, match="a stream has no end: give --limit"):
        evaluate(config)
    assert not (tmp_path / "run").exists()


# From the hub


def test_the_hub_is_read_and_nothing_of_it_stored(folder, tmp_path):
    """In a process of its own: where the hub is, is read with its library."""
    code = (
        "import atexit, inspect\n"
        "atexit.register(lambda: print(inspect.getgeneratorstate(rows)))  # after all others\n"
        "from othink_jax.config import DataConfig\n"
        "from othink_jax.data.sources import open_source\n"
        "stream = open_source(DataConfig(dataset='someone/clevr', streaming=True))\n"
        "print(sorted(int(stream[i].answer) for i in range(30)), stream[0].images[0].size)\n"
        "rows = stream._rows\n"
        "test = DataConfig(dataset='someone/clevr', streaming=True, split='test', limit=4)\n"
        "source = open_source(test)\n"
        "print(sorted(source[i].answer for i in range(4)), source[3].id)\n"
    )
    with serving(Path(folder), "someone/clevr") as address:
        settings = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **settings},
            check=False,
        )
    assert done.stdout.splitlines() == [
        f"{list(range(30))} (8, 6)",
        "['0', '1', '2', '3'] someone/clevr:3",
        "GEN_CLOSED",  # or Arrow's threads abort the process
    ], done.stderr
    assert done.returncode == 0
    stored = [path for path in (tmp_path / "home").rglob("*") if path.suffix != ".lock"]
    assert all(path.is_dir() or path.stat().st_size < 1000 for path in stored)


# Bad input


def test_a_broken_image_is_named_and_costs_its_row_alone(tmp_path):
    rows = r1v_rows(3)
    rows[1]["image"]["bytes"] = b"not an image"
    # As on the hub: the file says that the column holds images.
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    read, broken = [], []
    for index in range(3):
        try:
            read.append(source[index].answer)
        except UnreadableExample as error:
            broken.append((str(error), error.example.answer))
    assert sorted(read) == ["0", "2"]
    ((message, answer),) = broken
    assert message.startswith(f"{tmp_path}/x.parquet:")
    assert answer == "1"


def test_a_stream_that_breaks_off_is_one_line(folder):
    source = opened(folder)

    class Lost(type(source._table)):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 3)
            raise ConnectionError("the hub is away\nwith a long story")

    source._table.__class__ = Lost
    source._table.shuffle = lambda **_: source._table
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"^the data set .*/set cannot be read: the hub is away$"
        ):
            answers(source, *range(4))


def test_a_table_without_the_columns_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"image": None, "text": "a"}])
    with pytest.raises(UserError, match=r"x\.parquet has no column problem or question; it has im"):
        opened(path)


def test_a_table_of_the_hub_that_is_no_parquet_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("problem,answer\na,1\n")
    table = datasets.load_dataset(
        "csv", data_files=str(tmp_path / "x.csv"), split="train", streaming=True
    )
    assert table.features is None
    monkeypatch.setattr("othink_jax.data.tables._open", lambda *_, **__: table)
    with pytest.raises(UserError, match="has no column images or image or image_path; it has prob"):
        opened("someone/csv")


def test_a_table_without_rows_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", r1v_rows(1))
    table = datasets.Dataset.from_parquet(path).select([])
    table.to_parquet(path)
    with pytest.raises(UserError, match=r"x\.parquet holds no examples"):
        opened(path)


def test_a_split_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match="has no split 'validation'; it has train, test"):
        opened(folder, split="validation")


def test_what_lies_on_the_disk_anyway_is_not_streamed(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [])
    refused = "--streaming goes with one --dataset of parquet files, here or on the hub"
    with pytest.raises(UserError, match=refused):
        opened(path)
    with pytest.raises(UserError, match=refused):
        DataConfig(task="counting", streaming=True)
    write_scenes(tmp_path / "clevr", "CLEVR_train", tmp_path / "clevr" / "images", [[CUBE]])
    datasets.Dataset.from_list(r1v_rows(2)).save_to_disk(tmp_path / "saved")
    write_parquet(tmp_path / "saved" / "x.parquet", r1v_rows(1))
    for name in ("clevr", "saved"):
        with pytest.raises(UserError, match=f"/{name} is no folder of them: leave it out"):
            opened(tmp_path / name)
