"""Cells of experiments: what names them, what is done once, and what is made of their scores."""

import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from experiments import tuning
from experiments.figure1_sft_vs_grpo import OverUpdates
from experiments.figure4_format_weight import FormatWeight
from experiments.figure5_training_curves import equation_3
from experiments.figure6_kl_weight import KLWeight
from experiments.figure7_cross_task import CrossTask
from experiments.figure8_case_study import CaseStudy
from experiments.lab import cells, runner
from experiments.lab import experiment as lab_experiment
from experiments.lab.cells import Cell, evaluation_directory, evaluation_name, is_done
from experiments.lab.experiment import Options, write
from experiments.lab.scales import (
    METHODS,
    TASKS,
    Laptop,
    Paper,
    PaperSetup,
    Tuned,
    changed,
    constant_kl,
    first_kl,
    read_tuned,
)
from experiments.lab.scores import Score, compare, predictions_of, score_of
from experiments.long_run import LongRun
from experiments.matched_settings import MatchedSettings
from experiments.negative_control import NegativeControl
from experiments.regime_search import REGIMES, RegimeSearch
from experiments.table1_same_task import SameTask
from experiments.tuning import Tuning
from othink_jax.config import GRPOConfig, KLConfig, ParallelConfig, SFTConfig
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError
from othink_jax.report.table import Table
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.run_directory import RunDirectory

TUNED = {
    (method, task): Tuned(learning_rate=1e-4, kl=None if method == "sft" else KLConfig())
    for method in METHODS
    for task in TASKS
}
LAPTOP = Laptop(tuned=TUNED, steps=2, count=8)
PAPER = Paper(setup=PaperSetup(counting_test="counting.jsonl", geometry_test="geometry.jsonl"))


def score(*correct: bool, contents: str = "abcdefghij") -> Score:
    accuracy = sum(correct) / len(correct)
    return Score(
        accuracy=accuracy,
        accuracy_r1v=accuracy,
        format=1.0,
        tokens=9.0,
        correct=tuple(correct),
        contents=tuple(contents),
    )


