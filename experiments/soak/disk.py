"""A disk that is full, at a random moment of a run.

Claim: a run whose disk fills up ends with one line, and goes on bit for bit when there is room.
Command: sudo python -m experiments.soak.disk --json experiments/soak/results/disk.json (Linux)
Cost: about ten minutes on two CPU cores for 25 disks.
Shows: how many runs on a file system of a random size, from one page to all that the run needs,
    ended in one line and then, on a larger one, as if nothing had happened.
"""

import argparse
import contextlib
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.soak.record import Campaign, Outcome, parser
from experiments.soak.runs import (
    Kind,
    finish,
    has_traceback,
    is_begun,
    kinds,
    last_line,
    outcome_of,
)

_PAGE = 4096  # bytes


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A file system in memory of so many bytes."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def grow(place: Path, size: int) -> None:
    """Give a file system more room."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def fill(kind: Kind, place: Path, size: int, needed: int, expected: object) -> Outcome:
    """One run on a disk that is too small, then on one that is not."""
    out = place / "run"
    with disk(place, size):
        codes, said = finish(kind, out)
        if set(codes) == {0}:
            return Outcome(kind="there was room enough", good=True)
        if has_traceback(said) or codes != [1]:
            return Outcome(
                kind="no clear line", good=False, detail=f"{size} bytes, {codes}: {last_line(said)}"
            )
        begun = is_begun(out)
        grow(place, 3 * needed)
        codes, again = finish(kind, out)
        if set(codes) != {0}:
            detail = f"{size} bytes: {last_line(said)}; then {last_line(again)}"
            return Outcome(kind="it does not go on", good=False, detail=detail)
        if outcome_of(out) != expected:
            return Outcome(kind="it ended otherwise", good=False, detail=f"{size} bytes")
    when = "in mid-run" if begun else "before the first step"
    return Outcome(kind=f"full {when}: one line, then as if nothing had happened", good=True)


def main(arguments: argparse.Namespace) -> None:
    record = Campaign("disk", arguments)
    sizes = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        kind = kinds(Path(folder))["grpo"]
        whole = Path(folder) / "whole"
        codes, said = finish(kind, whole)
        if codes != [0]:
            raise RuntimeError(last_line(said))
        needed = sum(file.stat().st_size + _PAGE for file in whole.rglob("*"))
        expected = outcome_of(whole)
        for number in range(arguments.count):
            size = sizes.randrange(_PAGE, needed) // _PAGE * _PAGE
            record.add(fill(kind, Path(folder) / str(number), size, needed, expected))
    record.finish(bytes_of_a_whole_run=needed)


if __name__ == "__main__":
    main(parser(__doc__, count=25).parse_args())
