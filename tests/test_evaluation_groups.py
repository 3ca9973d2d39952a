"""The accuracy by the values of a column, and the columns that sources tell without images."""

import dataclasses
import json

import datasets
import pytest

from othink_jax.config import DataConfig
from othink_jax.data import sources
from othink_jax.data.example import UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.data.synthetic import generate
from othink_jax.errors import UserError
from othink_jax.evaluation import evaluate
from othink_jax.evaluation.groups import over_groups, read_groups
from othink_jax.report.evaluation import group_tables
from othink_jax.statistics import share_interval, wilson_interval
from tests.test_evaluation import config_for


class Rows:
    """A source of which only further columns are asked."""

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def further(self, index):
        return self.rows[index]


def test_accuracies_by_values_in_rising_order_and_what_has_none_at_the_end():
    values = [{"k": 10}, {"k": "b"}, {"k": 9}, {}, {"k": None}, {"k": True}, {"k": 9}]
    groups = read_groups(Rows(*values), ["k"])
    shares = dict(enumerate([1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.75]))
    found = over_groups(groups, shares)["k"]
    assert list(found) == ["9", "10", "b", "true", "(none)"]
    assert [one["n"] for one in found.values()] == [2, 1, 1, 1, 2]
    assert [one["accuracy"] for one in found.values()] == [0.625, 1, 0, 1, 0.5]
    assert found["9"]["interval"] == list(share_interval([0.5, 0.75]))
    assert found["(none)"]["interval"] == list(wilson_interval(1, 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"level": 1}, {"kind": "a"}], "--by topic: .* no such column; they have level, kind$"),
        ([{}, {}], "--by topic: .* they have no columns$"),
        ([{"topic": n} for n in range(51)], "--by topic: the column has 51 values, .* at most 50$"),
    ],
)
def test_a_column_that_makes_no_table_is_one_clear_line(rows, message):
    with pytest.raises(UserError, match=message):
        read_groups(Rows(*rows), ["topic"])


@pytest.fixture
def questions(tmp_path):
    """A JSONL file of five questions: one has a broken image, one is very long."""
    rows = []
    for index, kind in enumerate(("a", "b", "b", "a", None)):
        example = generate("counting", "test", index)
        example.images[0].save(tmp_path / f"{index}.png")
        row = {"question": example.question, "ground_truth": example.answer}
        rows.append(row | {"image_path": f"{index}.png"} | ({"kind": kind} if kind else {}))
    (tmp_path / "1.png").write_bytes(b"not a picture")
    rows[3]["question"] += " objects" * 100
    rows[0]["ground_truth"] = "100"
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_questions_that_cannot_be_read_count_as_wrong_in_their_own_group(questions, tmp_path):
    plain = evaluate(config_for(questions, tmp_path / "plain"))
    config = dataclasses.replace(config_for(questions, tmp_path / "out"), by=("kind",))
    result = evaluate(config)
    rows = [
        json.loads(line) for line in (config.out / "predictions.jsonl").read_text().splitlines()
    ]
    right = {row["id"][-1]: row["correct"] for row in rows}
    found = result["by"]["kind"]
    assert {kind: one["n"] for kind, one in found.items()} == {"a": 2, "b": 2, "(none)": 1}
    assert found["a"]["accuracy"] == (right["1"] + right["4"]) / 2
    assert found["b"]["accuracy"] == (right["2"] + right["3"]) / 2
    [table] = group_tables(result)
    assert table.columns == ("kind", "accuracy", "95% interval", "n")
    assert [row[0] for row in table.rows] == ["a", "b", "(none)"]
    # Nothing else is other than without it.
    assert "by" not in plain["config"]
    assert result["config"]["by"] == ["kind"]
    for other in (plain, result):
        del other["seconds"], other["config"]
    assert {name: value for name, value in result.items() if name != "by"} == plain


def test_a_column_that_does_not_exist_is_said_before_anything_is_answered(questions, tmp_path):
    config = dataclasses.replace(config_for(questions, tmp_path / "out"), by=("topic",))
    with pytest.raises(UserError, match="no such column; they have kind"):
        evaluate(dataclasses.replace(config, model=str(tmp_path / "no model is loaded")))
    assert not config.out.exists()


def test_columns_told_without_images_are_those_of_the_examples(questions):
    folder = questions.parent
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    path = str(folder / "rows.parquet")
    images = [(folder / row["image_path"]).read_bytes() for row in rows]
    table = {name: [row.get(name) for row in rows] for name in ("question", "kind")}
    table |= {"solution": [row["ground_truth"] for row in rows], "image": images}
    datasets.Dataset.from_dict(table).to_parquet(path)
    small = {"limit": 3, "limit_seed": 1}
    for settings in (
        {"dataset": str(questions)},
        {"dataset": path},
        {"dataset": path, **small},
        {"dataset": path, "streaming": True, **small},
        {"dataset": (str(questions), path)},
        {"task": "counting", **small},
    ):
        source = open_source(DataConfig(**settings), columns=True)
        told = 0
        for number in range(len(source)):
            try:
                assert source.further(number) == source[number].columns
                told += bool(source.further(number))
            except UnreadableExample:  # which is not found out without its image
                pass
        assert (told > 0) == ("task" not in settings)


def test_a_row_that_cannot_be_read_has_no_columns(tmp_path, monkeypatch):
    table = {"question": ["q"], "solution": ["1"], "image": [b""], "kind": ["a"]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "rows.parquet")
    source = open_source(DataConfig(dataset=str(tmp_path / "rows.parquet")), columns=True)

    def broken(rows, used):
        raise OSError("a page of it is damaged")

    assert source.further(0) == {"kind": "a"}
    monkeypatch.setattr(sources, "plain", broken)
    assert source.further(0) == {}