def finish(root: Path, cell: Cell, accuracy: float, step: int | None = None) -> None:
    """What the tests of a finished cell leave behind, or of its checkpoint of a step.

    R1-V's grader calls half as many answers right.
    """
    for test in cell.tests:
        directory = evaluation_directory(root, cell, test, step)
        directory.mkdir(parents=True, exist_ok=True)
        text = "<think>quick look</think> <answer>1</answer>"
        rows = [
            {"id": f"row {n}", "correct": n < 10 * accuracy, "model_output": text * (n % 2)}
            for n in range(10)
        ]
        (directory / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        result = {"accuracy_strict": accuracy, "accuracy_r1v": accuracy / 2}
        result |= {"format": 1.0, "tokens": 9.0}
        (directory / "result.json").write_text(json.dumps(result))


def write_metrics(root: Path, cell: Cell) -> None:
    """20 steps, in which the accuracy of samples falls from 1 to 0.05."""
    rows = [{"reward_accuracy": 1 - n / 20, "kl": 0.1, "beta": 0.04} for n in range(20)]
    (root / cell.name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(autouse=True)
def tuned(monkeypatch):
    monkeypatch.setattr(lab_experiment, "read_tuned", lambda path: TUNED)


def made(experiment, directory: Path, **options):
    """An experiment of two seeds whose files lie in a directory."""
    places = {"runs": directory / "runs", "out": directory / "results"}
    return experiment(Options(**places, seeds=2, **options))


@pytest.mark.parametrize("scale", [LAPTOP, PAPER], ids=["laptop", "paper"])
def test_a_cell_comes_back_from_json_and_has_the_same_name(scale):
    for cell in (scale.base(), *(scale.cell(method, "counting", 3) for method in METHODS)):
        assert Cell.from_json(cell.to_json()) == cell
        assert Cell.from_json(cell.to_json()).name == cell.name


def test_the_name_of_a_cell_tells_its_settings_apart_but_not_where_it_lies():
    cell = LAPTOP.cell("grpo", "counting", 0)
    assert cell.name.startswith("grpo-counting-seed0-")
    assert cell.train is not None
    moved = dataclasses.replace(cell, train=dataclasses.replace(cell.train, out=Path("else")))
    assert moved.name == cell.name
    labelled = dataclasses.replace(cell.train, notes="as before", tags=("a",))
    assert dataclasses.replace(cell, train=labelled).name == cell.name
    others = [
        LAPTOP.cell("grpo", "counting", 1),
        LAPTOP.cell("grpo", "geometry", 0),
        LAPTOP.cell("grpo", "counting", 0, kl_value=0.02),
        LAPTOP.cell("grpo", "counting", 0, format_weight=0.5),
        LAPTOP.cell("grpo", "counting", 0, steps=3),
        dataclasses.replace(cell, model="else"),
    ]
    assert len({cell.name, *(other.name for other in others)}) == 7
    assert len({evaluation_name(test) for test in cell.tests}) == len(cell.tests) == 6


def test_evaluations_keep_the_names_under_which_finished_ones_lie():
    """Of the laptop's scale, and whatever devices answer."""
    test = Laptop(tuned={}).test("counting")
    assert evaluation_name(test) == "counting-test-greedy-25b4a763"
    spread = dataclasses.replace(test, parallel=ParallelConfig(strategy="pmap"))
    assert evaluation_name(spread) == evaluation_name(test)
    sampled = Laptop(tuned={}).test("geometry", temperature=1.0)
    assert evaluation_name(sampled) == "geometry-test-sampled-a8e4b4f2"


def test_changes_go_over_a_field_or_over_that_of_a_group():
    config = LAPTOP.cell("grpo", "counting", 0).train
    made = changed(config, {"steps": 7, "kl_value": 0.3, "learning_rate": 0.5})
    assert (made.steps, made.kl.kl_value, made.optimizer.learning_rate) == (7, 0.3, 0.5)
    assert dataclasses.replace(made, steps=2, kl=config.kl, optimizer=config.optimizer) == config
    with pytest.raises(TypeError, match="no_such_setting"):
        changed(config, {"no_such_setting": 1})


def test_methods_at_laptop_scale_get_the_same_samples_and_updates():
    for task in TASKS:
        runs = [LAPTOP.cell(method, task, 4).train for method in METHODS]
        common = {(run.data, run.steps, run.prompts_per_step, run.seed) for run in runs}
        assert len(common) == 1


def test_paper_scale_has_the_settings_of_the_paper_and_of_r1v():
    grpo_d = PAPER.cell("grpo_d", "geometry", 0).train
    assert isinstance(grpo_d, GRPOConfig)
    assert (grpo_d.kl.kl_min, grpo_d.kl.kl_max, grpo_d.kl.exploration_fraction) == (0.0, 0.02, 0.3)
    assert (grpo_d.prompts_per_step, grpo_d.group_size, grpo_d.optimizer.learning_rate) == (
        16,
        8,
        1e-6,
    )
    assert grpo_d.data.limit is None
    assert grpo_d.reward.grade_as == PAPER.test("geometry").reward.grade_as == "geometry"
    assert PAPER.test("counting").reward.grade_as == "counting"
    counting = PAPER.cell("grpo", "counting", 0).train
    assert (counting.kl.kl_schedule, counting.kl.kl_value) == ("constant", 0.04)
    assert counting.data.limit == 100
    large = dataclasses.replace(PAPER, setup=PaperSetup(model="Qwen/Qwen2-VL-7B-Instruct"))
    assert large.cell("grpo", "counting", 0).train.data.limit == 120
    sft = PAPER.cell("sft", "counting", 0).train
    assert isinstance(sft, SFTConfig)
    assert (sft.optimizer.learning_rate, sft.optimizer.lr_schedule) == (2e-5, "cosine")


def test_what_is_done_is_not_done_again_and_what_failed_is_named(tmp_path, monkeypatch):
    base, other = LAPTOP.base(), dataclasses.replace(LAPTOP.base(), model="else")
    ran = []

    def run(processes, cell, root, core, log):
        ran.append(cell)
        if cell.model == "else":
            return False
        finish(root, cell, 0.5)
        return True

    monkeypatch.setattr(runner._Processes, "run", run)
    # Asked for twice, with different tests: one cell with all of them.
    halves = [dataclasses.replace(base, tests=base.tests[:2]), base]
    with pytest.raises(UserError, match=rf"cells failed, see .*{other.name}\.log"):
        runner.run_all([*halves, other], tmp_path)
    assert sorted(cell.model for cell in ran) == ["else", "tiny"]
    assert is_done(tmp_path, base)
    assert not is_done(tmp_path, other)
    runner.run_all([base], tmp_path)
    assert len(ran) == 2


def test_tuning_gives_each_method_as_many_trials_and_takes_the_best(tmp_path):
    experiment = made(Tuning, tmp_path)
    assert len({cell.name for cell in experiment.cells()}) == len(experiment.cells()) == 96
    for method, task, seed in itertools.product(METHODS, TASKS, experiment.seeds):
        for number, trial in enumerate(tuning.trials(method, task)):
            accuracy = 0.8 if number in ((2, 6) if task == "counting" else (5,)) else 0.3
            finish(experiment.options.root, experiment._cell(method, task, trial, seed), accuracy)
    result = experiment.result()
    write(result, experiment.options.results / "tuning", "Tuning.")
    chosen = read_tuned(experiment.options.results / "tuning" / "results.json")
    assert chosen["sft", "counting"] == tuning.trials("sft", "counting")[2]
    # Of two that are equally good, that with the paper's own weights for the task.
    assert chosen["grpo_d", "counting"].kl == KLConfig(kl_min=0.04, kl_max=0.10)
    assert chosen["grpo_d", "geometry"] == tuning.trials("grpo_d", "geometry")[5]
    assert len(result.tables[0].rows) == 48
    with pytest.raises(UserError, match=r"run python -m experiments\.tuning first"):
        read_tuned(tmp_path / "absent.json")
    for text, message in (("{bro", "is not a JSON file"), ("{}", "was not written by")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_tuned(tmp_path / "other.json")


def test_methods_are_compared_seed_by_seed_on_the_same_questions():
    """Six to nothing in both seeds: p = 2 / 64, twice that after correction for two of two."""
    low = [score(*[False] * 6, *[True] * 4)] * 2
    high = [score(*[True] * 10), score(*[True] * 10)]
    (one,) = compare({"sft": low, "grpo": high}, [("sft", "grpo")])
    assert one.differences == pytest.approx((0.6, 0.6))
    assert one.p_values == pytest.approx((0.0625, 0.0625))
    assert one.verdicts == "0 better, 0 worse of 2"
    (same,) = compare({"sft": low, "grpo": low}, [("sft", "grpo")])
    assert same.p_values == (1.0, 1.0)
    # The base is one model, the same for every seed; without correction for two, 2 / 64 < 5%.
    (over,) = compare({"base": low[:1], "grpo": high[:1]}, [("base", "grpo")])
    assert over.verdicts == "1 better, 0 worse of 1"
    (under,) = compare({"base": high[:1], "grpo": low}, [("base", "grpo")])
    assert under.differences == pytest.approx((-0.6, -0.6))


def test_questions_about_one_thing_are_taken_together():
    """Six to nothing, but on two things only: p = 2 / 4."""
    low = [score(*[False] * 6, *[True] * 4, contents="aaabbbcdef")]
    high = [score(*[True] * 10, contents="aaabbbcdef")]
    (one,) = compare({"low": low, "high": high}, [("low", "high")])
    assert one.p_values == pytest.approx((0.5,))
    other = [score(*[True] * 10)]
    with pytest.raises(AssertionError):
        compare({"low": low, "other": other}, [("low", "other")])


def test_what_a_question_shows_is_read_from_its_name(tmp_path):
    cell, test = LAPTOP.base(), LAPTOP.test("geometry")
    finish(tmp_path, cell, 0.5)
    file = evaluation_directory(tmp_path, cell, test) / "predictions.jsonl"
    rows = [{"id": f"geometry-test-0-{n}", "correct": True, "model_output": ""} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "id": "file.jsonl:1"}])))
    contents = score_of(tmp_path, cell, test).contents
    assert contents[-1] == "file.jsonl:1"
    assert all(split_of(content) == "test" for content in contents[:-1])
    assert 5 < len(set(contents[:-1])) < 40  # few figures, again and again


