"""The Python of the pages runs, their links lead somewhere, and their figures are measured."""

import re
import textwrap
from pathlib import Path

import pytest

from othink_jax.rewards import GradingPool

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/library.md")
BLOCKS = [
    textwrap.dedent(block)
    for page in PAGES
    for block in re.findall(
        r"^ *```python\n(.*?)^ *```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
]
LINK = re.compile(r"\]\(([^)#:]*)(#[^)]*)?\)")


@pytest.fixture(scope="module")
def namespace():
    """Later blocks go on from earlier ones."""
    return {}


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_the_python_of_the_readme_runs(block, namespace):
    exec(block, namespace)


def test_the_pages_have_python():
    assert len(BLOCKS) == 6


@pytest.mark.parametrize(
    "page", ["README.md", "experiments/README.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))]
)
def test_every_link_of_a_page_leads_somewhere(page):
    file = ROOT / page if "README" in page else ROOT / "docs" / page
    links = LINK.findall(file.read_text())
    for place, anchor in links:
        target = (file.parent / place).resolve() if place else file
        assert target.exists(), place
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor[1:] in slugs, (place, anchor)


VERDICTS = re.findall(
    r"^\| (counting|geometry) \| (`.*?`) \| (\S+) \| (right|wrong) \| (right|wrong) \|",
    (ROOT / "experiments" / "README.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("grader", ["strict", "r1v"])
@pytest.mark.parametrize("task", ["counting", "geometry"])
def test_the_verdicts_of_the_experiments_readme_are_those_of_the_graders(task, grader):
    rows = [row for row in VERDICTS if row[0] == task]
    assert len(rows) >= 3
    asked = [
        (completion, row[2], row[3 if grader == "strict" else 4])
        for row in rows
        for completion in re.findall("`(.*?)`", row[1])
    ]
    with GradingPool(grader, task=task, timeout_s=10.0, workers=1) as pool:
        grades = pool.grade_all([one[0] for one in asked], [one[1] for one in asked])
    found = ["right" if grade.accuracy else "wrong" for grade in grades]
    assert found == [verdict for *_, verdict in asked]


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_every_interval_of_a_readme_stands_in_a_table_of_the_results(page):
    results = ROOT / "experiments" / "results" / "laptop"
    tables = "".join(path.read_text() for path in results.glob("*/tables.txt"))
    text = (ROOT / page).read_text().replace("\n", " ")
    text = text.partition("## The embedded model")[0]  # of which other tests were made
    number = r"-?\d+\.\d"
    shown = re.findall(rf"({number})%?(?:, relative)? \(({number}) to ({number})\)", text)
    assert len(shown) > 5
    assert [one for one in shown if "{} ({} to {})".format(*one) not in tables] == []
