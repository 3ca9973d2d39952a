"""The directory of a run, written so that an interruption loses nothing.

config.json      settings, versions, device, the code that made it; SHA256SUMS has its checksum
reference/       initial model; of a GRPO run, also the reference policy of the KL term
checkpoints/     training states
damaged/         checkpoints that were unreadable when the run was resumed, if any
metrics.jsonl    one JSON object per step
skipped.txt      examples that cannot be used and why, if any; updated at each checkpoint
failed_rewards.txt  reasons why reward functions had no value, if any
samples/         of a GRPO run: completions with their images, every `sample_every` steps
tensorboard/     event files, if the extra `tensorboard` is installed
wandb_id.txt     id of its Weights & Biases run, if any
evaluations/     results of `othink-jax evaluate`
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from othink_jax.config import (
    RUN_BEGINNING,
    RUN_CHECKPOINTS,
    RUN_LOCK,
    RUN_REFERENCE,
    RunRecord,
    TrainingConfig,
    read_run,
    to_dict,
)
from othink_jax.digests import SUMS, write_sums
from othink_jax.errors import UserError
from othink_jax.files import (
    PROBE,
    GrowingFile,
    check_output_directory,
    lock_of,
    remove,
    write_atomically,
)
from othink_jax.identity import code_name, source_digest
from othink_jax.training.samples import Samples

_LOCK_WAIT_S = 0.5  # a process that only checks whether the lock is held releases it at once
_FAILED = "failed_rewards.txt"
_SEEN_S = 45.0  # time that a shared file system may take to show a file to another machine
_NO_SOURCES: Mapping[str, str] = {}
_VERSIONS_OF = ("othink_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Versions and device, for the run record."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS_OF},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


class RunDirectory:
    """Paths and files of one run. Only one of its processes writes."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.reference = path / RUN_REFERENCE
        self.checkpoints = path / RUN_CHECKPOINTS
        self._config = path / "config.json"
        self._metrics = GrowingFile(path / "metrics.jsonl")

    def check_free(self) -> None:
        """Raise UserError if a new run cannot begin here.

        Evaluations may be here already, and leftovers of a run that was stopped while it began.
        """
        check_output_directory(self.path)
        if not self.path.exists():
            return
        if self._config.is_file():
            raise UserError(
                f"{self.path} holds a run already: give another --out, or continue it with --resume"
            )
        names = {file.name for file in self.path.iterdir()} - {"evaluations", RUN_LOCK, PROBE}
        if names and RUN_BEGINNING not in names:
            raise UserError(f"{self.path} is not empty: give another --out, or remove it first")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run, so that no other process begins or continues it; makes the directory.

        Raises:
          UserError: another process holds the lock.
        """
        if not self._writes:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = lock_of(self.path / RUN_LOCK)
        try:
            lock.acquire(blocking=True, timeout=_LOCK_WAIT_S)
        except filelock.Timeout:
            raise UserError(
                f"another process is at work on the run in {self.path}: wait until it ends"
            ) from None
        try:
            yield
        finally:
            try:
                self._metrics.flush()
            finally:
                lock.release()

    @contextlib.contextmanager
    def beginning(
        self,
        config: TrainingConfig,
        total_steps: int,
        trainer: type[Any],
        sources: Mapping[str, str] = _NO_SOURCES,
    ) -> Iterator[None]:
        """Context in which a new run directory is filled; at its end the run record is written.

        Until then there is nothing to resume. If the process is killed, the same command starts
        over. A process that does not write does nothing here.

        Args:
          config: settings of the run.
          total_steps: total number of steps.
          trainer: trainer class of the run.
          sources: digests of the user's own functions, by name.
        """
        if not self._writes:
            yield
            return
        self.check_free()
        (self.path / RUN_BEGINNING).write_bytes(b"")
        for name in (RUN_REFERENCE, f".{RUN_REFERENCE}.unfinished"):  # left by a killed run
            remove(self.path / name)
        yield
        self.begin(config, total_steps, trainer, sources)
        (self.path / RUN_BEGINNING).unlink()

    def sees_beginning(self) -> bool:
        """Whether this process sees the marker file that the writer made in `beginning`."""
        end = time.monotonic() + _SEEN_S
        while not (self.path / RUN_BEGINNING).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True

    def begin(
        self,
        config: TrainingConfig,
        total_steps: int,
        trainer: type[Any],
        sources: Mapping[str, str] = _NO_SOURCES,
    ) -> None:
        """Write the record of a new run, whose reference is written already; see `beginning`."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        self.write_record(
            RunRecord(
                kind=config.kind,
                config=config,
                total_steps=total_steps,
                started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                directory=str(Path.cwd()),
                trainer=code_name(trainer),
                trainer_digest=source_digest(trainer),
                sources=dict(sources),
                **environment(),
            )
        )

    def write_record(self, record: RunRecord) -> None:
        """Write config.json, and its checksum."""
        if not self._writes:
            return
        (self.path / SUMS).unlink(missing_ok=True)
        write_atomically(self._config, json.dumps(to_dict(record), indent=2, ensure_ascii=False))
        write_sums(self.path, [self._config])

    def record(self, cls: type[TrainingConfig]) -> RunRecord:
        """The record of the run in this directory.

        Raises:
          UserError: there is no run, or one of another method than that of `cls`, or a damaged one.
        """
        record = read_run(self.path)
        if not isinstance(record.config, cls):
            kind = record.config.kind
            raise UserError(
                f"{self.path} is no run of {cls.kind}; it continues with: othink-jax {kind}"
                f" --resume {shlex.quote(str(self.path))}"
            )
        if not self.reference.is_dir():
            raise UserError(f"{self.path} is not a run directory: there is no run to continue")
        return record

    def metrics_digest(self) -> str:
        """SHA-256 of the current metrics.jsonl; empty in a process that does not write it.

        In a bucket, this also uploads the current rows.
        """
        if not self._writes:
            return ""
        self._metrics.flush()
        return hashlib.sha256(self._metrics.read()).hexdigest()

    def keep_metrics_until(self, step: int) -> str:
        """Drop rows after `step` and incomplete ones; returns the digest of the remaining rows."""
        if not self._writes:
            return ""
        lines = self._metrics.read().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
        self._metrics.replace(b"".join(kept))
        return self.metrics_digest()

    def end_early(self, step: int) -> None:
        """Record that the run has ended after this step."""
        if self._writes:
            self.write_record(dataclasses.replace(read_run(self.path), ended=step))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a step's row of metrics."""
        if self._writes:
            self._metrics.append(f"{json.dumps(row)}\n".encode())

    def list_skipped(self, messages: Iterable[str]) -> None:
        """Add to the list of examples that cannot be used; each is listed once."""
        self._list("skipped.txt", messages)

    def list_failed(self, reasons: Iterable[str]) -> None:
        """Add reasons why reward functions had no value to their list; each is listed once.

        After a hundred reasons, further ones are only counted in the metrics.
        """
        self._list(_FAILED, reasons, limit=100)

    def _list(self, name: str, messages: Iterable[str], limit: int | None = None) -> None:
        messages = list(messages)
        if not messages:
            return
        path = self.path / name
        before = path.read_bytes().decode().split("\n")[:-1] if path.exists() else []
        found = dict.fromkeys([*before, *(" ".join(message.split()) for message in messages)])
        lines = list(found)[:limit]
        if self._writes and len(lines) > len(before):
            write_atomically(path, "".join(line + "\n" for line in lines))

    def write_samples(self, samples: Samples) -> None:
        """Store the sample completions of a step and the images of their prompts."""
        if not self._writes:
            return
        name, lines = f"step_{samples.step:06d}", []
        for number, (row, pictures) in enumerate(zip(samples.rows, samples.images, strict=True)):
            files = [f"{name}_{number}_{i}.png" for i in range(len(pictures))]
            for file_name, picture in zip(files, pictures, strict=True):
                with (self.path / "samples" / file_name).open("wb") as file:
                    picture.save(file, "PNG")
            lines.append(json.dumps(row | {"images": files}, ensure_ascii=False) + "\n")
        write_atomically(self.path / "samples" / f"{name}.jsonl", "".join(lines))


def _step_of(line: bytes) -> float:
    """The step of a row of metrics.jsonl; infinity if the line is not such a row."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