def test_a_table_is_text_csv_and_html():
    table = Table(title="T", columns=["a", "b"], rows=[["x, y", "<1>"]], note="n")
    assert table.text() == "T\na     b\n----  ---\nx, y  <1>\nn\n"
    assert table.csv() == 'a,b\n"x, y",<1>\n'
    assert '<th scope="row">x, y</th><td>&lt;1&gt;</td>' in table.html()


def finish_table_1(experiment: SameTask) -> None:
    """With a tenth more of each method from the second seed."""
    values = {"base": 0.3, "sft": 0.5, "grpo": 0.6, "grpo_d": 0.9}
    for cell in experiment.cells():
        seed = 0 if cell.train is None else cell.train.seed
        finish(experiment.options.root, cell, values[cell.method] + 0.1 * seed)
        write_metrics(experiment.options.root, cell)


def test_table_1_shows_every_seed_beside_the_published_number(tmp_path):
    experiment = made(SameTask, tmp_path)
    finish_table_1(experiment)
    result = experiment.result()
    ours = ["95.0 (31.5 to 158.5)", "47.5 (15.7 to 79.3)"]
    assert result.tables[0].rows[3][:5] == ["GRPO-D", *ours, "76.50", "90.0 100.0"]
    assert result.tables[1].rows[0][:3] == ["SFT - GRPO", "-10.0 (-10.0 to -10.0)", "-10.0 -10.0"]
    manner = result.tables[4]
    assert manner.columns[-2:] == ["geometry: quick looks, every seed", "KL"]
    assert "Quick looks" in manner.note
    assert manner.rows[0] == ["base", "", *("100.0", "9.0", "50") * 2, ""]
    assert manner.rows[2] == ["GRPO", "counting", *("100.0", "9.0", "50 50") * 2, "0.1"]
    assert result.figure is not None


