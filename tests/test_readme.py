"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def namespace():
    """Later blocks go on from earlier ones."""
    return {}


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_the_python_of_the_readme_runs(block, namespace):
    exec(block, namespace)


def test_the_readme_has_python():
    assert len(BLOCKS) == 3
