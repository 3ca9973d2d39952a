"""Examples from tasks, files and folders: what is read, and what is said about what cannot be."""

import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from othink_jax.config import DataConfig
from othink_jax.data.example import UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from tests.fake_hub import in_hub_cache
from tests.tiny_processor import noise

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` unpacks out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise(8, 6, seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def r1v_rows(count: int) -> list[dict]:
    """Rows in the schema of R1-V's training sets."""
    return [
        {
            "image": {"bytes": png(i), "path": None},
            "problem": f"question {i}",
            "solution": f"<answer> {i} </answer>",
        }
        for i in range(count)
    ]


def write_parquet(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def opened(dataset: str, **settings):
    return open_source(DataConfig(dataset=dataset, **settings))


def assert_same_pixels(image: Image.Image, expected: Image.Image) -> None:
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


# Synthetic tasks


def test_a_task_gives_as_many_examples_as_asked_for():
    config = DataConfig(task="counting", split="test")
    assert len(open_source(config, size=7)) == 7
    assert len(open_source(config)) == ENDLESS
    assert len(open_source(DataConfig(task="counting", limit=5), size=7)) == 5


def test_a_tasks_limit_seed_chooses_other_examples():
    first, second = (
        open_source(DataConfig(task="geometry", limit=3, limit_seed=seed))[0] for seed in (0, 1)
    )
    assert (first.question, first.images[0].tobytes()) != (
        second.question,
        second.images[0].tobytes(),
    )


# Tables


def test_a_parquet_file_in_r1vs_schema(tmp_path):
    source = opened(write_parquet(tmp_path / "train.parquet", r1v_rows(3)))
    assert len(source) == 3
    example = source[2]
    assert example.question == "question 2"
    assert example.answer == "2"
    assert example.solution == "<answer> 2 </answer>"
    assert_same_pixels(example.images[0], noise(8, 6, seed=2))
    assert len({source[i].id for i in range(3)}) == 3


def test_a_folder_of_parquet_files_keeps_its_splits_apart(tmp_path):
    rows = r1v_rows(5)
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:2])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[2:4])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows[4:])
    train, test = (opened(str(tmp_path), split=split) for split in ("train", "test"))
    assert [train[i].answer for i in range(len(train))] == ["0", "1", "2", "3"]
    assert [test[i].answer for i in range(len(test))] == ["4"]
    with pytest.raises(UserError, match="has no split 'validation'; it has train, test"):
        opened(str(tmp_path), split="validation")


def test_a_folder_written_by_datasets(tmp_path):
    rows = {
        "images": [[noise(8, 6, seed=0), noise(6, 8, seed=1)], [noise(8, 8, seed=2)]],
        "problem": ["a", "b"],
        "solution": ["<think>t</think> <answer>1</answer>", "<answer>2</answer>"],
    }
    table = datasets.Dataset.from_dict(rows)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "splits")
    example = opened(str(tmp_path / "one"))[0]
    assert [image.size for image in example.images] == [(8, 6), (6, 8)]
    assert_same_pixels(example.images[1], noise(6, 8, seed=1))
    assert (example.answer, example.solution) == ("1", "<think>t</think> <answer>1</answer>")
    assert opened(str(tmp_path / "splits"), split="test")[0].question == "b"


def test_a_split_that_was_saved_alone_is_not_taken_for_another(tmp_path):
    rows = {"images": [[]], "problem": ["a"], "solution": ["<answer>1</answer>"]}
    table = datasets.Dataset.from_dict(rows, split=datasets.Split.TRAIN)
    table.save_to_disk(tmp_path / "saved")
    assert len(opened(str(tmp_path / "saved"), split="train")) == 1
    with pytest.raises(UserError, match="saved has no split 'test'; it is train"):
        opened(str(tmp_path / "saved"), split="test")


def test_a_table_may_name_image_files(tmp_path):
    noise(8, 6).save(tmp_path / "a.png")
    row = {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "problem": "p"}
    source = opened(write_parquet(tmp_path / "x.parquet", [row | {"solution": "4"}]))
    assert_same_pixels(source[0].images[0], noise(8, 6))


# JSONL


def test_jsonl_rows_as_r1v_evaluates_with_images_beside_the_file(tmp_path):
    (tmp_path / "images").mkdir()
    noise(8, 6).save(tmp_path / "images" / "a.png")
    row = {"image_path": "./images/a.png", "question": "How\u2028many?", "ground_truth": 4}
    source = opened(write_jsonl(tmp_path / "test.jsonl", [row, row | {"ground_truth": "140°"}]))
    assert [example.answer for example in (source[0], source[1])] == ["4", "140°"]
    assert source[0].question == "How\u2028many?"
    assert_same_pixels(source[0].images[0], noise(8, 6))
    # What supervised fine-tuning learns has its tags even where the file has none.
    assert source[1].solution == "<answer>140°</answer>"


def test_a_jsonl_row_is_named_by_its_line(tmp_path):
    noise(8, 6).save(tmp_path / "a.png")
    row = {"image_path": ["a.png"], "question": "q", "ground_truth": 4}
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    source = opened(str(path))
    assert [source[i].id for i in range(len(source))] == ["test.jsonl:1", "test.jsonl:3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'a': 1}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        (
            '{"question": "q", "gold": 1}',
            "line 2 has no column solution or ground_truth or answer; it has question, gold",
        ),
        ('{"question": "q", "answer": 1}', "line 2 has no column images or image or image_path"),
    ],
)
def test_a_broken_jsonl_row_is_named(tmp_path, line, message):
    good = json.dumps({"image_path": "a.png", "question": "q", "ground_truth": 1})
    (tmp_path / "x.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=message):
        opened(str(tmp_path / "x.jsonl"))


# What cannot be read


@pytest.mark.parametrize("image", ["absent.png", "broken.png", None, {"bytes": None}, 3])
def test_an_example_whose_image_cannot_be_read_is_named_and_keeps_its_text(tmp_path, image):
    (tmp_path / "broken.png").write_bytes(png(0)[:40])
    row = {"image": image, "question": "q", "ground_truth": 4}
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row]))
    with pytest.raises(UnreadableExample, match=r"x\.jsonl:1: ") as caught:
        source[0]
    assert (caught.value.example.question, caught.value.example.answer) == ("q", "4")


def test_a_broken_image_of_a_table_leaves_its_neighbours_readable(tmp_path):
    rows = r1v_rows(3)
    rows[1]["image"]["bytes"] = b"no image"
    source = opened(write_parquet(tmp_path / "x.parquet", rows))
    assert [source[0].answer, source[2].answer] == ["0", "2"]
    with pytest.raises(UnreadableExample, match=r"x\.parquet:1: the image cannot be read"):
        source[1]


@pytest.mark.parametrize("thinking", ["<think>1 and 3 <answer>9</answer></think>", "", None])
def test_reasoning_of_its_own_column_stands_before_the_solution(tmp_path, thinking):
    """As R1-V puts them together; the answer is that of the solution."""
    rows = [row | {"thinking": thinking} for row in r1v_rows(1)]
    example = opened(write_parquet(tmp_path / "x.parquet", rows))[0]
    before = f"{thinking}\n\n" if thinking else ""
    assert example.solution == before + "<answer> 0 </answer>"
    assert example.answer == "0"


@pytest.mark.parametrize("nothing", [None, "", " \n"])
@pytest.mark.parametrize("name", ["question", "ground_truth"])
def test_an_example_with_an_empty_entry_is_unreadable(tmp_path, name, nothing):
    row = {"image": [], "question": "q", "ground_truth": 4} | {name: nothing}
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row]))
    with pytest.raises(UnreadableExample, match=f"its {name} is empty") as caught:
        source[0]
    read = {"question": "", "ground_truth": ""}  # the question is read first
    if name == "ground_truth":
        read["question"] = "q"
    example = caught.value.example
    assert (example.id, example.question, example.answer) == ("x.jsonl:1", read["question"], "")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ground_truth": ["3"]}, "its ground_truth must be a non-empty text or a finite number"),
        ({"ground_truth": {"a": 1}}, "its ground_truth must be a non-empty text"),
        ({"ground_truth": True}, "its ground_truth must be a non-empty text"),
        ({"ground_truth": float("nan")}, "its ground_truth must be a non-empty text"),
        ({"ground_truth": "<answer> </answer>"}, "its ground_truth has an empty answer tag"),
        (
            {"ground_truth": "<answer>3"},
            "its ground_truth has an answer tag that is not opened and closed",
        ),
        ({"question": ["q"]}, "its question is no text but list"),
    ],
)
def test_an_entry_that_cannot_be_what_it_should_is_named(tmp_path, entry, message):
    row = {"image": [], "question": "q", "ground_truth": 4} | entry
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row]))
    with pytest.raises(UnreadableExample, match=rf"x\.jsonl:1: {message}"):
        source[0]


def test_a_whole_number_is_written_as_one(tmp_path):
    noise(8, 6).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "q", "ground_truth": 3.0}
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row, row | {"ground_truth": 0.5}]))
    assert [source[i].answer for i in range(2)] == ["3", "0.5"]


@pytest.mark.parametrize("column", ["image", "problem", "solution"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, column):
    rows = [{("other" if k == column else k): v for k, v in row.items()} for row in r1v_rows(2)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(UserError, match=rf"has no column .*{column}.*; it has .*other"):
        opened(path)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "folder/of/files", "./folder"])
def test_a_wrong_path_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name.replace('.', '[.]')}"):
        opened(name)


def test_a_hub_id_is_found_in_the_hubs_cache(tmp_path, monkeypatch):
    """Laid out as `hf download --repo-type dataset` leaves it; the tests are offline."""
    snapshot = in_hub_cache(tmp_path, "dataset", "someone/clevr")
    for split, count in (("train", 3), ("test", 2)):
        write_parquet(snapshot / "data" / f"{split}-00000-of-00001.parquet", r1v_rows(count))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    train, test = (opened("someone/clevr", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert train[2].question == "question 2"
    assert_same_pixels(train[2].images[0], noise(8, 6, seed=2))
    few = [example.id for example in opened("someone/clevr", limit=2, limit_seed=0)]
    assert len(set(few)) == 2


def test_a_hub_id_that_cannot_be_reached_is_named():
    with pytest.raises(UserError, match="the data set nobody/nothing-here cannot be read"):
        opened("nobody/nothing-here")


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no data set"):
        opened(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"), [("x.csv", "must end in"), ("x.parquet", "cannot be read")]
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, message):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=message):
        opened(str(tmp_path / name))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = write_parquet(tmp_path / "x.parquet", r1v_rows(1))
    with pytest.raises(UserError, match="needs the package `datasets`"):
        opened(path)


# Few-shot subsets


def subset(path: str, **settings) -> list[str]:
    source = opened(path, **settings)
    return [source[i].answer for i in range(len(source))]


def test_a_limit_chooses_distinct_examples_by_its_seed(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", r1v_rows(20))
    few = subset(path, limit=5, limit_seed=1)
    assert len(set(few)) == 5
    assert subset(path, limit=5, limit_seed=1) == few
    assert subset(path, limit=5, limit_seed=2) != few
    assert sorted(subset(path, limit=20), key=int) == [str(i) for i in range(20)]


def test_a_larger_subset_of_the_same_seed_holds_the_smaller_one(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", r1v_rows(20))
    assert subset(path, limit=9)[:4] == subset(path, limit=4)


def test_a_limit_beyond_the_data_set_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", r1v_rows(3))
    with pytest.raises(UserError, match=r"limit asks for 4 examples, but .* holds only 3"):
        opened(path, limit=4)


def test_a_data_set_without_examples_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no examples"):
        opened(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "limited", "clevr"])
def test_the_texts_of_a_source_tell_whether_any_row_has_changed(tmp_path, form):
    """Whatever row it is: a run that goes on reads only its last batch again."""

    def texts(answer):
        rows = [{"question": f"q{n}", "ground_truth": "1", "image_path": "a.png"} for n in range(9)]
        rows[5]["ground_truth"] = answer
        folder = tmp_path / answer
        folder.mkdir(exist_ok=True)
        if form == "clevr":
            scenes = [
                {"image_filename": "a.png", "objects": [{}] * int(row["ground_truth"])}
                for row in rows
            ]
            (folder / "scenes").mkdir(exist_ok=True)
            (folder / "scenes" / "CLEVR_train_scenes.json").write_text(
                json.dumps({"scenes": scenes})
            )
            name = str(folder)
        elif form == "parquet":
            name = str(folder / "rows.parquet")
            datasets.Dataset.from_list(rows).to_parquet(name)
        else:
            name = str(folder / "rows.jsonl")
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        limit = 2 if form == "limited" else None
        return list(open_source(DataConfig(dataset=name, limit=limit)).texts())

    assert texts("1") == texts("1")
    assert texts("1") != texts("2")