def test_table_1_has_every_seed_of_every_model_on_every_test(tmp_path):
    experiment = made(SameTask, tmp_path)
    finish_table_1(experiment)
    result = experiment.result()
    everything = result.tables[3]
    assert len(everything.rows) == len(result.numbers["scores"]) == 6 * 7
    assert everything.rows[7][:4] == ["counting, test", "sampled", "base", ""]
    model = ["counting, test-ood", "sampled", "GRPO-D", "geometry"]
    (row,) = (row for row in everything.rows if row[:4] == model)
    assert row[4:] == ["95.0 (31.5 to 158.5)", "47.5", "90.0 100.0"]
    number = everything.rows.index(row)
    *model, seeds = result.numbers["scores"][number].values()
    assert model == ["counting, test-ood", "sampled", "grpo_d", "geometry"]
    assert seeds == [
        {"accuracy": 0.9, "accuracy_r1v": 0.45, "format": 1.0},
        {"accuracy": 1.0, "accuracy_r1v": 0.5, "format": 1.0},
    ]


def test_the_style_of_the_embedded_model_is_not_looked_for_in_another(tmp_path):
    experiment = made(SameTask, tmp_path, scale="paper")
    finish_table_1(experiment)
    manner = experiment.result().tables[4]
    told = ["counting: right format", "counting: tokens"]
    told += ["geometry: right format", "geometry: tokens"]
    assert manner.columns == ["method", "trained on", *told, "KL"]
    assert "look" not in manner.note


def test_figure_1_shows_every_checkpoint_that_was_kept(tmp_path):
    experiment = made(OverUpdates, tmp_path)
    base, *trained = experiment.cells()
    finish(experiment.options.root, base, 0.2)
    for cell in trained:
        assert cell.train is not None
        assert cell.train.checkpoint_every == 25
        run = experiment.options.root / cell.name
        RunDirectory(run).begin(cell.train, 110, GRPOTrainer)
        for step in (50, 100, 37):  # in the order of numbers, without that of an interruption
            (run / "checkpoints" / str(step)).mkdir(parents=True)
            finish(experiment.options.root, cell, step / 200 + 0.1 * cell.train.seed, step)
        finish(experiment.options.root, cell, 0.9)
    result = experiment.result()
    assert [row[0] for row in result.tables[0].rows] == ["50", "100", "110"]
    assert result.tables[0].rows[1][1].startswith("55.0 (")
    assert result.tables[0].rows[1][2] == "27.5"
    curve = result.numbers["curves"]["grpo"][1]
    strict = {step: record["accuracy"] for step, record in curve.items()}
    assert strict == pytest.approx({0: 0.2, 50: 0.35, 100: 0.6, 110: 0.9})
    assert curve[100]["accuracy_r1v"] == pytest.approx(0.3)


