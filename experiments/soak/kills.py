"""Runs whose processes are killed, or told to stop, at random moments.

Claim: a run that is killed at any moment (at its start, in a step, while it saves) resumes and ends
    bit for bit like an uninterrupted run. Of two processes, the survivor ends within a minute.
Command: python -m experiments.soak.kills --json experiments/soak/results/kills.json
Cost: about forty minutes on two CPU cores for 100 kills and 10 requests to stop.
Shows: how many interruptions of each kind of run (GRPO, SFT, on a mesh, in two processes, streamed)
    ended in the same metrics and parameters, and the longest time that a survivor took to end.
"""

import argparse
import itertools
import random
import shutil
import signal
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

_LONGEST_END_S = 60.0  # for a process whose peer was killed


class Lonely:
    """The longest time that a process took to end after its peer was killed."""

    longest_s = 0.0


def interrupt(
    kind: Kind, out: Path, sent: signal.Signals, moments: random.Random, life_s: float
) -> tuple[bool, str | None]:
    """Start or resume a run and interrupt it; returns whether it ended before, and any fault."""
    attempt = Attempt(kind, out, resume=is_begun(out))
    until = time.monotonic() + moments.uniform(0, life_s)
    while time.monotonic() < until:
        if any(process.poll() is not None for process in attempt.processes):
            break
        time.sleep(0.01)
    if all(process.poll() is not None for process in attempt.processes):
        codes = attempt.wait()
        return True, None if set(codes) == {0} else f"{codes}: {last_line(attempt.said)}"
    victim = moments.choice(attempt.processes)
    victim.send_signal(sent)
    start = time.monotonic()
    codes = attempt.wait()
    if kind.processes > 1:
        Lonely.longest_s = max(Lonely.longest_s, time.monotonic() - start)
        if sent == signal.SIGKILL and time.monotonic() - start > _LONGEST_END_S:
            return False, f"the other process took {time.monotonic() - start:.0f} s to end"
    if has_traceback(attempt.said) and sent == signal.SIGKILL:
        return False, f"a traceback: {last_line(attempt.said)}"
    return False, None


def campaign(
    name: str, kind: Kind, sent: signal.Signals, count: int, folder: Path, moments: random.Random
) -> Iterator[Outcome]:
    """Interrupt runs of one kind `count` times; compare each with an uninterrupted run."""
    title = f"{name}, {sent.name}"
    whole = folder / f"{name}-whole"
    if not whole.exists():
        start = time.monotonic()
        codes, said = finish(kind, whole)
        if set(codes) != {0}:
            raise RuntimeError(f"{name} does not run: {last_line(said)}")
        (whole / "seconds").write_text(str(time.monotonic() - start))
    expected, life_s = outcome_of(whole), float((whole / "seconds").read_text())
    done = 0
    for number in itertools.count():
        if done == count:
            return
        out = folder / f"{name}-{sent.name}-{number}"
        interrupted, fault = 0, None
        while fault is None and done < count:
            ended, fault = interrupt(kind, out, sent, moments, life_s)
            if ended:
                break
            interrupted += 1
            done += 1
        if fault is None:
            codes, said = finish(kind, out)
            if set(codes) != {0}:
                fault = f"it does not go on: {last_line(said)}"
            elif outcome_of(out) != expected:
                fault = "it ended otherwise"
        for _ in range(interrupted):
            if fault is None:
                yield Outcome(kind=f"{title}: as if nothing had happened", good=True)
            else:
                yield Outcome(kind=f"{title}: failed", good=False, detail=f"{out.name}: {fault}")
        shutil.rmtree(out, ignore_errors=True)


def main(arguments: argparse.Namespace) -> None:
    record = Campaign("kills", arguments)
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        there = kinds(Path(folder))
        for number, (name, kind) in enumerate(there.items()):
            share = arguments.count // len(there) + (number < arguments.count % len(there))
            for sent, count in ((signal.SIGKILL, share), (signal.SIGTERM, -(-share // 10))):
                record.add_all(campaign(name, kind, sent, count, Path(folder), moments))
    record.finish(lonely_process_ended_within_s=round(Lonely.longest_s, 1))


if __name__ == "__main__":
    main(parser(__doc__, count=100).parse_args())
