"""Several data sets as one: read alike, or by weight; names of columns of one's own."""

import dataclasses
import json
from collections import Counter

import pytest

from othink_jax.checkpoint.hf import TINY
from othink_jax.config import DataConfig, EvaluateConfig, GRPOConfig, ResumeConfig
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import Processor
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.evaluation import evaluate
from tests.tiny_processor import noise


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(56, 56).save("x.png")
    return tmp_path


def write(name, count, *, question="question", answer="answer", image="image"):
    """A file of rows; returns its name."""
    rows = [
        {question: f"Q {name} {n}", answer: f"A {name} {n}", image: "x.png"} for n in range(count)
    ]
    with open(name, "w") as file:
        file.write("\n".join(map(json.dumps, rows)))
    return name


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained(TINY)


def questions(source):
    return [source[number].question for number in range(len(source))]


def drawn(source, processor, batches, batch_size=4, seed=0):
    loader = make_loader(source, processor, batch_size, seed)
    return [example.id for _ in range(batches) for example in next(loader)[0]]


def make_loader(source, processor, batch_size=4, seed=0):
    return PromptLoader(
        source,
        processor,
        batch_size=batch_size,
        seed=seed,
        template="{question}",
        max_prompt_tokens=None,
    )


def test_data_sets_without_weights_are_one_whose_examples_come_once_an_epoch(folder, processor):
    names = (write("a.jsonl", 5), write("b.jsonl", 3))
    source = open_source(DataConfig(dataset=names))
    assert questions(source) == [f"Q a.jsonl {n}" for n in range(5)] + [
        f"Q b.jsonl {n}" for n in range(3)
    ]
    epoch = drawn(source, processor, 2)
    assert len(set(epoch)) == 8


def test_a_weight_is_a_share_of_the_prompts_however_many_examples_there_are(folder, processor):
    names = (write("a.jsonl", 40), write("b.jsonl", 3) + "=0.25")
    ids = drawn(open_source(DataConfig(dataset=names)), processor, 20)
    counts = Counter(name.partition(":")[0] for name in ids)
    assert counts == {"a.jsonl": 64, "b.jsonl": 16}
    assert set(Counter(name for name in ids if name[0] == "b").values()) == {5, 6}
    assert drawn(open_source(DataConfig(dataset=names)), processor, 20) == ids
    assert drawn(open_source(DataConfig(dataset=names)), processor, 20, seed=1) != ids


def test_a_mixture_goes_on_where_it_stood(folder, processor):
    config = DataConfig(dataset=(write("a.jsonl", 6), write("b.jsonl", 3) + "=2"))
    loader = make_loader(open_source(config), processor)
    for _ in range(3):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [[e.id for e in next(loader)[0]] for _ in range(3)]
    other = make_loader(open_source(config), processor)
    other.set_state(state)
    assert [[e.id for e in next(other)[0]] for _ in range(3)] == expected
    write("b.jsonl", 3, answer="solution")  # the same questions in other words
    changed = make_loader(open_source(config), processor)
    with pytest.raises(UserError, match="not what this run has read"):
        changed.set_state(state)


def test_a_limit_is_that_of_each_data_set(folder):
    names = (write("a.jsonl", 5), write("b.jsonl", 3))
    found = questions(open_source(DataConfig(dataset=names, limit=2)))
    assert [question[2] for question in found] == ["a", "a", "b", "b"]
    with pytest.raises(UserError, match=r"b\.jsonl holds only 3"):
        open_source(DataConfig(dataset=names, limit=4))


def test_columns_of_other_names_are_read_where_a_data_set_has_them(folder):
    other = write("b.jsonl", 1, question="query", answer="label", image="img")
    config = DataConfig(
        dataset=(write("a.jsonl", 1), other), columns="question=query, answer=label,image=img"
    )
    first, second = (open_source(config)[number] for number in range(2))
    assert (first.question, first.answer) == ("Q a.jsonl 0", "A a.jsonl 0")
    assert (second.question, second.answer) == ("Q b.jsonl 0", "A b.jsonl 0")


