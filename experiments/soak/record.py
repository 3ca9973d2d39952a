"""Command line and JSON record shared by all campaigns."""

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from othink_jax.training.run_directory import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one case."""

    kind: str  # such as `resumed bit for bit`
    good: bool  # false if it must never happen
    detail: str = ""  # for a bad outcome: the case, and what was seen


def parser(description: str | None, *, count: int) -> argparse.ArgumentParser:
    """Options that every campaign takes: `--seed`, `--count`, `--json`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seed", type=int, default=0, help="of everything random")
    made.add_argument("--count", type=int, default=count, help="cases")
    made.add_argument("--json", type=Path, help="write the record to this file")
    return made


class Campaign:
    """Counts the outcomes of one campaign and writes its record."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self._name = name
        self._arguments = arguments
        self._start = time.perf_counter()
        self._outcomes: Counter[str] = Counter()
        self._bad: list[str] = []

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self._outcomes[outcome.kind] += 1
        if not outcome.good:
            self._bad.append(f"{outcome.kind}: {outcome.detail}")
            print(f"BAD {self._bad[-1]}", flush=True)

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.add(outcome)

    def finish(self, **measured: Any) -> None:
        """Print and write the record; raise SystemExit(1) if there was a bad outcome.

        Args:
          measured: further figures for the record.
        """
        record = {
            "campaign": self._name,
            "seed": self._arguments.seed,
            "count": self._outcomes.total(),
            "outcomes": dict(sorted(self._outcomes.items())),
            "bad": self._bad,
            "seconds": round(time.perf_counter() - self._start, 1),
            **measured,
            **environment(),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        print(text, end="")
        if self._arguments.json is not None:
            self._arguments.json.parent.mkdir(parents=True, exist_ok=True)
            self._arguments.json.write_text(text, encoding="utf-8")
        if self._bad:
            raise SystemExit(1)
