"""Small runs of every kind, as processes that a campaign can interrupt."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from othink_jax.checkpoint.load import load
from othink_jax.data.synthetic import generate

_SETTINGS = (
    *("--model", "tiny", "--prompts-per-step", "4", "--steps", "12", "--checkpoint-every", "3"),
    *("--learning-rate", "3e-4"),
)
_SAMPLING = ("--group-size", "2", "--max-new-tokens", "24", "--sample-every", "5")
_TIMES = ("elapsed", "tokens_per_second")
_ROWS = 40  # rows of the streamed data set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of run."""

    method: str
    words: tuple[str, ...]  # of the command line
    processes: int = 1
    devices: int = 1  # simulated devices per process


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds of runs by name; the data that they read is written into `folder`."""
    task = (*_SETTINGS, "--task", "counting")
    stream = ("--dataset", str(_parquet(folder)), "--streaming", *_SETTINGS)
    return {
        "grpo": Kind(method="grpo", words=(*task, *_SAMPLING)),
        "sft": Kind(method="sft", words=task),
        "mesh": Kind(method="grpo", words=(*task, *_SAMPLING, "--strategy", "mesh"), devices=2),
        "processes": Kind(
            method="grpo", words=(*task, *_SAMPLING, "--strategy", "mesh"), processes=2
        ),
        "streaming": Kind(method="sft", words=stream),
    }


def _parquet(folder: Path) -> Path:
    """Counting questions as a parquet file, with two rows that cannot be used."""
    import datasets

    examples = [generate("counting", "train", number) for number in range(_ROWS)]
    columns = {
        "problem": [example.question * (n != 3) for n, example in enumerate(examples)],
        "solution": [example.solution * (n != 7) for n, example in enumerate(examples)],
        "image": [example.images[0] for example in examples],
    }
    path = folder / "counting.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return path


class Attempt:
    """The processes of one start of a run."""

    def __init__(self, kind: Kind, out: Path, *, resume: bool) -> None:
        place = ("--resume", str(out)) if resume else (*kind.words, "--out", str(out))
        shared = [sys.executable, "-m", "othink_jax", kind.method, *place]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(kind.devices),
        }
        # Files, not pipes: nobody reads while the processes write.
        self._files = [tempfile.TemporaryFile("w+") for _ in range(kind.processes)]  # noqa: SIM115
        self.processes = [
            subprocess.Popen(
                [*shared, *words],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
            for words, file in zip(_addresses(kind.processes), self._files, strict=True)
        ]

    def wait(self, timeout_s: float = 600.0) -> list[int]:
        """Wait for all processes; returns their exit codes."""
        return [process.wait(timeout_s) for process in self.processes]

    @property
    def said(self) -> str:
        """The stderr of all processes."""
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
        return "\n".join(texts)


def _addresses(count: int) -> list[tuple[str, ...]]:
    if count == 1:
        return [()]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    # A process may be killed before it has connected to the others.
    meeting = ("--coordinator", address, "--connect-timeout-s", "45")
    there = ("--num-processes", str(count), "--process-id")
    return [(*meeting, *there, str(number)) for number in range(count)]


def is_begun(out: Path) -> bool:
    """Whether the run can be resumed."""
    return (out / "config.json").is_file()


def finish(kind: Kind, out: Path) -> tuple[list[int], str]:
    """Start or resume a run and wait for its end; returns exit codes and stderr."""
    attempt = Attempt(kind, out, resume=is_begun(out))
    return attempt.wait(), attempt.said


def outcome_of(out: Path) -> tuple[Any, ...]:
    """Reproducible content of a finished run: metric rows without times, and every parameter."""
    rows = [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in _TIMES and not name.startswith("seconds")
        }
        for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    leaves = jax.tree.leaves(load(out, on_host=True).params)
    return rows, [np.asarray(leaf).tobytes() for leaf in leaves]


def has_traceback(said: str) -> bool:
    return "Traceback" in said


def last_line(said: str) -> str:
    """The last line that is not blank, cut to 300 characters."""
    lines: Sequence[str] = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"
