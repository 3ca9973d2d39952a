"""A disk that fills up at a random moment of a run.

Claim: a run whose disk fills up ends with one line, and resumes bit for bit when there is room.
Command: sudo python -m experiments.soak.disk --json experiments/soak/results/disk.json (Linux)
Cost: about fifteen minutes on two CPU cores for 50 disks.
Shows: how many runs ended with one line and then, resumed with more room, gave the result of an
    uninterrupted run. Half of the disks are too small from the start, of a random size between one
    page and all that the run needs. The others are large until they are filled from outside at a
    random moment.
"""

import argparse
import contextlib
import dataclasses
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.soak.record import Campaign, Outcome, parser
from experiments.soak.runs import (
    Attempt,
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
    """Mount a file system in memory (tmpfs) of `size` bytes."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(place: Path, size: int) -> None:
    """Resize a file system to `size` bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def fill_up(place: Path, left: int) -> None:
    """Shrink a file system to `left` free bytes at most."""
    while True:
        size = shutil.disk_usage(place).used + left
        command = ["mount", "-o", f"remount,size={size}", str(place)]
        # The remount is refused if more is used by now.
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk on which a run cannot finish."""

    size: int  # bytes
    filled_after_s: float | None = None  # since the start of the run; None: never filled
    left: int = 0  # free bytes after it has been filled


def outcome(kind: Kind, place: Path, small: Disk, needed: int, expected: object) -> Outcome:
    """Outcome of a run on a disk that is too small, resumed after the disk is enlarged."""
    out = place / "run"
    with disk(place, small.size):
        attempt = Attempt(kind, out, resume=False)
        if small.filled_after_s is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                attempt.wait(small.filled_after_s)
            fill_up(place, small.left)
        codes, said = attempt.wait(), attempt.said
        if set(codes) == {0}:
            return Outcome(kind="there was room enough", good=True)
        if has_traceback(said) or codes != [1]:
            return Outcome(
                kind="no clear line", good=False, detail=f"{small}, {codes}: {last_line(said)}"
            )
        begun = is_begun(out)
        resize(place, 3 * needed)
        codes, again = finish(kind, out)
        if set(codes) != {0}:
            detail = f"{small}: {last_line(said)}; then {last_line(again)}"
            return Outcome(kind="it does not go on", good=False, detail=detail)
        if outcome_of(out) != expected:
            return Outcome(kind="it ended otherwise", good=False, detail=str(small))
    when = "in mid-run" if begun else "before the first step"
    return Outcome(kind=f"full {when}: one line, then as if nothing had happened", good=True)


def main(arguments: argparse.Namespace) -> None:
    record = Campaign("disk", arguments)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        kind = kinds(Path(folder))["grpo"]
        whole = Path(folder) / "whole"
        begun = time.monotonic()
        codes, said = finish(kind, whole)
        takes_s = time.monotonic() - begun
        if codes != [0]:
            raise RuntimeError(last_line(said))
        needed = sum(file.stat().st_size + _PAGE for file in whole.rglob("*"))
        expected = outcome_of(whole)
        for number in range(arguments.count):
            if number % 2:
                left = draw.randrange(needed // 4) // _PAGE * _PAGE
                after = draw.uniform(0, takes_s)
                small = Disk(size=3 * needed, filled_after_s=after, left=left)
            else:
                small = Disk(size=draw.randrange(_PAGE, needed) // _PAGE * _PAGE)
            place = Path(folder) / str(number)
            record.add(outcome(kind, place, small, needed, expected))
    record.finish(bytes_of_a_whole_run=needed)


if __name__ == "__main__":
    main(parser(__doc__, count=50).parse_args())