def test_figure_4_shows_the_published_numbers_and_the_base(tmp_path):
    experiment = made(FormatWeight, tmp_path)
    for cell in experiment.cells():
        trained = isinstance(cell.train, GRPOConfig)
        weight = cell.train.reward.format_weight if trained else -0.4
        finish(experiment.options.root, cell, 0.5 + weight / 4)
    result = experiment.result()
    base, lowest, *_, highest = result.tables[0].rows
    assert base == ["base", "40.0 (3.1 to 76.9)", "20.0", "100.0", "", "", "", "40.0"]
    right = "100.0 (100.0 to 100.0)"
    assert lowest[2:] == ["25.0", right, "99.70", "", "", "50.0 50.0"]
    assert highest[2:] == ["37.5", right, "", "50.0 (50.0 to 50.0)", "about 20", "75.0 75.0"]
    whole = {"accuracy": 0.75, "accuracy_r1v": 0.375, "format": 1.0}
    assert result.numbers["weights"]["1"] == [whole, whole]
    assert len(result.numbers["weights"]["base"]) == 1


def test_figure_6_shows_each_weight_by_both_graders(tmp_path):
    experiment = made(KLWeight, tmp_path)
    for cell in experiment.cells():
        assert isinstance(cell.train, GRPOConfig)
        finish(experiment.options.root, cell, 0.5 + 10 * cell.train.kl.kl_value)
    result = experiment.result()
    gain = "50.0 (50.0 to 50.0)"
    assert result.tables[0].rows[0] == ["0", gain, "25.0", "", "50.0 50.0"]
    assert result.tables[0].rows[5][2:4] == ["50.0", gain]
    assert [one["accuracy_r1v"] for one in result.numbers["weights"][0.05]] == [0.5, 0.5]


def test_figure_7_shows_the_change_over_the_base_beside_the_published_one(tmp_path):
    experiment = made(CrossTask, tmp_path)
    for cell in experiment.cells():
        finish(experiment.options.root, cell, 0.4 if cell.train is None else 0.6)
    result = experiment.result()
    change = "50.0 (50.0 to 50.0)"
    row = ["60.0 (60.0 to 60.0)", "30.0", change, "63.53", "50.0 50.0"]
    assert result.tables[0].rows[3] == ["geometry to counting", "GRPO-D", *row]
    found = result.numbers["counting to geometry"]
    assert [one["accuracy_r1v"] for one in found["sft"]] == [0.3, 0.3]


