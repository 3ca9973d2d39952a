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


def test_committed_records_are_those_of_the_rows_that_are_named():
    for row in aot.rows():
        if row.file.exists():
            found = json.loads(Path(row.file).read_text())
            assert found["options"] == [*row.options, *aot.OPTIONS]
            assert found["target"] == row.target
