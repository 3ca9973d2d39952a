"""The page of a run: what it shows, what it does without, and what it never lets through."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image, ImageDraw

from othink_jax.config import (
    DataConfig,
    GRPOConfig,
    KLConfig,
    SFTConfig,
    TrainingConfig,
    to_dict,
)
from othink_jax.errors import UserError
from othink_jax.markup import as_code
from othink_jax.report import model_card, write_report
from othink_jax.report import page as report_page
from othink_jax.report.checks import is_result
from othink_jax.report.comparison import compare, difference
from othink_jax.report.curves import GRPO_CURVES, draw, smooth, smoothing_window
from othink_jax.report.method import reference_in_words
from othink_jax.statistics import wilson_interval

SETTINGS = {"model": "tiny", "out": Path("run"), "data": DataConfig(task="counting")}
VERSIONS = {"othink_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"}


@pytest.fixture(autouse=True, scope="module")
def equal_curves_are_drawn_once():
    """Drawing is most of what a page costs, and nearly all runs here have the same metrics."""
    drawn = {}

    def draw_once(curve, rows):
        given = repr((curve, rows))
        if given not in drawn:
            drawn[given] = draw(curve, rows)
        return drawn[given]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page, "draw", draw_once)
        yield


def metric_rows(steps: int) -> list[dict]:
    """Rows as the loop writes them: noisy, and rising as a run that works does."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        accuracy = float(np.clip(0.35 + 0.45 * (1 - np.exp(-4 * done)) + rng.normal(0, 0.06), 0, 1))
        form = float(np.clip(0.7 + 0.3 * (1 - np.exp(-8 * done)) + rng.normal(0, 0.03), 0, 1))
        beta = 0.07 - 0.1 * done if done <= 0.3 else 0.04 + 0.06 * (done - 0.3) / 0.7
        rows.append(
            {
                "step": step,
                "reward": accuracy + form,
                "reward_std": 0.6,
                "reward_accuracy": accuracy,
                "reward_format": form,
                "group_std": float(0.45 - 0.2 * done + rng.normal(0, 0.04)),
                "no_signal_share": float(np.clip(0.1 + 0.4 * done + rng.normal(0, 0.1), 0, 1)),
                "entropy": float(0.4 - 0.2 * done + rng.normal(0, 0.02)),
                "truncated_share": float(np.clip(rng.normal(0.04, 0.03), 0, 1)),
                "ungradable": 0,
                "loss": float(rng.normal(0, 0.01)),
                "kl": float(0.12 * done**0.5 + rng.normal(0, 0.008)),
                "beta": beta,
                "clip_fraction": 0.0,
                "completion_length": float(14 + 9 * done + rng.normal(0, 0.8)),
                "grad_norm": float(np.exp(rng.normal(0.4, 0.3))),
                "learning_rate": 1e-4 * (1 - done),
                "skipped": 0,
                "tokens_per_second": float(900 + rng.normal(0, 60)),
                "seconds_step": 1.6,
                "elapsed": 1.6 * step,
            }
        )
    return rows


def sample_rows(step: int, folder: Path, question: str, text: str) -> None:
    rows = []
    for number in range(2):
        picture = Image.new("RGB", (112, 112), "#d8d4cc")
        draw = ImageDraw.Draw(picture)
        for k in range(3 + number):
            x, y = 8 + 26 * k, 20 + 17 * k
            draw.ellipse((x, y, x + 26, y + 26), fill=("#b33", "#37b", "#3a5", "#c90")[k])
        name = f"step_{step:06d}_{number}_0.png"
        picture.save(folder / name)
        completions = [
            {
                "text": f"{text}<answer>{3 + g % 2}</answer>",
                "reward": 2.0 - (g % 2),
                "accuracy": float(g % 2 == 0),
                "format": 1.0,
                "length": 17 + g,
                "finished": g != 3,
            }
            for g in range(4)
        ]
        rows.append(
            {
                "step": step,
                "id": f"counting-train-{number}",
                "question": question,
                "ground_truth": str(3 + number),
                "images": [name],
                "completions": completions,
            }
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"step_{step:06d}.jsonl").write_text(text)


def evaluation(task: str, stage: str, right: int, n: int = 500, **settings) -> dict:
    """result.json of one evaluation; `settings` go into the recorded configuration."""
    return {
        "model": "tiny",
        "stage": stage,
        "task": task,
        "dataset": None,
        "examples": f"{task}, test",
        "n": n,
        "accuracy": right / n,
        "interval": list(wilson_interval(right, n)),
        "grader": "strict",
        "decoding": "greedy",
        "config": {"model": "tiny", "stage": stage, "out": "x", "data": {"task": task}, **settings},
    }


