"""Rows of strangers' data sets: every value is used as it should be, or its row refused by name."""

import base64
import datetime
import json
import logging
import os
import sys
from decimal import Decimal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.soak.rows import outcomes
from othink_jax.config import DataConfig
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.loader import PromptLoader, in_order
from othink_jax.data.processing import Processor
from othink_jax.data.rows import RowReader
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from tests.test_sources import assert_same_pixels, opened, png, r1v_rows, write_jsonl, write_parquet
from tests.tiny_processor import noise, write_directory

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` unpacks out of the user's cache; it waits at the end of a stream."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def row(tmp_path):
    """A good row of a JSONL file that stands in `tmp_path`."""
    noise(8, 6).save(tmp_path / "good.png")
    return {"question": "q", "ground_truth": "4", "image": "good.png"}


def write_table(path, **columns):
    """A parquet file of good rows, some of whose columns are these Arrow arrays."""
    count = len(next(iter(columns.values())))
    usual = {
        "problem": pa.array([f"q {i}" for i in range(count)]),
        "solution": pa.array(["4"] * count),
        "image": pa.array([{"bytes": png(i), "path": None} for i in range(count)]),
    }
    pq.write_table(pa.table(usual | columns), path)
    return str(path)


def both_ways(path, count):
    """The examples of a table or why there is none, by question: as it lies there, and streamed."""
    return [
        dict(used_or_why(source, index) for index in range(count))
        for source in (opened(path), opened(path, streaming=True, limit=count))
    ]


def used_or_why(source, index):
    try:
        return source[index].question, source[index].answer
    except UnreadableExample as error:
        return error.example.question, str(error).split(": ", 1)[1]


# Texts and numbers


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([3.14, 0.1, 2, 1e-7, 2**24], pa.float32()), "3.14 0.1 2 1e-07 16777216"),
        (pa.array(np.array([3.14, 0.001, 2], np.float16)), "3.14 0.001 2"),
        (pa.array([3.14, 0.30000000000000004], pa.float64()), "3.14 0.30000000000000004"),
        (pa.array([Decimal("3.140"), Decimal(100)], pa.decimal128(9, 3)), "3.14 100"),
        (pa.array([Decimal(10**40 + 1)], pa.decimal256(60, 2)), str(10**40 + 1)),
        (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
        (pa.array([datetime.date(2024, 1, 31)]), "2024-01-31"),
        (pa.array(["4", "x"]).dictionary_encode(), "4 x"),
        (pa.array([b"4", b"x"]), "4 x"),
    ],
)  # fmt: skip
def test_a_truth_of_any_type_is_written_as_it_was_meant(tmp_path, array, expected):
    path = write_table(tmp_path / "x.parquet", solution=array)
    read = {f"q {number}": text for number, text in enumerate(expected.split())}
    assert both_ways(path, len(array)) == [read, read]


@pytest.mark.parametrize(
    ("held", "expected"),
    [(np.float32(3.14), "3.14"), (np.int8(4), "4"), (np.float64(0.5), "0.5"), (np.bool_(1), None)],
)
def test_a_number_of_numpys_is_one_too(tmp_path, row, held, expected):
    reader = RowReader("x", tmp_path)
    if expected is not None:
        assert reader.example(row | {"ground_truth": held}, "x:0").answer == expected
        return
    with pytest.raises(UnreadableExample, match="must be a non-empty text or a finite number"):
        reader.example(row | {"ground_truth": held}, "x:0")


def test_a_number_that_is_none_costs_its_row_alone(tmp_path):
    numbers = pa.array([1.5, float("nan"), float("inf"), None], pa.float32())
    for read in both_ways(write_table(tmp_path / "x.parquet", solution=numbers), 4):
        assert read["q 0"] == "1.5"
        assert all("its solution" in read[f"q {i}"] for i in (1, 2, 3))


def test_a_whole_number_of_5000_digits_is_a_truth(tmp_path, row):
    path = write_jsonl(tmp_path / "x.jsonl", [row | {"ground_truth": "N"}, row])
    text = (tmp_path / "x.jsonl").read_text().replace('"N"', "9" * 5000)
    (tmp_path / "x.jsonl").write_text(text)
    assert [opened(path)[i].answer for i in range(2)] == ["9" * 5000, "4"]


@pytest.mark.parametrize("column", ["problem", "solution", "image"])
@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.time64("us"), pa.duration("s")])
def test_a_column_of_times_is_refused_before_anything_is_read(tmp_path, column, kind):
    path = write_table(tmp_path / "x.parquet", **{column: pa.array([0], pa.int64()).cast(kind)})
    for streaming in (False, True):
        with pytest.raises(UserError, match=rf"x\.parquet: the column {column} holds .*: give te"):
            opened(path, streaming=streaming)


def test_a_text_of_a_table_that_is_no_utf8_costs_its_row_alone(tmp_path):
    """In a column that is not read it costs nothing."""
    broken = pa.array([b"4", b"a\xff", b"5"]).view(pa.string())
    path = write_table(tmp_path / "x.parquet", solution=broken, other=broken)
    why = r"its solution is not UTF-8 text: b'a\xff'"
    read = {"q 0": "4", "q 1": why, "q 2": "5"}
    assert both_ways(path, 3) == [read, read]
    # A path that is not needed is not looked at.
    content = pa.array([png(i) for i in range(3)])
    images = pa.StructArray.from_arrays([content, broken], ["bytes", "path"])
    read = {f"q {i}": "4" for i in range(3)}
    assert both_ways(write_table(tmp_path / "y.parquet", image=images), 3) == [read, read]


@pytest.mark.parametrize("name", ["question", "ground_truth", "image", "thinking"])
@pytest.mark.parametrize("written", [r'"\ud83d how?"', '"\udcff"'], ids=["escape", "byte"])
def test_half_a_character_costs_its_row_alone(tmp_path, row, name, written):
    """As a JSON escape that stands alone, or as a byte that is not UTF-8."""
    lines = [json.dumps(one) for one in (row, row | {name: "HERE"}, row)]
    text = "\n".join(lines).replace('"HERE"', written)
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    source = opened(str(path))
    assert [source[i].answer for i in (0, 2)] == ["4", "4"]
    with pytest.raises(UnreadableExample, match=r"^x\.jsonl:2: .*\\ud") as caught:
        source[1]
    example = caught.value.example
    for said in (str(caught.value), example.question, example.answer, example.solution):
        said.encode("utf-8")


def test_an_example_never_holds_a_text_that_cannot_be_written():
    texts = {"id": "x", "question": "q", "answer": "4", "solution": "4"}
    for name in texts:
        with pytest.raises(UserError, match=rf"its {name} is not UTF-8 text: 4\\ud83d"):
            Example(images=(), **texts | {name: "4\ud83d"})


def test_a_file_whose_name_is_no_utf8_has_examples(tmp_path, row):
    path = write_jsonl(tmp_path / "x\udcff.jsonl", [row])
    assert opened(path)[0].id == r"x\udcff.jsonl:1"


@pytest.mark.parametrize("thinking", [5, ["t"], {"a": "t"}])
def test_reasoning_that_is_no_text_is_not_taken_for_one(tmp_path, row, thinking):
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"thinking": thinking}]))
    with pytest.raises(UnreadableExample, match=r"x\.jsonl:1: its thinking is no text but"):
        source[0]


@pytest.mark.parametrize("name", ["question", "ground_truth", "image", "thinking"])
def test_lists_in_lists_cost_their_row_alone(tmp_path, row, name):
    """As deep as Python's parser goes, which is deeper than it can print."""
    held: list = []
    for _ in range(sys.getrecursionlimit()):
        held = [held]
    with pytest.raises(UnreadableExample, match=r"^x:0: its "):
        RowReader("x", tmp_path).example(row | {name: held}, "x:0")


# Images


@pytest.mark.parametrize("nothing", [None, [], "", {}])
def test_a_row_without_an_image_is_refused(tmp_path, row, nothing):
    """Or the question about an image would be answered without one."""
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"image": nothing}, row]))
    with pytest.raises(UnreadableExample, match=r"x\.jsonl:1: its image is empty"):
        source[0]
    assert source[1].answer == "4"
    images = pa.array([[], [{"bytes": png(1), "path": None}]])
    read = {"q 0": "its image is empty", "q 1": "4"}
    assert both_ways(write_table(tmp_path / "x.parquet", image=images), 2) == [read, read]


def encoded(seed=0):
    return base64.b64encode(png(seed)).decode()


@pytest.mark.parametrize(
    "held",
    [
        encoded(),
        encoded().rstrip("="),
        base64.urlsafe_b64encode(png(0)).decode(),
        base64.encodebytes(png(0)).decode(),  # in lines
        f"data:image/png;base64,{encoded()}",
        {"bytes": encoded(), "path": None},
        {"bytes": f"data:image/png;base64,{encoded()}"},
        {"path": "good.png"},
        {"bytes": None, "path": "good.png"},
        ["good.png"],
    ],
)
def test_an_image_may_be_base64_a_data_uri_or_a_path(tmp_path, row, held):
    noise(8, 6, seed=0).save(tmp_path / "good.png")
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"image": held}]))
    assert_same_pixels(source[0].images[0], noise(8, 6, seed=0))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.list_(pa.binary())])
def test_an_image_may_be_bytes_alone(tmp_path, kind):
    content = [png(0), png(1)]
    held = [[one] for one in content] if kind == pa.list_(pa.binary()) else content
    source = opened(write_table(tmp_path / "x.parquet", image=pa.array(held, kind)))
    assert_same_pixels(source[1].images[0], noise(8, 6, seed=1))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"path": 3}, "its image is neither bytes nor the path of a file"),
        ({"bytes": "abc"}, "the bytes of its image are a text, and not base64 of an image"),
        ({"bytes": [1, 2]}, "its image is neither bytes nor the path of a file"),
        ("data:image/png;base64,@@", "its image is a data URI, data:image/png;base64, but"),
        ("data:image/png,abc", "its image is a data URI, data:image/png, but no base64"),
        ("https://host/a.png", "its image is an address, https://host/a.png: only files are read"),
        ("a\0.png", r"a\\x00\.png cannot be read as an image: embedded null byte"),
        ("/dev/zero", "/dev/zero cannot be read as an image: it is not a file"),
        ("pipe", "pipe cannot be read as an image: it is not a file"),
        (".", "cannot be read as an image: it is not a file"),
        ([["good.png"]], "its image is neither bytes nor the path of a file"),
    ],
)
def test_an_image_that_is_none_is_named(tmp_path, row, held, message):
    """And a pipe that nobody writes to is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"image": held}]))
    with pytest.raises(UnreadableExample, match=rf"x\.jsonl:1: .*{message}"):
        source[0]


@pytest.mark.parametrize("held", ["x" * 10**6, encoded()[:50] * 10**4])
def test_what_is_said_of_an_image_is_short(tmp_path, row, held):
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"image": held}]))
    with pytest.raises(UnreadableExample) as caught:
        source[0]
    assert len(str(caught.value)) < 400


def test_paths_of_a_table_are_relative_to_its_folder_or_to_one_that_is_given(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    noise(8, 6, seed=0).save(tmp_path / "set" / "a.png")
    noise(8, 6, seed=1).save(tmp_path / "elsewhere" / "a.png")
    path = write_table(tmp_path / "set" / "x.parquet", image=pa.array(["a.png"]))
    datasets.Dataset.from_parquet(path).save_to_disk(tmp_path / "set" / "saved")
    noise(8, 6, seed=0).save(tmp_path / "set" / "saved" / "a.png")
    given = tmp_path / "elsewhere"
    for name in (path, str(tmp_path / "set" / "saved")):
        assert_same_pixels(opened(name)[0].images[0], noise(8, 6, seed=0))
        assert_same_pixels(opened(name, images=given)[0].images[0], noise(8, 6, seed=1))
    streamed = opened(path, streaming=True, limit=1, images=given)
    assert_same_pixels(streamed[0].images[0], noise(8, 6, seed=1))


def test_a_path_in_a_set_of_the_hub_needs_a_folder(row):
    with pytest.raises(UnreadableExample, match=r"the path good\.png, .*: give --images"):
        RowReader("someone/set", None).example(row, "someone/set:0")


# Placeholders


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_pretrained(write_directory(tmp_path_factory.mktemp("tiny")))


QWEN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(
    ("question", "images", "bare"),
    [
        ("<image>How many?", 1, "How many?"),  # EasyR1, verl
        ("<image>\nHow many?", 1, "How many?"),  # LLaVA
        (f"{QWEN}How many?", 1, "How many?"),
        ("How many? <image>", 1, "How many?"),
        ("<image> <image>\nHow many?", 2, "How many?"),
        ("<image>How many? <image>", 2, "How many?"),
        ("Is <image> as large as <image>?", 2, "Is <image> as large as <image>?"),
        (f"<image>Is it in {QWEN}?", 2, "<image>Is it in <image>?"),
        ("Is 1 <image_1>?", 1, "Is 1 <image_1>?"),  # no trainer's, so a text
    ],
)
def test_placeholders_of_other_trainers_are_taken_out(tmp_path, row, question, images, bare):
    held = row | {"question": question, "image": ["good.png"] * images}
    example = opened(write_jsonl(tmp_path / "x.jsonl", [held]))[0]
    assert (example.question, len(example.images)) == (bare, images)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("<image><image>q", r"has 2 <image> placeholder\(s\), but there are 1 image"),
        ("<image>", "its question is empty but for placeholders"),
        ("<video>q", "its question is about a <video>, and only images are read"),
    ],
)
def test_placeholders_that_contradict_the_images_are_refused(tmp_path, row, question, message):
    source = opened(write_jsonl(tmp_path / "x.jsonl", [row | {"question": question}]))
    with pytest.raises(UnreadableExample, match=message):
        source[0]


def test_placeholders_are_counted_and_said_once(tmp_path, row, caplog):
    reader = RowReader("set.jsonl", tmp_path)
    with caplog.at_level(logging.WARNING):
        for number, question in enumerate(["q", "<image>q", "<image>q", "<image>q"]):
            reader.example(row | {"question": question}, f"set.jsonl:{number}")
    assert reader.placeholders == 3
    (said,) = caplog.messages
    assert "set.jsonl have placeholders of their images (the first: set.jsonl:1)" in said


def example_of(question, *sizes):
    images = tuple(noise(*size) for size in sizes)
    return Example(id="x", images=images, question=question, answer="4", solution="4")


def prompt_of(example, processor, template="{question}"):
    encoded = in_order([example], processor, batch_size=1, template=template)
    _, _, prompt = next(encoded)
    return prompt


def test_an_image_between_words_stands_there_in_the_prompt(processor):
    example = example_of("A <image> B <image> C", (56, 56), (84, 56))
    prompt = prompt_of(example, processor, "{question} D")
    image = [{"type": "image", "image": image} for image in example.images]
    text = [{"type": "text", "text": text} for text in ("A ", " B ", " C D")]
    content = [text[0], image[0], text[1], image[1], text[2]]
    expected = processor.encode_chat([{"role": "user", "content": content}])
    np.testing.assert_array_equal(prompt.tokens, expected.tokens)
    for patches, others in zip(prompt.patches, expected.patches, strict=True):
        np.testing.assert_array_equal(patches, others)


def test_without_placeholders_the_images_stand_before_the_text(processor):
    example = example_of("A B", (56, 56), (84, 56))
    expected = processor.encode("A B", example.images)
    np.testing.assert_array_equal(prompt_of(example, processor).tokens, expected.tokens)


def test_a_template_with_other_placeholders_than_images_is_refused(processor):
    with pytest.raises(UnreadableExample, match=r"the prompt has 2 <image> placeholder\(s\)"):
        prompt_of(example_of("A", (56, 56)), processor, "<image><image>{question}")


# Further columns


def test_further_columns_of_plain_data_travel_with_an_example_if_asked_for(tmp_path):
    """Under their own names; whatever else stands in a row costs neither it nor the others."""
    broken = pa.array([b"fine", b"a\xff"]).view(pa.string())
    path = write_table(
        tmp_path / "x.parquet",
        answer=pa.array(["B", "C"]),  # not the truth, for there is a solution
        boxes=pa.array([[[1, 2]], []]),
        size=pa.array([3.14, None], pa.float32()),
        meta=pa.array([{"ok": True}, {"ok": None}]),
        kind=pa.array(["x", "y"]).dictionary_encode(),
        day=pa.array([datetime.date(2024, 1, 31), None]),
        text=broken,
        mask=pa.array([b"1", b"2"]),
        when=pa.array([0, 1], pa.int64()).cast(pa.timestamp("s")),
        ratio=pa.array([float("nan"), 1.0]),
    )
    first = {"answer": "B", "boxes": [[1, 2]], "size": 3.14, "meta": {"ok": True}, "kind": "x"}
    first |= {"day": "2024-01-31", "text": "fine"}
    second = {"answer": "C", "boxes": [], "meta": {"ok": None}, "kind": "y", "ratio": 1.0}
    for settings in ({}, {"streaming": True, "limit": 2}):
        config = DataConfig(dataset=path, **settings)
        source = open_source(config, columns=True)
        read = {source[index].question: dict(source[index].columns) for index in range(2)}
        assert read == {"q 0": first, "q 1": second}
        assert open_source(config)[0].columns == {}


def test_further_columns_of_a_json_file_are_what_stands_there(tmp_path, row):
    deep = json.loads("[" * 30 + "]" * 30)
    further = {"ids": [1, "a", None], "box": {"x": 0.5}, "empty": None, "deep": deep, "answer": "B"}
    path = write_jsonl(tmp_path / "x.jsonl", [row | further])
    source = open_source(DataConfig(dataset=path), columns=True)
    assert source[0].columns == {"ids": [1, "a", None], "box": {"x": 0.5}, "answer": "B"}


@pytest.mark.parametrize("settings", [{}, {"streaming": True, "limit": 2}])
def test_a_changed_further_column_is_a_changed_data_set(tmp_path, settings):
    texts = []
    for value in (1, 2):
        path = write_table(tmp_path / f"{value}.parquet", box=pa.array([0, value]))
        config = DataConfig(dataset=path, **settings)
        texts.append([list(open_source(config, columns=each).texts()) for each in (False, True)])
    (without, with_columns), (same, other) = texts
    assert without == same
    assert with_columns != other


# All of them


def test_training_goes_on_past_rows_of_every_kind(tmp_path, row, processor):
    spoilt = [
        {"question": "\ud83d"},
        {"ground_truth": "\ud83d"},
        {"image": "\ud83d"},
        {"image": []},
    ]
    rows = [row, *(row | entry for entry in spoilt), row]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in rows))
    loader = PromptLoader(
        opened(str(path)),
        processor,
        batch_size=4,
        seed=0,
        template="{question}",
        max_prompt_tokens=None,
    )
    for _ in range(3):
        examples, _ = next(loader)
        assert {example.id for example in examples} <= {"x.jsonl:1", "x.jsonl:6"}
    assert len(loader.left_out) == 4
    json.dumps([loader.get_state(), loader.left_out], ensure_ascii=False).encode("utf-8")


def test_an_evaluation_answers_what_it_can_and_names_the_rest(tmp_path, row, processor):
    rows = [row, row | {"question": "\ud83d"}, row]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(one) for one in rows))
    unreadable = []
    batches = in_order(
        opened(str(tmp_path / "x.jsonl")),
        processor,
        batch_size=4,
        template="{question}",
        unreadable=unreadable,
    )
    assert [example.id for _, example, _ in batches] == [
        "x.jsonl:1",
        "x.jsonl:3",
    ]
    assert [example.id for example in unreadable] == ["x.jsonl:2"]


def test_mutated_rows_are_used_or_named():
    """The campaign of experiments/soak/rows.py, in small."""
    assert [outcome for outcome in outcomes(seed=7, count=600) if not outcome.good] == []


def test_a_column_of_images_as_the_hub_has_it(tmp_path):
    """Whose type says that it holds images, so that `datasets` would decode them."""
    rows = r1v_rows(2)
    rows[1]["image"]["bytes"] = b"no image"
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "x.parquet")
    for read in both_ways(str(tmp_path / "x.parquet"), 2):
        assert read["question 0"] == "0"
        assert read["question 1"].startswith("the image cannot be read as an image")


def test_a_row_of_a_table_that_breaks_off_is_named(tmp_path):
    source = opened(write_parquet(tmp_path / "x.parquet", r1v_rows(2)))

    class Broken(type(source._table)):
        def __getitem__(self, where):
            raise OSError("a long story\nof the disk")

    source._table.__class__ = Broken
    with pytest.raises(UnreadableExample, match=r"x\.parquet:1: it cannot be read: a long story$"):
        source[1]


def test_bytes_of_an_image_need_no_path(tmp_path, row):
    reader = RowReader("x", tmp_path)
    image = {"bytes": png(0), "path": 3}
    assert_same_pixels(reader.example(row | {"image": image}, "x").images[0], noise(8, 6, seed=0))
