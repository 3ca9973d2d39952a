"""The table of what a run takes on machines that are not here."""

import json
from pathlib import Path

from experiments.bench import aot


def record(**changes):
    work = {"moved": {"all-gather": 3 * 10**9, "reduce-scatter": 10**9}}
    programs = {
        "reference": {"times": 1, "work": work},
        "update": {"times": 2, "work": work},
    }
    made = {"fits": True, "memory": 17 * 10**9, "micro_batches": 2, "peak": 16 * 10**9}
    return made | {"bound_seconds": 1.25, "programs": programs} | changes


def test_each_row_has_a_record_of_its_own():
    rows = list(aot.rows())
    assert len(rows) == len({row.file for row in rows}) == 2 * 3 * 5


def test_the_table_adds_up_what_a_step_moves():
    fits, refused = list(aot.rows())[:2]
    unknown = record(
        fits=False,
        bound_seconds=None,
        programs={"update": {"times": 1, "work": None}},
    )
    lines = aot.table({fits: record(), refused: unknown}).splitlines()[2:]
    assert lines == [
        "| 2B | all | v5e:2x4 | yes, of 17.0 | 2 | 16.0 | 12.0 | 1.2 |",
        "| 2B | text | v5e:2x4 | no, of 17.0 | 2 | 16.0 | not known | not known |",
    ]


def test_the_overview_has_a_line_a_run_and_a_column_a_machine():
    first, second = (aot.Row(size="2B", train="all", target=x) for x in ("v5e:2x4", "h100:1"))
    found = {first: record(), second: record(fits=False, memory=85 * 10**9)}
    lines = aot.overview(found).splitlines()
    assert lines[0] == "| model, `--train` | v5e:2x4, 17 GB | h100:1, 85 GB |"
    assert lines[2] == "| 2B, all | 16.0 GB, 1.2 s, 2 micro-batches | no: 16.0 GB |"
    assert lines[3] == "| 2B, text | not compiled | not compiled |"


def test_the_command_of_a_run_that_fits_is_that_of_its_record():
    rows = [row for row in aot.rows() if row.size == "7B" and row.train == "lora"][:2]
    said = aot.commands({rows[0]: record(), rows[1]: record(fits=False)})
    assert said == (
        "othink-jax grpo --model Qwen/Qwen2-VL-7B-Instruct --train lora --strategy mesh --tensor 4"
        f" {' '.join(aot.OPTIONS)} --micro-batches 2  # v5e:2x4"
    )


def test_committed_pages_are_made_from_committed_records():
    found = {row: json.loads(row.file.read_text()) for row in aot.rows() if row.file.exists()}
    assert aot.PAGE.read_text() == aot.page(found)
    assert aot.overview(found) in (Path(aot.__file__).parents[2] / "docs/machines.md").read_text()


def test_committed_records_are_those_of_the_rows_that_are_named():
    for row in aot.rows():
        if row.file.exists():
            found = json.loads(Path(row.file).read_text())
            assert found["options"] == [*row.options, *aot.OPTIONS]
            assert found["target"] == row.target
