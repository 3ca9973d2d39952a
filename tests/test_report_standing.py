"""Pages and cards of runs that are not finished, and what people have written about a run."""

import re
import threading

import filelock
import pytest
import yaml
from markdown_it import MarkdownIt

from othink_jax.config import DataConfig, GRPOConfig
from othink_jax.errors import UserError
from othink_jax.files import is_locked
from othink_jax.report import model_card, write_report
from othink_jax.report import standing as report_standing
from othink_jax.training.run_directory import RunDirectory
from tests.test_report import HOSTILE, SETTINGS, Page, equal_curves_are_drawn_once, make_run

__all__ = ["equal_curves_are_drawn_once"]  # a fixture

WRITTEN = r"written at \d+ \w+ \d{4}, \d\d:\d\d UTC"


def head_of(page):
    """Its words from the title to the summary."""
    return page.text.partition("training report")[2].partition("The vision-language model")[0]


def test_a_run_that_was_stopped_says_where_and_how_it_goes_on(tmp_path):
    run = make_run(tmp_path / "a run", steps=20)
    command = f"othink-jax grpo --resume '{run}'"
    assert f"Stopped at step 20 of 150; go on with {command}" in head_of(Page(write_report(run)))
    (run / "metrics.jsonl").unlink()
    assert f"Stopped at step 0 of 150; go on with {command}" in head_of(Page(write_report(run)))


def test_a_run_at_work_says_so_and_its_half_written_line_is_no_fault(tmp_path):
    run = make_run(tmp_path / "run", steps=20, evaluations=False)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-40])
    with filelock.FileLock(run / ".lock"):
        page = Page(write_report(run))
    assert re.search(rf"In progress: step 19 of 150, {WRITTEN}\.", head_of(page))
    assert "--resume" not in page.text
    assert "unreadable" not in page.text
    assert "There is no evaluation to show" in page.text
    # The lock file stays when its process ends, or is killed.
    assert "Stopped at step 19 of 150" in head_of(Page(write_report(run)))


def test_a_broken_line_before_the_last_one_is_a_fault_of_a_run_at_work_too(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("{" + text)
    with filelock.FileLock(run / ".lock"):
        assert "1 unreadable line of metrics.jsonl" in Page(write_report(run)).text


def test_a_finished_run_is_neither_until_its_process_has_ended(tmp_path):
    run = make_run(tmp_path / "run")
    assert "standing" not in [value for _, value in Page(write_report(run)).attributes]
    with filelock.FileLock(run / ".lock"):
        assert "In progress: step 150 of 150" in head_of(Page(write_report(run)))


def test_where_it_cannot_be_told_the_page_says_that(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    (run / ".lock").mkdir()  # nobody can open it
    assert re.search(
        rf"Unfinished: step 20 of 150, {WRITTEN}\. From here it cannot be told whether a process is"
        rf" at work on it; if none is, go on with othink-jax grpo --resume {run}",
        head_of(Page(write_report(run))),
    )


def test_to_look_at_a_lock_makes_no_file_and_stops_no_run(tmp_path):
    assert is_locked(tmp_path / ".lock") is False
    assert list(tmp_path.iterdir()) == []
    looking = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    timer = threading.Timer(0.1, looking.release)
    timer.start()
    with RunDirectory(tmp_path).held():
        assert is_locked(tmp_path / ".lock") is True
    timer.join()
    assert is_locked(tmp_path / ".lock") is False


def test_a_run_that_ends_while_it_is_read_is_not_said_to_have_stopped(tmp_path, monkeypatch):
    """Its last row comes between the look at its lock and that at its metrics."""
    run = make_run(tmp_path / "run")
    text, look = (run / "metrics.jsonl").read_text(), report_standing.is_locked
    (run / "metrics.jsonl").write_text(text.rpartition('{"step": 150')[0])

    def looked(path):
        found = look(path)
        (run / "metrics.jsonl").write_text(text)
        return found

    monkeypatch.setattr(report_standing, "is_locked", looked)
    assert "Stopped" not in head_of(Page(write_report(run)))


def test_a_run_that_is_being_begun_is_one_line(tmp_path):
    (tmp_path / ".beginning").touch()
    begun = pytest.raises(UserError, match="is being begun: there is nothing of it yet")
    with filelock.FileLock(tmp_path / ".lock"), begun:
        write_report(tmp_path)
    with pytest.raises(UserError, match="was stopped before it began: give the command"):
        write_report(tmp_path)


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("the page before")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("othink_jax.files.os.replace", fail)
    with pytest.raises(OSError, match="full"):
        write_report(run)
    assert (run / "report.html").read_text() == "the page before"


def test_the_card_of_unfinished_weights_says_of_which_step_they_are(tmp_path):
    run = make_run(tmp_path / "run", steps=37)
    card = model_card(run, step=30)
    said = "**The training is not finished:** these are the weights after step 30 of 150, exported"
    assert f"{said} while it was stopped (" in card
    assert "| steps | 30 of 150 |" in card
    with filelock.FileLock(run / ".lock"):
        assert f"{said} while it was in progress (" in model_card(run, step=30)
    finished = model_card(make_run(tmp_path / "finished"))
    assert "not finished" not in finished
    assert "| steps | 150 of 150 |" in finished


TAGS = ("grpo", "yes", "1.5", "#a", 'quote"s', "back\\slash", "é", "<b>")


@pytest.fixture
def labelled(tmp_path):
    config = GRPOConfig(**SETTINGS, notes=f"one\n\n- {HOSTILE}", tags=TAGS)
    run = make_run(tmp_path / "labelled", config=config)
    (run / "reference/config.json").write_text('{"model_type": "qwen3_vl"}')
    return run


def test_notes_and_tags_stand_on_the_page_as_they_were_written(labelled, tmp_path):
    plain, page = Page(write_report(make_run(tmp_path / "plain"))), Page(write_report(labelled))
    assert sorted(set(page.tags)) == sorted(set(plain.tags))
    assert not re.search(r"<script|<b>x|<b>,", page.source)
    assert HOSTILE.splitlines()[1] in page.text
    assert f"tags {', '.join(TAGS)}" in page.text
    assert "white-space: pre-wrap" in page.source.partition(".own {")[2].partition("}")[0]


def test_notes_and_tags_in_a_card_are_neither_markup_nor_other_values(labelled):
    _, head, body = model_card(labelled).split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["grpo", "qwen3_vl", "othink_jax", *TAGS[1:]]
    html = MarkdownIt("commonmark").enable("table").render(body)
    (cell,) = re.findall(r"<td>notes</td>\n<td>(.*)</td>", html)
    assert cell.startswith("one<br><br>- a|b<br>&lt;script&gt;x")
    assert set(re.findall(r"<(/?\w+)", cell)) == {"br"}


def test_a_run_without_notes_and_tags_shows_neither(tmp_path):
    run = make_run(
        tmp_path / "run", config=GRPOConfig(**{**SETTINGS, "data": DataConfig(task="counting")})
    )
    page = Page(write_report(run))
    assert "own" not in [value for _, value in page.attributes]
    assert "| notes |" not in model_card(run)