def make_run(
    run: Path,
    *,
    steps: int = 150,
    question: str = "How many red things are there? Think, then answer.",
    text: str = "<think>1 red circle 2 red square 3 red circle</think>",
    evaluations: bool = True,
    samples: bool = True,
    config: TrainingConfig | None = None,
) -> Path:
    """A run directory such as the loop and four evaluations leave behind."""
    config = config or GRPOConfig(**SETTINGS)
    run.mkdir(parents=True)
    record = {
        "kind": config.kind,
        "config": to_dict(config),
        "total_steps": 150,
        "started": "2026-01-31T12:00:00+00:00",
        "versions": VERSIONS,
        "device": "1 x cpu",
    }
    (run / "config.json").write_text(json.dumps(record))
    text_rows = "".join(json.dumps(row) + "\n" for row in metric_rows(steps))
    (run / "metrics.jsonl").write_text(text_rows)
    (run / "reference").mkdir()
    (run / "reference" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (run / "samples").mkdir()
    if samples:
        for step in (1, 50, 150):
            sample_rows(step, run / "samples", question, text)
    if evaluations:
        figures = {"counting": (181, 377), "geometry": (170, 175)}
        for task, (before, after) in figures.items():
            for stage, right in (("before", before), ("after", after)):
                folder = run / "evaluations" / f"{stage}-{task}"
                folder.mkdir(parents=True)
                result = evaluation(task, stage, right)
                (folder / "result.json").write_text(json.dumps(result))
    return run


class Page(HTMLParser):
    """Elements, attributes and words of a page, as a browser's parser would find them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """The page of a whole run."""
    run = make_run(tmp_path_factory.mktemp("runs") / "first")
    assert write_report(run) == run / "report.html"
    return Page(run / "report.html")


def test_page_says_what_was_trained_how_and_what_came_of_it(page):
    assert "GRPO-D on counting" in page.text
    assert "β falls from 0.07 to 0.04 over the first 30% of the updates" in page.text
    assert "went from 36.2% to 75.4%, a change of +39.2 points (95% interval" in page.text
    assert "wall time 4 min 0 s" in page.text
    assert "counting, test same task" in page.text
    assert "geometry, test cross task" in page.text
    assert "flax 0.12.8" in page.text
    assert "sampling.top_k 50" in page.text
    assert "To be noted" not in page.text


def test_constant_weight_is_called_grpo(tmp_path):
    config = GRPOConfig(**SETTINGS, kl=KLConfig(kl_schedule="constant", kl_value=0.04))
    page = Page(write_report(make_run(tmp_path / "run", config=config)))
    assert "GRPO on counting" in page.text
    assert "a constant KL weight β = 0.04" in page.text
    assert "GRPO-D" not in page.text


def test_where_the_weight_is_zero_no_reference_is_named():
    assert reference_in_words(KLConfig(kl_schedule="constant", kl_value=0.0)).startswith("nothing")
    assert reference_in_words(KLConfig()) == "the starting model"


def test_the_target_of_a_controller_stands_in_the_curve_of_the_kl(tmp_path, page):
    kl = KLConfig(kl_schedule="dual", kl_target=0.05, kl_args={"rate": 0.1})
    run = make_run(tmp_path / "run", steps=3, config=GRPOConfig(**SETTINGS, kl=kl))
    rows = [{**row, "kl_target": 0.05, "beta_reason": "it <rises>"} for row in metric_rows(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    controlled = Page(write_report(run))
    assert "β by the control dual (target 0.05, first weight 0.04, rate 0.1)" in controlled.text
    for name in (">target<", ">measured<"):
        assert name in controlled.source
        assert name not in page.source


@pytest.mark.parametrize(("kl", "ticks"), [(0.02, []), (-0.05, ["-0.03"])])
def test_an_estimate_of_the_kl_below_zero_is_not_cut_off(kl, ticks):
    """That of k1 can be; beside a target, an axis begins at zero only where no value is below.

    Ticks stand at -0.03, 0 and 0.03.
    """
    (curve,) = (curve for curve in GRPO_CURVES if curve.name == "kl")
    svg = draw(curve, [{"step": 1, "kl": kl, "kl_target": 0.05, "beta": 0.1}])
    assert re.findall(r">(-[\d.]+)<", svg) == ticks


def test_a_run_of_fine_tuning_shows_its_loss_and_nothing_of_rewards_or_samples(tmp_path):
    run = make_run(tmp_path / "run", samples=False, config=SFTConfig(**SETTINGS))
    page = Page(write_report(run))
    assert "SFT on counting" in page.text
    assert "with SFT: supervised fine-tuning on the solutions of the data" in page.text
    assert "went from 36.2% to 75.4%, a change of +39.2 points" in page.text
    assert "examples a step 16" in page.text
    assert "not recorded" not in page.text
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', page.source) == [
        "Loss and gradient",
        "Learning rate and speed",
    ]
    for word in ("β", "KL", "reward", "Sample completions", "ungradable", "To be noted"):
        assert word not in page.text
    card = model_card(run)
    assert "tags: [sft, qwen2_vl, othink_jax]" in card
    assert "# tiny, post-trained with SFT on counting, train" in card
    assert "| longest solution | 3072 tokens |" in card
    assert "reward" not in card


def test_page_is_one_file_that_fetches_and_executes_nothing(page):
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(re.match(r"data:image/png;base64,|#", value) for value in sources)
    assert "@import" not in page.source
    assert "url(http" not in page.source
    # Two prompts of the first and of the last step; the step between is not shown.
    assert page.tags.count("img") == 4
    assert re.findall(r"Step \d+", page.text) == ["Step 1", "Step 150"]


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', page.source)
    assert used
    assert set(used) <= set(ids)


def test_kl_and_beta_share_one_time_axis(page):
    (figure,) = re.findall(r'<svg[^>]*aria-label="KL divergence.*?</svg>', page.source, re.DOTALL)
    assert "KL, nats per token" in figure
    assert "weight β" in figure
    assert figure.count(">step<") == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "</style><script>alert(1)</script>",
        "</pre></svg><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }} {% raw %}",
        '" onmouseover="alert(1)',
    ],
)
def test_hostile_words_show_as_text(tmp_path, page, hostile):
    run = make_run(tmp_path / "run", text=hostile, question=hostile)
    record = json.loads((run / "config.json").read_text())
    record["config"]["model"] = hostile
    record["versions"][hostile] = hostile
    (run / "config.json").write_text(json.dumps(record))
    hit = Page(write_report(run))
    assert set(hit.tags) == set(page.tags)
    assert len(hit.tags) == len(page.tags) + 3  # the row of one more version
    assert not [name for name, _ in hit.attributes if name.startswith("on")]
    # 2 steps x 2 prompts x 4 completions, 4 questions, summary, fact, setting, version twice
    assert hit.text.count(hostile) == 16 + 4 + 5


def test_what_nobody_sees_is_shown_as_an_escape_and_turns_no_other_words(tmp_path):
    """An override of the direction of writing, a NUL, half of a surrogate pair."""
    run = make_run(tmp_path / "run", text="a\u202eb\x00c\ud800d", question="\u2067")
    page = Page(write_report(run))
    assert "a\\u202eb\\u0000c\\ud800d<answer>" in page.text
    assert "\\u2067" in page.text
    assert not re.search("[\x00\u202e\u2067]", page.source)


def test_an_enormous_text_is_cut_and_said_to_be(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", text="x" * 1_000_000)))
    assert len(page.source) < 1_000_000
    assert f"{'x' * 20_000} [… 980018 more characters]" in page.text


def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(tmp_path):
    run = make_run(tmp_path / "run")
    for file in (run / "samples").glob("*.jsonl"):
        file.write_text(re.sub(r"step_\d+_0_0.png", f"{'x' * 300}.png", file.read_text()))
    assert f"image {'x' * 300}.png is missing" in Page(write_report(run)).text


def test_names_of_images_do_not_reach_out_of_the_run(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    run = make_run(tmp_path / "run")
    for file in (run / "samples").glob("*.jsonl"):
        file.write_text(re.sub(r"step_\d+_0_0.png", "../../secret.png", file.read_text()))
    page = Page(write_report(run))
    assert page.tags.count("img") == 2
    assert "image ../../secret.png is missing" in page.text


def test_run_without_evaluations_and_samples_says_so(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", evaluations=False, samples=False)))
    assert "There is no evaluation to show" in page.text
    assert "No sample completions are stored." in page.text
    assert page.tags.count("svg") == 6


def test_evaluation_of_unknown_stage_is_shown_neither_before_nor_after(tmp_path):
    run = make_run(tmp_path / "run")
    for file in (run / "evaluations").glob("*-counting/result.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": None}))
    page = Page(write_report(run))
    assert "evaluations/before-counting is not shown: it was made without --stage" in page.text
    assert "counting, test" not in page.text


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["cut", "list", "deep"])
def test_evaluation_that_cannot_be_read_is_named_and_left_out(tmp_path, content):
    run = make_run(tmp_path / "run")
    (run / "evaluations" / "after-counting" / "result.json").write_text(content)
    page = Page(write_report(run))
    assert "evaluations/after-counting/result.json is unreadable and left out." in page.text
    assert "not measured" in page.text


@pytest.mark.parametrize(
    "entries",
    [
        {"accuracy": "<script>"},
        {"accuracy": float("nan")},
        {"accuracy": True},
        {"interval": [0.1]},
        {"interval": [0.1, 7]},
        {"n": "500"},
        {"examples": None},
        {"config": {"sampling": 1}},
    ],
    ids=str,
)
def test_an_evaluation_whose_entries_are_not_as_they_should_be_is_none(entries):
    result = evaluation("counting", "after", 377)
    assert is_result(result)
    assert not is_result(result | entries)
    assert not is_result({name: result[name] for name in result if name not in entries})


def test_a_line_whose_entries_are_not_as_they_should_be_is_left_out_and_counted(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    rows = ['{"step": "<b>"}', '{"step": true}', '{"step": -1}', '{"step": 1e400}']
    text = (run / "metrics.jsonl").read_text()
    odd = '{"step": 21, "reward": "<b>", "elapsed": NaN, "ungradable": []}'
    (run / "metrics.jsonl").write_text(text + "\n".join([*rows, odd]) + "\n")
    file = run / "samples" / "step_000001.jsonl"
    sample = json.loads(file.read_text().splitlines()[0])
    for entries in ({"images": 1}, {"images": [1]}, {"completions": [{}]}, {"question": None}):
        with file.open("a") as lines:
            lines.write(json.dumps(sample | entries) + "\n")
    page = Page(write_report(run))
    assert "4 unreadable lines of metrics.jsonl left out" in page.text
    assert "4 unreadable line(s) of samples/step_000001.jsonl left out" in page.text
    assert "Stopped at step 21 of 150; go on with othink-jax grpo --resume" in page.text
    assert "wall time 32 s" in page.text


def test_run_of_one_step_gives_a_page(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run", steps=1)))
    assert "Stopped at step 1 of 150" in page.text
    assert "without smoothing" in page.text


def test_run_without_metrics_gives_a_page(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert "No step has been recorded yet" in Page(write_report(run)).text


def test_line_cut_by_a_kill_is_left_out_and_counted(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-40])
    page = Page(write_report(run))
    assert "1 unreadable line of metrics.jsonl left out" in page.text
    assert "Stopped at step 19 of 150" in page.text


def test_completion_with_a_line_separator_of_unicode_is_shown(tmp_path):
    run = make_run(tmp_path / "run")
    file = run / "samples" / "step_000001.jsonl"
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    rows[0]["completions"][0]["text"] = "one\u2028two"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    page = Page(write_report(run))
    assert "one\u2028two" in page.source
    assert "unreadable" not in page.text


def test_metric_that_was_not_recorded_is_said_to_be_missing(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [{"step": row["step"], "reward": row["reward"]} for row in metric_rows(150)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(run))
    assert page.text.count("not recorded") == 11 + 1  # panels but the reward's, and the skips


def test_wall_time_adds_up_over_resumptions(tmp_path):
    run = make_run(tmp_path / "run")
    elapsed = [60, 120, 180, 60, 120]  # resumed after the third step
    rows = [{"step": step, "elapsed": seconds} for step, seconds in enumerate(elapsed, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "wall time 5 min 0 s" in Page(write_report(run)).text


def test_settings_that_were_changed_on_the_way_are_noted(tmp_path):
    run = make_run(tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    changes = [{"after_step": 50, "settings": {"steps": [100, 150], "remat": ["none", "layer"]}}]
    (run / "config.json").write_text(json.dumps(record | {"changes": changes}))
    said = "After step 50 the run went on with steps from 100 to 150, remat from none to layer."
    assert said in Page(write_report(run)).text
    for broken in ([1], [{"after_step": 50}], [{"after_step": 50, "settings": {"steps": 100}}]):
        (run / "config.json").write_text(json.dumps(record | {"changes": broken}))
        with pytest.raises(UserError, match="changes must say after which step"):
            write_report(run)


def test_out_may_be_elsewhere(tmp_path):
    out = tmp_path / "page.html"
    run = make_run(tmp_path / "run")
    assert write_report(run, out) == out
    assert out.exists()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "is not a JSON file"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "qwen2_vl"}', "not a run directory: its config.json does not hold a run"),
        ('{"kind": "dpo", "config": {}}', "kind 'dpo'"),
        ('{"kind": "grpo", "config": {"model": "tiny"}}', "does not hold a run's settings"),
        ('{"kind": "sft", "config": []}', "does not hold a run's settings"),
        (
            json.dumps(
                {"kind": "grpo", "config": to_dict(GRPOConfig(**SETTINGS)), "total_steps": "9"}
                | {"started": "", "device": "", "versions": {}}
            ),
            "total_steps must be a int",
        ),
    ],
)
def test_directory_that_is_no_run_is_one_clear_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        write_report(tmp_path)
    assert "\n" not in str(raised.value)


def test_card_of_a_run_states_its_scores_with_their_intervals(tmp_path):
    card = model_card(make_run(tmp_path / "first"))
    assert "| counting, test (same task) | 36.2% (" in card
    assert "| 75.4% (" in card
    assert "(cross task)" in card
    assert "| base model | tiny |" in card


HOSTILE = (
    "a|b\n<script>x</script> ``` `c` ![x](https://evil.example) **d** _e_ www.evil.example &lt;"
)


def test_hostile_words_in_a_card_are_neither_markup_nor_links(tmp_path):
    data = DataConfig(dataset=HOSTILE, template="{question}" + HOSTILE)
    config = GRPOConfig(model=HOSTILE, out=Path("run"), data=data)
    cards = [
        model_card(make_run(tmp_path / "plain")),
        model_card(make_run(tmp_path / "hostile", config=config)),
    ]
    pages = []
    for number, card in enumerate(cards):
        _, head, body = card.split("---\n", 2)
        assert head == "library_name: transformers\npipeline_tag: image-text-to-text\n" + (
            "tags: [grpo, qwen2_vl, othink_jax]\n"
        )
        file = tmp_path / f"{number}.html"
        file.write_text(MarkdownIt("commonmark").enable("table").render(body))
        pages.append(Page(file))
    plain, hostile = pages
    assert hostile.tags == plain.tags
    words = " ".join(HOSTILE.split())
    assert hostile.text.count(words) == 4  # title twice, model, data
    assert words.replace("|b <", "|b\\n<") in hostile.text  # the prompt, as code
    # Of bare addresses, some renderers make links.
    outside = cards[1].replace(as_code(data.template), "")
    assert not re.search(r"https?:|www\.|@", outside)


def test_difference_of_accuracies_is_newcombes():
    # Newcombe 1998, Table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339.
    after = {"accuracy": 56 / 70, "interval": wilson_interval(56, 70)}
    before = {"accuracy": 48 / 80, "interval": wilson_interval(48, 80)}
    assert difference(before, after) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_evaluations_pair_only_where_they_asked_the_same_in_the_same_way():
    trained = DataConfig(task="counting")
    results = [
        evaluation("geometry", "before", 10),
        evaluation("counting", "before", 10),
        evaluation("counting", "after", 20),
        evaluation("geometry", "after", 20, sampling={"max_new_tokens": 7}),
        evaluation("counting", "after", 30, count=7),
    ]
    made = compare(results, trained)
    assert [one.relation for one in made] == ["same task"] * 2 + ["cross task"] * 2
    assert sum(one.change is not None for one in made) == 1
    assert made[0].change == difference(results[1], results[2])


@pytest.mark.parametrize(("decoding", "pairs"), [("greedy", 1), ("temperature 1", 0)])
def test_from_how_many_tokens_is_drawn_matters_where_any_is_drawn(decoding, pairs):
    results = [
        evaluation("counting", stage, 10, sampling={"max_new_tokens": 40, "top_k": top_k})
        | {"decoding": decoding}
        for stage, top_k in (("before", 0), ("after", 50))
    ]
    made = compare(results, DataConfig(task="counting"))
    assert sum(one.change is not None for one in made) == pairs


def test_smoothing_is_a_centred_mean_that_leaves_out_nan():
    values = np.array([0.0, 3.0, np.nan, 9.0, 0.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 1.5, 6.0, 4.5, 4.5])
    np.testing.assert_allclose(smooth(values, 1), values)
    # A window wider than the run is the mean of all.
    np.testing.assert_allclose(smooth(np.array([1.0, 5.0]), 7), [3.0, 3.0])
    assert [smoothing_window(n) for n in (1, 9, 20, 150)] == [1, 1, 3, 15]
