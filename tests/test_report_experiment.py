"""The page of experiments' results."""

import json
import re

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from experiments.lab.experiment import Case, Result, write
from othink_jax import cli
from othink_jax.errors import UserError
from othink_jax.report import experiments_in, write_experiment_report
from othink_jax.report.table import Table

ABOUT = "Table 9: a title.\n\nClaim: <none>.\nCommand: python -m nothing\n"


@pytest.fixture
def results(tmp_path):
    figure, panel = plt.subplots()
    panel.plot([0, 1])
    table = Table(title="Scores", columns=["method", "counting"], rows=[["SFT & co", "<70.0>"]])
    case = Case(
        title="geometry to counting",
        image=Image.new("RGB", (4, 4)),
        question="How many <things>?",
        ground_truth="2",
        answers=[
            {"method": "SFT", "correct": False, "text": "<answer>3</answer>"},
            {"method": "GRPO-D", "correct": True, "text": "<answer>2</answer>"},
        ],
    )
    made = Result(tables=[table], figure=figure, numbers={"seeds": [1, 2]})
    write(made, tmp_path / "table9", ABOUT)
    # Where there are cases, the page shows them, and not the figure of them.
    cases = Result(tables=[table], figure=figure, cases=[case], numbers={})
    write(cases, tmp_path / "tuning", "Tuning.\n\nClaim: no.\n")
    plt.close(figure)
    return tmp_path


def test_a_result_is_written_as_text_csv_html_png_svg_and_json(results):
    names = {path.name for path in (results / "table9").iterdir()}
    kinds = {"tables.txt", "table1.csv", "tables.html", "figure.png", "figure.svg", "results.json"}
    assert names == kinds
    record = json.loads((results / "table9" / "results.json").read_text())
    assert (record["kind"], record["name"], record["seeds"]) == ("experiment", "table9", [1, 2])
    assert (results / "tuning" / "case1.png").is_file()


def test_one_page_holds_all_experiments_of_a_folder_and_fetches_nothing(results, capsys):
    cli.run(["report", str(results)])
    assert capsys.readouterr().out.strip() == str(results / "report.html")
    page = (results / "report.html").read_text()
    assert '<a href="#table9">Table 9: a title</a>' in page
    assert '<section id="tuning">' in page
    assert '<th scope="row">SFT &amp; co</th><td>&lt;70.0&gt;</td>' in page
    assert "Claim: &lt;none&gt;." in page
    assert page.count("data:image/svg+xml;base64,") == 1
    assert page.count("data:image/png;base64,") == 1
    assert "How many &lt;things&gt;?" in page
    verdicts = re.findall(r"<b>([^<]*)</b>\s*<span class=\"(right|wrong)\"", page)
    assert verdicts == [("SFT", "wrong"), ("GRPO-D", "right")]
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_one_experiment_has_a_page_of_its_own(results):
    page = write_experiment_report(results / "tuning").read_text()
    assert "<h2>Tuning</h2>" in page
    assert "Table 9" not in page


def test_what_cannot_be_used_is_named(results, tmp_path):
    record = results / "tuning" / "results.json"
    record.write_text("{")
    with pytest.raises(UserError, match=r"tuning/results\.json is not a JSON file"):
        experiments_in(results)
    record.write_text(json.dumps({"kind": "experiment", "name": "tuning"}))
    with pytest.raises(UserError, match=r"results\.json lacks about, tables, cases"):
        write_experiment_report(results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no results of experiments"):
        write_experiment_report(tmp_path / "empty")


def test_a_missing_image_of_a_case_is_named(results):
    (results / "tuning" / "case1.png").unlink()
    with pytest.raises(UserError, match=r"case1\.png is missing"):
        write_experiment_report(results / "tuning")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("about",), None, ": about must be a str, got NoneType"),
        (("tables",), {}, ": tables must be a list, got dict"),
        (("tables", 0), "Scores", ": table 1 is no JSON object"),
        (("tables", 0), {"title": "T", "columns": []}, ": table 1 lacks rows, note"),
        (("tables", 0, "title"), None, ": table 1: title must be a str, got NoneType"),
        (("tables", 0, "rows"), 5, ": table 1: rows must be a list, got int"),
        (
            ("tables", 0, "rows", 0),
            ["SFT"],
            ": table 1 cannot be read: .* a row of 1 cells under 2",
        ),
        (("tables", 0, "rows", 0), ["SFT", 7], r": table 1 has a line .*: \['SFT', 7\]"),
        (("cases", 0), {"title": "T"}, ": case 1 lacks image, question, ground_truth, answers"),
        (("cases", 0, "image"), 1, ": case 1: image must be a str, got int"),
        (("cases", 0, "answers", 1), {"method": "SFT"}, ": case 1, an answer lacks correct, text"),
    ],
)
def test_a_record_whose_entries_are_not_as_they_should_be_is_one_line(
    results, place, value, message
):
    file = results / "tuning" / "results.json"
    record = json.loads(file.read_text())
    *outer, last = place
    held = record
    for name in outer:
        held = held[name]
    held[last] = value
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"tuning/results\.json{message}") as caught:
        write_experiment_report(results)
    assert "\n" not in str(caught.value)
