"""The rooms of the package, ground floor first: each imports from rooms above it in this list."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "othink_jax"
ROOMS = (
    *(
        "errors",
        "tasks",
        "markup",
        "files",
        "digests",
        "identity",
        "hub",
        "types",
        "rows",
        "config",
        "statistics",
        "compilation_cache",
    ),
    *("rl", "model", "families", "rewards"),
    *(
        "data",
        "checkpoint",
        "sampling",
        "generation",
        "training",
        "plan",
        "evaluation",
        "report",
        "presets",
        "recipes",
    ),
    "cli",
)
# Rooms that stand on nothing of ours but these, so that they can be taken out and used alone.
ALONE = {
    **dict.fromkeys(("errors", "identity", "markup", "rl", "statistics", "tasks"), ()),
    "rewards": ("tasks",),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_by(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(file):
    room = room_of(file)
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS, f"{file} belongs to no room"
    above = ALONE.get(room, ROOMS[: ROOMS.index(room)])
    allowed = {room, *above}
    ours = {name.split(".")[1] for name in imported_by(file) if name.startswith("othink_jax.")}
    assert ours <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_does_not_import_experiments_or_torch(file):
    roots = {name.split(".")[0] for name in imported_by(file)}
    assert not roots & {"experiments", "tests", "torch", "trl"}
