"""What is seen of a run while it goes: in TensorBoard and, by a stand-in, Weights & Biases."""

import dataclasses
import importlib.machinery
import io
import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from othink_jax.config import ResumeConfig, RewardConfig, read_run
from othink_jax.report import write_report
from othink_jax.training.console import Monitor
from othink_jax.training.events import EventFile
from othink_jax.training.grpo import GRPOTrainer, resume, train
from othink_jax.training.samples import Samples
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.test_events import events_of
from tests.test_grpo import config_for, rows_of

REWARD = RewardConfig(functions=("accuracy", "length"), grading_workers=1)
NOTES = "first | try\n- <b>with</b> `care`"


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    with programs_of_equal_settings_are_compiled_once():
        yield


class Cloud(ModuleType):
    """The parts of `wandb` that are used, over histories that outlive a process, as on its site.

    As there, a step that is behind the last one is dropped; one that is written twice, too.
    """

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.histories, self.begun, self.ends, self.dropped = {}, [], [], []

    def init(self, **settings):
        self.begun.append(settings)
        return CloudRun(self, settings["id"] or f"run{len(self.begun)}")

    @staticmethod
    def Image(image):
        return ("image", np.asarray(image))

    @staticmethod
    def Table(*, columns, data):
        assert all(len(row) == len(columns) for row in data)
        return [dict(zip(columns, row, strict=True)) for row in data]


class CloudRun:
    def __init__(self, cloud, name):
        self.id, self._cloud = name, cloud
        self._history = cloud.histories.setdefault(name, {})
        self.starting_step = max(self._history, default=-1) + 1

    def log(self, values, *, step):
        row = self._history.get(step, {})
        if step < max(self._history, default=0) or row.keys() & values.keys():
            self._cloud.dropped.append(step)  # not an error, which would be forgiven
            return
        self._history[step] = row | values

    def finish(self, *, exit_code):
        self._cloud.ends.append(exit_code)


@pytest.fixture
def cloud(monkeypatch):
    made = Cloud()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def summaries(run):
    """Of each event file, oldest first: step, tag and value of all that is in it."""
    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        events = events_of(path.read_bytes())
        found.append(
            [(event.step, value.tag, value) for event in events for value in event.summary.value]
        )
    return found