def test_what_is_not_read_from_a_column_travels_to_the_reward(folder):
    """`question` is a further column where another one is named."""
    with open("rows.jsonl", "w") as file:
        file.write(json.dumps({"question": "no", "q": "yes", "answer": "1", "image": "x.png"}))
    config = DataConfig(dataset="rows.jsonl", columns="question=q")
    example = open_source(config, columns=True)[0]
    assert (example.question, example.columns) == ("yes", {"question": "no"})


def test_a_column_that_is_missing_is_named_as_it_was_given(folder):
    other = write("b.jsonl", 1, answer="label")
    with pytest.raises(UserError, match="no column labl or solution or ground_truth or answer"):
        open_source(DataConfig(dataset=other, columns="answer=labl"))


def test_a_column_that_no_data_set_has_is_refused_with_those_there_are(folder):
    config = DataConfig(dataset=write("a.jsonl", 1), columns="answer=label")
    with pytest.raises(UserError, match="answer=label: there is no such column; there are q"):
        open_source(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": ("a", "b=0")}, "must be > 0"),
        ({"dataset": ("a", "b=-1")}, "must be > 0"),
        ({"dataset": ("a", "b=nan")}, "must be > 0"),
        ({"dataset": ("a", "b=inf")}, "finite"),
        ({"dataset": ("a=1", "a=2")}, "given twice"),
        ({"dataset": ("a", "b"), "streaming": True}, "one --dataset"),
        ({"dataset": "a", "columns": "answer"}, "ROLE=COLUMN"),
        ({"dataset": "a", "columns": "picture=img"}, "each of question, answer, image, thinking"),
        ({"dataset": "a", "columns": "answer=x,answer=y"}, "once at most"),
        ({"task": "counting", "columns": "answer=x"}, "goes with a --dataset"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


def test_a_name_alone_may_hold_an_equals_sign():
    assert DataConfig(dataset="year=2020").mixture == (("year=2020", None),)
    assert DataConfig(dataset=("year=2020=1", "b")).mixture == (("year=2020", 1.0), ("b", None))
    assert DataConfig(dataset=("s3=x/rows", "b")).weights is None


def test_an_empty_data_set_of_several_is_named(folder):
    with open("b.jsonl", "w"):
        pass
    with pytest.raises(UserError, match=r"b\.jsonl holds no examples"):
        open_source(DataConfig(dataset=(write("a.jsonl", 2), "b.jsonl")))


def test_weights_are_for_training(folder):
    names = (write("a.jsonl", 2), write("b.jsonl", 2) + "=2")
    config = EvaluateConfig(model="tiny", out=folder / "out", data=DataConfig(dataset=names))
    with pytest.raises(UserError, match="asks each question once"):
        evaluate(config)


def test_data_sets_that_have_moved_keep_their_weights(folder):
    data = DataConfig(dataset=("a.jsonl", "b.jsonl=0.5"))
    config = GRPOConfig(model="tiny", out=folder, data=data, steps=1)
    moved = ResumeConfig(resume=folder, dataset=("x/a.jsonl", "x/b.jsonl")).applied(config)
    assert moved.data.mixture == (("x/a.jsonl", None), ("x/b.jsonl", 0.5))
    with pytest.raises(UserError, match="where 2 data set"):
        ResumeConfig(resume=folder, dataset="x/a.jsonl").applied(config)
    third = dataclasses.replace(data, dataset=("a.jsonl", f"b.jsonl={1 / 3}"))
    assert third.with_dataset_paths(("x", "y")).weights == (1.0, 1 / 3)
    write("b.jsonl", 1)
    assert data.with_absolute_paths(folder).dataset == ("a.jsonl", f"{folder / 'b.jsonl'}=0.5")
    assert dataclasses.replace(config, data=data.with_absolute_paths(folder)) != config
