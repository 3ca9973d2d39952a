"""The notebook runs from its first cell to its last."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from othink_jax.files import read_json_lines

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "tutorial.ipynb"
FEWER = {"STEPS = 60": "STEPS = 2", "COUNT = 200": "COUNT = 8"}


def outputs(notebook, kind):
    return [out for cell in notebook.cells for out in cell.get("outputs", ()) if kind in str(out)]


def test_the_notebook_runs_with_fewer_steps_and_questions(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for many, few in FEWER.items():
            cell.source = cell.source.replace(many, few)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert len(outputs(notebook, "image/png")) == 3
    assert outputs(notebook, "of 8 right, for example")
    assert outputs(notebook, "reward_near")
    assert len(read_json_lines(tmp_path / "tutorial" / "run" / "metrics.jsonl")) == 2


def test_what_is_shown_without_running_it_is_of_one_run_and_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(some in code[number].source for number, some in ((0, "STEPS = 60"), (4, "own.py")))
    assert not outputs(notebook, "/home/")
    assert not outputs(notebook, "stderr")
    assert NOTEBOOK.stat().st_size < 600_000
