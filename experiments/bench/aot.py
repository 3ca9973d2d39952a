"""Memory, communication and time of 2B and 7B runs on TPUs and GPUs, by those machines' compilers.

Claim: every row says whether a run fits and with how many micro-batches, the bytes of its
    collectives, and a lower bound on the time of a step; no such machine is needed.
Command: make bench-aot
Cost: five to fifteen minutes per row on two CPU cores; existing rows are not made again.
Shows: one record per row, from `othink-jax plan --json`, and a page with all of them and the
    command of each run that fits.
"""

import argparse
import dataclasses
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "aot"
PAGE = RESULTS / "README.md"

MODELS = {"2B": "Qwen/Qwen2-VL-2B-Instruct", "7B": "Qwen/Qwen2-VL-7B-Instruct"}
TRAINED = ("all", "text", "lora")
TARGETS = ("v5e:2x4", "v5p:2x2x1", "v6e:2x4", "h100:1", "h100:8")

# R1-V's batch: 16 prompts of up to 1024 tokens, 512 of them image tokens; 8 completions of 512.
OPTIONS = (
    *("--dtype", "bfloat16"),
    *("--prompts-per-step", "16", "--group-size", "8", "--max-new-tokens", "512"),
    *("--max-prompt-tokens", "1024", "--max-pixels", "401408"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A run on a machine."""

    size: str
    train: str
    target: str

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the command, without those that all rows share."""
        return (*self.model, "--target", self.target, *self.mesh)

    @property
    def model(self) -> tuple[str, ...]:
        """Options for the model and the part of it that is trained."""
        return (MODELS[self.size], "--train", self.train)

    @property
    def mesh(self) -> tuple[str, ...]:
        """Options that shard a run over the devices."""
        if self.target == "h100:1":
            return ()
        # During decoding, a device holds its shard of all weights along `tensor`.
        cut = self.size == "7B" and self.target in ("v5e:2x4", "v6e:2x4")
        return ("--strategy", "mesh", *(("--tensor", "4") if cut else ()))

    @property
    def file(self) -> Path:
        machine = self.target.replace(":", "-")
        return RESULTS / f"{self.size.lower()}-{self.train}-{machine}.json"


def rows() -> Iterator[Row]:
    """All rows."""
    for size in MODELS:
        for target in TARGETS:
            for train in TRAINED:
                yield Row(size=size, train=train, target=target)


def make(row: Row) -> None:
    """Compile a row's programs in a process of its own, and write the record."""
    command = [sys.executable, "-m", "othink_jax", "plan", *row.options, *OPTIONS, "--json"]
    print(" ".join(command[3:]), flush=True)
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    record = {"options": [*row.options, *OPTIONS], **json.loads(said)}
    row.file.parent.mkdir(parents=True, exist_ok=True)
    row.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(found: Mapping[Row, Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| model | `--train` | machine | fits | micro-batches | most memory, GB | moved, GB |"
        " bound of a step, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, record in found.items():
        programs = record["programs"].values()
        known = all(each["work"] for each in programs)
        moved = sum(each["times"] * size for each in programs for size in _moved(each).values())
        cells = (
            *(row.size, row.train, row.target),
            f"{'yes' if record['fits'] else 'no'}, of {record['memory'] / 1e9:.1f}",
            record["micro_batches"],
            f"{record['peak'] / 1e9:.1f}",
            f"{moved / 1e9:.1f}" if known else "not known",
            _seconds(record),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def overview(found: Mapping[Row, Mapping[str, Any]]) -> str:
    """A short Markdown table of the records: one line per run, one column per machine."""
    memory = {row.target: record["memory"] for row, record in found.items()}
    targets = [target for target in TARGETS if target in memory]
    heads = [f"{target}, {memory[target] / 1e9:.0f} GB" for target in targets]
    lines = [f"| model, `--train` | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for size, train in itertools.product(MODELS, TRAINED):
        cells = [f"{size}, {train}"]
        for target in targets:
            record = found.get(Row(size=size, train=train, target=target))
            cells.append("not compiled" if record is None else _in_short(record))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def commands(found: Mapping[Row, Mapping[str, Any]]) -> str:
    """The command of each run that fits, without `--dataset` and `--out`."""
    lines = []
    for row, record in found.items():
        if record["fits"]:
            pieces = ("--micro-batches", str(record["micro_batches"]))
            words = ("othink-jax", "grpo", "--model", *row.model, *row.mesh, *OPTIONS, *pieces)
            lines.append(f"{shlex.join(words)}  # {row.target}")
    return "\n".join(lines)


def page(found: Mapping[Row, Mapping[str, Any]]) -> str:
    """All records as a Markdown page."""
    return f"""# 2B and 7B on machines that are not here

Made by `make bench-aot` from the records beside this file. GB are of a device; moved are the
results of collectives in a step; the bound is from the device's peaks, and most steps are much
slower.

{table(found)}

The runs that fit, but for `--dataset` and `--out`:

```sh
{commands(found)}
```
"""


def _in_short(record: Mapping[str, Any]) -> str:
    peak = f"{record['peak'] / 1e9:.1f} GB"
    if not record["fits"]:
        return f"no: {peak}"
    pieces = record["micro_batches"]
    return f"{peak}, {_seconds(record)} s" + ("" if pieces == 1 else f", {pieces} micro-batches")


def _seconds(record: Mapping[str, Any]) -> str:
    bound = record["bound_seconds"]
    return "not known" if bound is None else f"{bound:.1f}"


def _moved(program: Mapping[str, Any]) -> Mapping[str, int]:
    return program["work"]["moved"] if program["work"] else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=MODELS, action="append", help="these models alone")
    parser.add_argument("--target", choices=TARGETS, action="append", help="these machines alone")
    parser.add_argument("--train", choices=TRAINED, action="append", help="these parts alone")
    arguments = parser.parse_args()
    chosen = [
        row
        for row in rows()
        if row.size in (arguments.size or MODELS)
        and row.target in (arguments.target or TARGETS)
        and row.train in (arguments.train or TRAINED)
    ]
    for row in chosen:
        if not row.file.exists():
            make(row)
    found = {row: json.loads(row.file.read_text()) for row in rows() if row.file.exists()}
    PAGE.write_text(page(found), encoding="utf-8")
    print(overview(found))


if __name__ == "__main__":
    main()
