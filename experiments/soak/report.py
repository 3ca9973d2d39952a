"""Report pages and model cards of runs and experiments in which every text is hostile.

Claim: whatever text a question, a truth, a completion, a name or a note holds, the page shows it
    and has the same elements, attributes and addresses as a page of plain texts.
Command: python -m experiments.soak.report --json experiments/soak/results/report.json
Cost: five minutes on two cores for 200 runs.
Shows: outcomes by page (run, experiment, tables, card). Also outcomes of plain-text runs in which
    one file is damaged or holds a value of another type: a page, or a one-line error.
"""

import copy
import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from PIL import Image

from experiments.soak.record import Campaign, Outcome, parser
from othink_jax.config import DataConfig, GRPOConfig, RunRecord, SFTConfig, to_dict
from othink_jax.errors import UserError
from othink_jax.markup import visible
from othink_jax.report import model_card, write_experiment_report, write_report
from othink_jax.report.table import Table

_PIECES = (
    *("<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "<svg onload=a()>"),
    *("</pre></td></table></main>", "</style><script>", "<!--", "-->", "<![CDATA[", "<?php", "<a"),
    *('" onmouseover="alert(1)', "' onclick='alert(1)", "`", "``", "```\n", "\\", "\\|", "|", "||"),
    *("javascript:alert(1)", "https://evil.example/x.js", "www.evil.example", "//evil.example"),
    *("data:text/html,<script>1</script>", "url(https://evil.example)", "@import 'x'", "x@evil.ex"),
    *(
        "![x](https://evil.example/x.png)",
        "[x](javascript:1)",
        "[x]: https://evil.example",
        "**b**",
    ),
    *("<https://evil.example>", "\n---\n", "\n# heading", "\n\n- item", "_e_", "~~s~~", "*", "> q"),
    *("{{ 7 * 7 }}", "{% raw %}", "{# x", "${7*7}", "%s", "&lt;b&gt;", "&#60;script&#62;", "&amp;"),
    *("\u202eevil", "\u2066\u2067", "\u200f", "\u05d0\u05d1", "\u2028", "\u2029", "\ufeff", "\x00"),
    *("\x1b[31m", "\r", "\x0c", "\x85", "\x7f", "\ud800 ", "\udfff", "\U0001f600", "e\u0301" * 5),
    *("word", " ", "\n", "\t", "42", "<answer>3</answer>", "x" * 300, "\u00a0"),
)
_ADDRESSES = ("src", "href", "xlink:href", "action", "formaction", "data", "poster", "srcset")


class _Page(HTMLParser):
    """Elements, addresses and text of a page, as a browser parses it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: Counter[tuple[str, ...]] = Counter()  # tag and attribute names
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.others = 0  # comments, declarations
        self.feed(source)
        self.close()
        self.text = _squeezed("".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag, *sorted(name for name, _ in attrs)] += 1
        self.addresses += [value or "" for name, value in attrs if name in _ADDRESSES]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.others += 1

    def handle_pi(self, data: str) -> None:
        self.others += 1

    def unknown_decl(self, data: str) -> None:
        self.others += 1


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _faults(page: _Page, clean: _Page, texts: list[str]) -> Iterator[str]:
    """Differences from a page of plain texts, and texts that the page does not show."""
    if page.elements != clean.elements:
        yield f"elements: {page.elements - clean.elements} for {clean.elements - page.elements}"
    if page.others != clean.others:
        yield "a comment or a declaration"
    if foreign := [one for one in page.addresses if not one.startswith(("data:image/png;", "#"))]:
        yield f"addresses: {foreign}"
    for text in texts:
        if _squeezed(text) not in page.text:
            yield f"not shown: {text[:80]!r}"


class _Texts:
    """Makes texts and records which page has to show each."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self.on: dict[str, list[str]] = {"run": [], "experiment": [], "tables": [], "card": []}

    def __call__(self, *pages: str) -> str:
        text = self._make()
        for page in pages:
            self.on[page].append(visible(text[:10_000]))  # only the start of a huge text is shown
        return text


def _hostile(rng: random.Random) -> str:
    text = "".join(rng.choices(_PIECES, k=rng.randint(1, 8))) + "¶"
    return text * (100_000 // len(text)) if rng.random() < 0.01 else text


def _file_name(text: str) -> str:
    """A text as a valid file name of at most 80 bytes."""
    kept = text.replace("/", "").replace("\0", "").encode("utf-8", "replace")[:80]
    return kept.decode("utf-8", "ignore").strip(".") or "x"


def _result(text: _Texts, stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "task": None,
        "dataset": text(),
        "examples": text("run", "card"),
        "n": 50,
        "accuracy": 0.5,
        "interval": [0.4, 0.7],
        "grader": text("run", "card"),
        "decoding": text("run", "card"),
        "config": {"data": text()},
    }


def _sample(text: _Texts, step: int) -> dict[str, Any]:
    completion = {"reward": 1.5, "accuracy": 1.0, "format": 0.5, "length": 7, "finished": True}
    return {
        "step": step,
        "id": text(),
        "question": text("run"),
        "ground_truth": text("run"),
        "images": [f"{step}.png", text("run")],
        "completions": [completion | {"text": text("run")} for _ in range(2)],
    }


def _write_run(run: Path, text: _Texts, kind: type[GRPOConfig | SFTConfig]) -> None:
    """A run of two steps (GRPO with samples), two unrelated evaluations and a broken one."""
    template = text("run")
    text.on["card"].append(visible(template[:10_000]).replace("\n", "\\n"))
    data = DataConfig(dataset=text("run", "card"), template=template + "{question}")
    record = RunRecord(
        kind=kind.kind,
        config=kind(model=text("run", "card"), out=run, data=data),
        total_steps=2,
        started=text("run"),
        versions={text("run"): text("run")},
        device=text("run"),
    )
    for stage in ("before", "after"):
        place = run / "evaluations" / f"{stage}{_file_name(text())}"
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(_result(text, stage)))
    broken = run / "evaluations" / f"broken{_file_name(text())}"
    broken.mkdir()
    (broken / "result.json").write_text(text(), errors="replace")
    text.on["run"].append(visible(broken.name))
    (run / "config.json").write_text(json.dumps(to_dict(record)))
    rows = [{"step": step, "reward": 0.5, "elapsed": 1.0, text(): 1.0} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind is GRPOConfig:
        (run / "samples").mkdir()
        for step in (1, 2):
            Image.new("RGB", (4, 4), "#b33").save(run / "samples" / f"{step}.png")
            line = json.dumps(_sample(text, step)) + "\n"
            (run / "samples" / f"step_{step:06d}.jsonl").write_text(line)


def _write_experiment(place: Path, text: _Texts) -> None:
    place.mkdir()
    Image.new("RGB", (4, 4), "#b33").save(place / "case1.png")
    table = {
        "title": text("experiment"),
        "columns": [text("experiment"), text("experiment")],
        "rows": [[text("experiment"), text("experiment")]],
        "note": text("experiment"),
    }
    case = {
        "title": text("experiment"),
        "image": "case1.png",
        "question": text("experiment"),
        "ground_truth": text("experiment"),
        "answers": [{"method": text("experiment"), "correct": True, "text": text("experiment")}],
    }
    about = f"{text('experiment')}\n\n{text('experiment')}"
    record = {"kind": "experiment", "name": text(), "about": about, "tables": [table]}
    (place / "results.json").write_text(json.dumps(record | {"cases": [case]}))


def _pages(
    place: Path, text: _Texts, kind: type[GRPOConfig | SFTConfig]
) -> Iterator[tuple[str, _Page]]:
    """Name and content of every page, filled with texts made by `text`."""
    run = place / _file_name(text())
    text.on["run"].append(visible(run.name))
    run.mkdir()
    _write_run(run, text, kind)
    yield "run", _Page(write_report(run).read_text(encoding="utf-8"))
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    yield "card", _Page(markdown.render(model_card(run).split("---", 2)[2]))
    _write_experiment(place / "experiment", text)
    page = write_experiment_report(place / "experiment")
    yield "experiment", _Page(page.read_text(encoding="utf-8"))
    words = [text("tables") for _ in range(4)]
    table = Table(title=words[0], columns=words[1:2], rows=[words[2:3]], note=words[3])
    yield "tables", _Page(table.html())


def _with_hostile_texts(
    rng: random.Random, clean: dict[str, _Page], kind: Any
) -> Iterator[Outcome]:
    text = _Texts(lambda: _hostile(rng))
    with tempfile.TemporaryDirectory() as place:
        for name, page in _pages(Path(place), text, kind):
            faults = list(_faults(page, clean[name], text.on[name]))
            yield Outcome(
                kind=f"{name}: {'another page' if faults else 'that of plain texts'}",
                good=not faults,
                detail="; ".join(faults),
            )


_VALUES: tuple[Any, ...] = (
    *(None, True, "text", "", [], [1], {}, {"a": 1}, -1, 0, 2.5, -0.0, 10**30, 1e308, -1e308),
    *(float("nan"), float("inf"), [[[]]], "<b>", "\ud800", 2**53),
)


def _with_other_values(rng: random.Random) -> Outcome:
    """Outcome of a run with one file that is damaged or holds a value of another type."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        words = itertools.count()
        _write_run(run, _Texts(lambda: f"word{next(words)}"), GRPOConfig)
        files = [file for file in sorted(run.rglob("*.json*")) if "broken" not in str(file)]
        file = rng.choice(files)
        content = file.read_bytes()
        if rng.random() < 0.3:
            file.write_bytes(_damaged(rng, content))
        else:
            first, *others = content.split(b"\n")
            changed = json.dumps(_changed(rng, json.loads(first))).encode()
            file.write_bytes(b"\n".join([changed, *others]))
        try:
            _Page(write_report(run).read_text(encoding="utf-8"))
            model_card(run)
        except UserError as error:
            return Outcome(kind="other values: one line", good="\n" not in str(error))
        except Exception as error:
            detail = f"{file.name}: {type(error).__name__}: {error}: {file.read_bytes()[:3000]!r}"
            return Outcome(kind="other values: a traceback", good=False, detail=detail)
        return Outcome(kind="other values: a page", good=True)


def _damaged(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _changed(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which one nested value, at any depth, is replaced."""
    value = copy.copy(value)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not places:
        return rng.choice(_VALUES)
    at = rng.choice(places)
    deeper = isinstance(value[at], dict | list) and rng.random() < 0.8
    value[at] = _changed(rng, value[at]) if deeper else rng.choice(_VALUES)
    return value


def main() -> None:
    arguments = parser(__doc__, count=200).parse_args()
    campaign = Campaign("report", arguments)
    words = itertools.count()
    clean = {}
    for kind in (GRPOConfig, SFTConfig):
        with tempfile.TemporaryDirectory() as place:
            plain = _Texts(lambda: f"word{next(words)}")
            clean[kind] = dict(_pages(Path(place), plain, kind))
            for name, page in clean[kind].items():
                assert not list(_faults(page, page, plain.on[name])), name
    for number in range(arguments.count):
        rng = random.Random(f"{arguments.seed} {number}")
        kind = rng.choice((GRPOConfig, SFTConfig))
        campaign.add_all(_with_hostile_texts(rng, clean[kind], kind))
        campaign.add(_with_other_values(rng))
    campaign.finish()


if __name__ == "__main__":
    main()