def stored(run, step):
    lines = (run / "samples" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def picture(run, name):
    return np.asarray(Image.open(run / "samples" / name))


def samples_of_step(step, images=(0,), text="t"):
    """One completion a prompt, and of each prompt so many images."""
    made = {
        "text": text,
        "reward": 1.0,
        "accuracy": 1.0,
        "format": 0.0,
        "length": 1,
        "finished": True,
    }
    rows = [
        {"id": str(number), "question": "q", "ground_truth": "1", "completions": [made]}
        for number in range(len(images))
    ]
    pictures = [(Image.new("RGB", (2, 3)),) * count for count in images]
    return Samples(step=step, rows=rows, images=pictures)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with a function of its own, watched by both; and what the stand-in has of it.

    In its third step, its page was written.
    """
    cloud = Cloud()
    out = tmp_path_factory.mktemp("runs") / "watched"
    step = GRPOTrainer.step

    def reporting(self, number, *rest):
        if number == 3:
            write_report(out)
            (out / "report.html").rename(out / "early.html")
        return step(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", cloud)
        patch.setattr(GRPOTrainer, "step", reporting)
        train(config_for(out, wandb=True, reward=REWARD, notes=NOTES, tags=("a", "b")))
    return out, cloud


def test_weights_and_biases_gets_rows_and_tables_of_completions_with_their_images(watched):
    out, cloud = watched
    (history,) = cloud.histories.values()
    assert {step: row["reward"] for step, row in history.items()} == {
        row["step"]: row["reward"] for row in rows_of(out)
    }
    assert [step for step, row in history.items() if "samples" in row] == [1, 2, 4]
    table = history[2]["samples"]
    assert list(table[0]) == [
        *("step", "prompt id", "image_0", "question", "ground truth", "completion", "reward"),
        *("accuracy", "format", "reward_length", "length", "finished"),
    ]
    rows = stored(out, 2)
    pairs = [(row, made) for row in rows for made in row["completions"]]
    for line, (row, made) in zip(table, pairs, strict=True):
        kind, pixels = line.pop("image_0")
        assert kind == "image"
        np.testing.assert_array_equal(pixels, picture(out, row["images"][0]))
        assert list(line.values()) == [
            *(2, row["id"], row["question"], row["ground_truth"], made["text"], made["reward"]),
            *(made["accuracy"], made["format"], made["rewards"]["length"]),
            *(made["length"], made["finished"]),
        ]
    assert cloud.ends == [0]


def test_tensorboard_gets_the_same_as_a_table_and_images(watched):
    out, _ = watched
    ((*found,),) = summaries(out)
    assert [step for step, tag, _ in found if tag == "samples/text_summary"] == [1, 2, 4]
    values = {tag: value for step, tag, value in found if step == 2}
    (text,) = values["samples/text_summary"].tensor.string_val
    html = MarkdownIt("commonmark").enable("table").render(text.decode())
    rows = stored(out, 2)
    assert html.count("<tr>") == 1 + sum(len(row["completions"]) for row in rows)
    assert html.count("<td>samples/prompt_1_image_0</td>") == len(rows[1]["completions"])
    for number, row in enumerate(rows):
        image = values[f"samples/prompt_{number}_image_0"].image
        shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(shown, picture(out, row["images"][0]))
        assert (image.height, image.width, image.colorspace) == shown.shape


def test_notes_and_tags_go_to_both_and_into_the_record(watched):
    out, cloud = watched
    (settings,) = cloud.begun
    assert (settings["notes"], settings["tags"]) == (NOTES, ["a", "b"])
    ((*found,),) = summaries(out)
    (text,) = [v.tensor.string_val[0].decode() for _, tag, v in found if tag == "run/text_summary"]
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<td>first | try<br>- &lt;b&gt;with&lt;/b&gt; `care`</td>" in html
    assert "<td>a, b</td>" in html
    config = read_run(out).config
    assert (config.notes, config.tags) == (NOTES, ("a", "b"))


def test_its_page_was_written_while_it_was_at_work(watched):
    assert "<b>In progress: step 2 of 4, written at " in (watched[0] / "early.html").read_text()


def test_a_run_that_goes_on_is_one_run_there_and_writes_no_step_twice(watched, tmp_path, cloud):
    """As if it had been killed in step 4, it goes on from its checkpoint of step 2."""
    run = shutil.copytree(watched[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    ((name, history),) = watched[1].histories.items()
    cloud.histories[name] = {step: history[step] for step in (1, 2, 3)}
    resume(ResumeConfig(resume=run, notes="now with", tags=("c",)))
    assert cloud.histories.keys() == {name}
    assert {step: "samples" in row for step, row in cloud.histories[name].items()} == {
        1: True,
        2: True,
        3: False,
        4: True,
    }
    assert cloud.dropped == []
    (begun,) = cloud.begun
    assert (begun["id"], begun["resume"]) == (name, "allow")
    assert (begun["notes"], begun["tags"]) == ("now with", ["c"])

    # TensorBoard drops what earlier files hold from the step of a START on.
    _, second = sorted((run / "tensorboard").iterdir())
    assert [e.step for e in events_of(second.read_bytes()) if e.session_log.status] == [3]
    assert {step for step, tag, _ in summaries(run)[1] if tag == "reward"} == {3, 4}


def test_other_notes_and_tags_are_recorded_and_are_no_change(watched, tmp_path, cloud):
    run = shutil.copytree(watched[0], tmp_path / "run")
    record = read_run(run)
    resume(ResumeConfig(resume=run, notes="", tags=()))
    changed = dataclasses.replace(record.config, notes="", tags=())
    assert read_run(run) == dataclasses.replace(record, config=changed)
    resume(run)
    assert read_run(run).config == changed


@pytest.mark.parametrize("part", ["init", "log", "Table"])
def test_a_tracker_that_fails_is_named_once_and_ends_nothing(
    tmp_path, cloud, monkeypatch, capsys, part
):
    def fail(*_, **__):
        raise ConnectionError("no route\nto the site")

    monkeypatch.setattr(CloudRun if part == "log" else cloud, part, fail)
    monkeypatch.setattr(CloudRun, "finish", fail)
    config = config_for(tmp_path, wandb=True)
    with Monitor(tmp_path, config, total=2, done=0) as monitor:
        for step in (1, 2):
            monitor.show({"step": step, "reward": 1.0}, samples_of_step(step))
    said = f"failed: no route. The run goes on; what is missing there is in {tmp_path}\n"
    error = capsys.readouterr().err
    assert error.count("Weights & Biases") == 1
    assert f"Weights & Biases {said}" in error


def test_cells_of_prompts_with_fewer_images_are_empty():
    columns, cells = samples_of_step(5, images=(1, 2)).table([["A"], ["B", "C"]])
    assert columns[:5] == ["step", "prompt id", "image_0", "image_1", "question"]
    assert [row[:5] for row in cells] == [[5, "0", "A", None, "q"], [5, "1", "B", "C", "q"]]


def test_what_a_completion_says_is_one_cell_of_the_table_and_no_markup(tmp_path):
    hostile = "a|b <b>c</b> ![x](https://evil.example)\n- d"
    EventFile.of_now(tmp_path / "tensorboard").add_samples(samples_of_step(1, text=hostile))
    ((_, _, value),) = summaries(tmp_path)[0]
    html = MarkdownIt("commonmark").enable("table").render(value.tensor.string_val[0].decode())
    said = "a|b &lt;b&gt;c&lt;/b&gt; ![x](https://evil.example)<br>- d"
    assert f"<td>{said}</td>" in html
    assert html.count("<td>") == 10  # one row of ten columns


def test_completions_of_an_earlier_step_are_not_shown_again(tmp_path, cloud):
    with Monitor(tmp_path, config_for(tmp_path, wandb=True), total=2, done=0) as monitor:
        for step in (1, 2):
            monitor.show({"step": step, "reward": 1.0}, samples_of_step(1))
    (history,) = cloud.histories.values()
    assert ["samples" in row for row in history.values()] == [True, False]
    ((*found,),) = summaries(tmp_path)
    assert [step for step, tag, _ in found if tag == "samples/text_summary"] == [1]