def test_figure_8_counts_questions_by_both_graders(tmp_path):
    """R1-V's grader wants nothing but digits in the answer tag of a counting question."""
    experiment = made(CaseStudy, tmp_path)
    said = {"sft": ["3", "a dog", "3"], "grpo_d": ["4", "3", "3.0"]}
    for cell in experiment.cells():
        for test in cell.tests:
            directory = evaluation_directory(experiment.options.root, cell, test)
            directory.mkdir(parents=True)
            rows = [
                {
                    "id": f"counting-test-0-{number}",
                    "ground_truth": "3",
                    "model_output": f"<answer>{answer}</answer>",
                    "correct": answer in ("3", "3.0"),
                }
                for number, answer in enumerate(said[cell.method])
            ]
            asked = rows if test.data.task == "counting" else []
            (directory / "predictions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    result = experiment.result()
    assert result.tables[0].rows == [
        ["geometry to counting", "GRPO-D alone is right", "1 1", "1 1"],
        ["geometry to counting", "SFT alone is right", "1 1", "2 2"],
        ["counting to geometry", "GRPO-D alone is right", "0 0", "0 0"],
        ["counting to geometry", "SFT alone is right", "0 0", "0 0"],
    ]
    assert result.numbers["questions"][1]["r1v"] == [2, 2]
    assert [case.ground_truth for case in result.cases] == ["7", "9"]


def test_a_broken_line_of_a_cells_predictions_is_named(tmp_path):
    cell, test = LAPTOP.base(), LAPTOP.test("geometry")
    finish(tmp_path, cell, 0.5)
    file = evaluation_directory(tmp_path, cell, test) / "predictions.jsonl"
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(UserError, match=rf"{test.data.task}-.*predictions\.jsonl, line 2 is not"):
        score_of(tmp_path, cell, test)


def test_a_prediction_may_hold_a_line_separator_of_unicode(tmp_path):
    cell, test = LAPTOP.base(), LAPTOP.test("geometry")
    file = evaluation_directory(tmp_path, cell, test) / "predictions.jsonl"
    file.parent.mkdir(parents=True)
    row = {"id": "a", "correct": True, "model_output": "one\u2028two\x85three"}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert predictions_of(tmp_path, cell, test) == [row]


def test_every_kept_checkpoint_has_to_be_tested_where_that_is_asked_for(tmp_path, monkeypatch):
    cell = dataclasses.replace(
        LAPTOP.cell("sft", "counting", 0, checkpoint_every=1).tested_on(LAPTOP.test("counting")),
        every_checkpoint=True,
    )
    RunDirectory(tmp_path / cell.name).begin(cell.train, 2, GRPOTrainer)
    for step in (1, 2):
        (tmp_path / cell.name / "checkpoints" / str(step)).mkdir(parents=True)
    finish(tmp_path, cell, 0.5)
    assert is_done(tmp_path, dataclasses.replace(cell, every_checkpoint=False))
    assert not is_done(tmp_path, cell)
    tested = []

    def evaluate(config):
        tested.append(Path(config.model).relative_to(tmp_path / cell.name).as_posix())
        config.out.mkdir(parents=True)
        (config.out / "result.json").write_text("{}")

    monkeypatch.setattr("othink_jax.evaluation.evaluate", evaluate)
    cells.run(tmp_path, cell)
    assert tested == ["checkpoints/1"]  # the last one has been
    assert is_done(tmp_path, cell)


def test_the_regime_that_favours_grpo_d_most_is_the_one_of_the_long_run(tmp_path):
    search = made(RegimeSearch, tmp_path, steps=20)
    favoured = REGIMES[4]
    for cell in search.cells():
        finish(search.options.root, cell, 0.3)
        write_metrics(search.options.root, cell)
    for seed in search.seeds:
        finish(search.options.root, search._cell(favoured, "grpo_d", seed), 0.6)
    result = search.result()
    assert [row[-1] for row in result.tables[0].rows].index("chosen") == 4
    assert result.tables[0].rows[4][4:9] == [
        *("30.0", "30.0 30.0", "60.0 60.0", "30.0"),
        "15.0 15.0 30.0",
    ]
    # Of 1, 0.95, ... 0.05: the mean of the first two, and of the last two.
    assert result.tables[0].rows[0][9] == "97.5, 7.5"
    found = result.numbers["regimes"][4]["scores"]
    assert [len(found[name]) for name in ("base", "grpo", "grpo_d")] == [1, 2, 2]
    assert found["grpo_d"][1] == {"accuracy": 0.6, "accuracy_r1v": 0.3, "format": 1.0}

    with pytest.raises(UserError, match=r"run python -m experiments\.regime_search first"):
        made(LongRun, tmp_path)
    write(result, search.options.results / search.name, "The search.")
    long_run = made(LongRun, tmp_path, steps=20)
    assert long_run.regime == favoured
    weights = ["GRPO 0.04", f"GRPO {first_kl(favoured.kl).kl_value:g}", f"GRPO {favoured.kl_max:g}"]
    assert list(long_run.trials) == ["SFT, as tuned", "GRPO, as tuned", *weights, "GRPO-D"]
    base, *trained = long_run.cells()
    assert not {cell.name for cell in trained} & {cell.name for cell in search.cells()}
    finish(long_run.options.root, base, 0.2)
    for cell in trained:
        finish(long_run.options.root, cell, 0.5 if cell.method == "grpo_d" else 0.4)
        _, sampled = cell.tests
        finish(long_run.options.root, cell.tested_on(sampled), 0.3)
        write_metrics(long_run.options.root, cell)
    found = long_run.result()
    assert [row[0] for row in found.tables[0].rows] == ["base", *long_run.trials]
    assert found.tables[0].rows[6] == [
        "GRPO-D",
        *("50.0 (50.0 to 50.0)", "25.0", "50.0 50.0"),
        *("30.0 (30.0 to 30.0)", "15.0", "30.0 30.0"),
    ]
    assert found.tables[1].rows[2][:2] == ["GRPO-D - GRPO 0.04", "10.0 (10.0 to 10.0)"]
    assert found.numbers["sampled"]["GRPO-D"][1]["accuracy_r1v"] == 0.15
    assert found.figure is not None


def test_the_control_shows_what_either_base_gained(tmp_path):
    control = made(NegativeControl, tmp_path)
    for cell in control.cells():
        hasty = cell.model == control.model("hasty")
        before = 0.3 if hasty else 0.7
        gain = 0.4 if hasty and cell.train is not None else 0.0
        finish(control.options.root, cell, before + gain)
    result = control.result()
    assert len(result.tables[0].rows) == 2 * 2 * 3
    assert result.tables[0].rows[0] == [
        *("greedy", "counting", "SFT"),
        *("30.0", "40.0 (40.0 to 40.0)", "40.0 40.0", "15.0 35.0"),
        *("70.0", "0.0 (0.0 to 0.0)", "0.0 0.0", "35.0 35.0"),
    ]
    *where, found = result.numbers["scores"][-2].values()
    assert where == ["sampled", "geometry", "hasty"]
    assert [one["accuracy_r1v"] for one in found["grpo"]] == [0.35, 0.35]


def test_grpo_is_matched_to_grpo_d_in_all_but_the_schedule(tmp_path):
    experiment = made(MatchedSettings, tmp_path)
    for cell in experiment.cells():
        matched = cell.train.kl.kl_schedule == "constant"
        if matched:
            (twin,) = (
                other.train
                for other in experiment.cells()
                if other.method == "grpo_d"
                and (other.train.data, other.train.seed) == (cell.train.data, cell.train.seed)
            )
            assert cell.train == dataclasses.replace(twin, kl=constant_kl(0.07))
        finish(experiment.options.root, cell, 0.6 if matched else 0.4)
    first, *_ = experiment.result().tables
    assert [row[:3] for row in first.rows[:3]] == [
        ["counting", "GRPO, as tuned", "40.0 (40.0 to 40.0)"],
        ["counting", "GRPO, matched", "60.0 (60.0 to 60.0)"],
        ["counting", "GRPO-D", "40.0 (40.0 to 40.0)"],
    ]


def test_what_is_about_the_embedded_model_alone_has_no_paper_scale(tmp_path):
    for experiment in (NegativeControl, RegimeSearch, LongRun, MatchedSettings):
        with pytest.raises(UserError, match=f"{experiment.name} is about the embedded model"):
            experiment(Options(scale="paper"))


def test_one_seed_is_refused_and_so_are_those_of_the_tuning():
    for seeds in (1, 101):
        with pytest.raises(UserError, match="--seeds must be >= 2"):
            Options(seeds=seeds)


def test_a_short_run_does_not_take_the_place_of_a_whole_one():
    assert Options().results.name == "laptop"
    assert Options(seeds=3, steps=20).results.name == "laptop-3seeds-20steps"


def test_the_weights_of_equation_3_are_those_of_the_paper():
    """Its hand values for 0 to 0.02 with w = 30, t = 100 (all but the last, which ends the run)."""
    weights = equation_3(KLConfig(kl_min=0.0, kl_max=0.02), 100)
    assert weights[[0, 15, 30, 65]] == pytest.approx([0.01, 0.005, 0.0, 0.01])


def test_what_a_process_left_that_died_before_it_began_is_no_bar(tmp_path, monkeypatch):
    cell = LAPTOP.cell("grpo", "counting", 0).tested_on()
    (tmp_path / cell.name / "reference").mkdir(parents=True)
    found = []
    monkeypatch.setattr(
        "othink_jax.training.grpo.train", lambda config: found.append(config.out.exists())
    )
    cells.run(tmp_path, cell)
    assert found == [False]


def test_two_processes_do_not_do_the_same_cell_at_once(tmp_path, monkeypatch):
    cell = LAPTOP.base()
    monkeypatch.setattr("othink_jax.evaluation.evaluate", lambda config: finish(tmp_path, cell, 1))
    (tmp_path / "locks").mkdir()
    with filelock.FileLock(tmp_path / "locks" / cell.name):
        other = threading.Thread(target=cells.run, args=(tmp_path, cell))
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert not is_done(tmp_path, cell)
    other.join(20)
    assert is_done(tmp_path, cell)


def test_who_is_told_to_stop_tells_the_processes_of_the_cells(tmp_path, monkeypatch):
    """And begins no other: of three cells on two cores, two have begun."""
    begin = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch();"
    begun = tmp_path / "begun"
    begun.mkdir()

    def command(root, core):
        return [sys.executable, "-c", begin + "time.sleep(60)", str(begun)]

    def stop():
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "_command", command)
    monkeypatch.setattr(runner, "_cores", lambda: [0, 1])
    threading.Thread(target=stop).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.run_all([LAPTOP.cell("sft", "counting", seed) for seed in range(3)], tmp_path)
    assert time.monotonic() - start < 50  # not the minute that they would have taken
    assert len(list(begun.iterdir())) == 2
