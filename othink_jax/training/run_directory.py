"""A run is a directory: what is in it, written so that an interruption loses nothing.

config.json      settings, versions, device
reference/       the model it started from; of a GRPO run, also the reference of the KL term
checkpoints/     training states
metrics.jsonl    one object a step
skipped.txt      the examples that cannot be used and why, if there are any; as of each checkpoint
samples/         of a GRPO run: completions with their images, every so often
evaluations/     results of `othink-jax evaluate`
"""

import datetime
import importlib.metadata
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from PIL import Image

from othink_jax.checkpoint.orbax_model import RUN_REFERENCE
from othink_jax.config import RUN_CHECKPOINTS, RunRecord, TrainingConfig, read_run, to_dict
from othink_jax.errors import UserError
from othink_jax.files import check_output_directory, write_atomically

_C = TypeVar("_C", bound=TrainingConfig)
_VERSIONS_OF = ("othink_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Versions and device, for the record."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS_OF},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


class RunDirectory:
    """Paths and files of one run. Of its processes, only one writes."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.reference = path / RUN_REFERENCE
        self.checkpoints = path / RUN_CHECKPOINTS
        self._config = path / "config.json"
        self._metrics = path / "metrics.jsonl"

    def check_free(self) -> None:
        """Raise UserError if a new run cannot begin here; evaluations may be here already."""
        check_output_directory(self.path)
        if not self.path.exists():
            return
        if self._config.is_file():
            raise UserError(
                f"{self.path} holds a run already: give another --out, or continue it with --resume"
            )
        if any(file.name != "evaluations" for file in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty: give another --out, or remove it first")

    def begin(self, config: TrainingConfig, total_steps: int) -> None:
        """Make it a run with these settings. Before this, there is nothing to resume."""
        record = RunRecord(
            kind=config.kind,
            config=config,
            total_steps=total_steps,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **environment(),
        )
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        write_atomically(self._config, json.dumps(to_dict(record), indent=2, ensure_ascii=False))

    def settings(self, cls: type[_C]) -> _C:
        """Those of the run that is here; UserError if there is none, or one of another method."""
        config = read_run(self.path).config
        if not isinstance(config, cls):
            raise UserError(
                f"{self.path} is no run of {cls.kind}; it continues with: othink-jax {config.kind}"
                f" --resume {shlex.quote(str(self.path))}"
            )
        if not self.reference.is_dir():
            raise UserError(f"{self.path} is not a run directory: there is no run to continue")
        return config

    def keep_metrics_until(self, step: int) -> None:
        """Drop the rows after `step`, and a last row that an interruption cut short."""
        if not self._writes:
            return
        kept = []
        if self._metrics.exists():
            for line in self._metrics.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
        write_atomically(self._metrics, "".join(kept))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def list_skipped(self, messages: Iterable[str]) -> None:
        """Add to the list of examples that cannot be used; each stands there once."""
        path = self.path / "skipped.txt"
        before = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        lines = dict.fromkeys([*before, *(" ".join(message.split()) for message in messages)])
        if self._writes and len(lines) > len(before):
            write_atomically(path, "".join(line + "\n" for line in lines))

    def write_samples(
        self, step: int, rows: Sequence[dict[str, Any]], images: Sequence[Sequence[Image.Image]]
    ) -> None:
        """Store sample completions of one step; `images` are those of each row's prompt."""
        if not self._writes:
            return
        for number, (row, pictures) in enumerate(zip(rows, images, strict=True)):
            row["images"] = [f"step_{step:06d}_{number}_{i}.png" for i in range(len(pictures))]
            for name, picture in zip(row["images"], pictures, strict=True):
                picture.save(self.path / "samples" / name)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.path / "samples" / f"step_{step:06d}.jsonl", text)
