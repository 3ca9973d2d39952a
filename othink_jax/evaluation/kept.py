"""Storage of an unfinished evaluation's answers, from which it is continued."""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import jax
import numpy as np

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import EvaluateConfig, to_dict
from othink_jax.errors import UserError
from othink_jax.files import GrowingFile, lock_of
from othink_jax.training.run_directory import environment

PARTIAL = "predictions.partial.jsonl"

# Settings that no answer depends on. The model is identified by its weights, not by its path, and
# the devices by the environment.
_MAY_CHANGE = ("model", "out", "stage", "by", "lm_eval_json", "reward", "parallel")
# Settings that say which questions are answered, but not how. A stored answer is identified by its
# question's digest.
_MAY_CHANGE_OF_DATA = ("max_prompt_tokens", "answer_tag", "answer_pattern")

# Keys of an answer, and of each completion. A single completion's keys are in the answer itself.
_ANSWER = {"number", "digest", "seconds"}
_COMPLETION = {"model_output", "tokens", "finished"}

_log = logging.getLogger(__name__)


class Kept:
    """The file of an evaluation's answers so far; as a context manager, it locks the file.

    The first line says what is evaluated, and each further one holds an answer. Every line has a
    checksum. The file is created with the first answer. A truncated last line is dropped.
    """

    answers: dict[int, dict[str, Any]]  # by question number; of earlier attempts and this one

    def __init__(self, directory: Path, begun: Mapping[str, Any]) -> None:
        """Args:
        directory: directory of the evaluation's result.
        begun: description of the evaluation, see `what_is_evaluated`.
        """
        self.path = directory / PARTIAL
        self.answers = {}
        self._begun = dict(begun)
        self._lock = _lock_in(directory)
        self._file: GrowingFile | None = None
        self._earlier = 0.0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        """Load the stored answers, if there are any.

        Raises:
          UserError: they are of another evaluation, the file is damaged, or another evaluation is
            writing it.
        """
        if self.path.exists():
            try:
                self._open()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def seconds(self) -> float:
        """Seconds of this attempt so far, plus earlier attempts up to their last answers."""
        return self._earlier + time.perf_counter() - self._start

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Store answers: on disk when this returns, in a bucket within half a minute.

        Args:
          answers: see `answer`.

        Raises:
          UserError: another evaluation has begun to write here.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        rows = [{**answer, "seconds": round(self.seconds, 2)} for answer in answers]
        self._write(rows)
        self.answers |= {row["number"]: row for row in rows}

    def completions(self, number: int) -> list[dict[str, Any]]:
        """The stored completions of a question, as `answer` takes them."""
        kept = self.answers[number]
        completions: list[dict[str, Any]] = kept.get("samples", [kept])
        return [{name: one[name] for name in _COMPLETION} for one in completions]

    def holds(self, number: int, digest: str) -> bool:
        """Whether the answer to a question is stored.

        Raises:
          UserError: the stored answer is to another question.
        """
        answer = self.answers.get(number)
        if answer is not None and answer["digest"] != digest:
            raise UserError(
                f"{self.path.parent} holds an answer to another question number {number} than the"
                f" data has now: give another --out, or remove {self.path} to begin anew"
            )
        return answer is not None

    def discard(self) -> None:
        """Remove the file: the evaluation has ended."""
        self._file = None
        self.path.unlink(missing_ok=True)
        self._close()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _open(self) -> None:
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(f"another evaluation is writing to {self.path.parent}") from None
        self._file = GrowingFile(self.path)
        whole, newline, cut = self._file.read().rpartition(b"\n")
        if cut:
            self._file.replace(whole + newline)
        if not newline:
            self._write([{"begun": self._begun}])
            return
        first, *rows = (self._object(line, n) for n, line in enumerate(whole.split(b"\n"), 1))
        self._check(first["begun"])
        self.answers |= {row["number"]: row for row in rows}
        self._earlier = rows[-1]["seconds"] if rows else 0.0

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            stored = json.loads(line)
            row: dict[str, Any] = stored["row"]
            whole = stored["crc32"] == _checksum(json.dumps(row))
            whole = whole and ("begun" in row if number == 1 else _is_answer(row))
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{self.path}, line {number} is damaged: remove the file to begin anew")
        return row

    def _check(self, begun: Any) -> None:
        """Raise UserError if the stored answers are of another evaluation."""
        anew = f"give another --out, or remove {self.path} to begin anew"
        if not isinstance(begun, dict) or begun.keys() != self._begun.keys():
            raise UserError(f"{self.path} is not of an evaluation: {anew}")
        # A file that does not say how many samples there are has one per question.
        before = {"samples": 1} | dict(flat(begun["settings"]))
        now = dict(flat(self._begun["settings"]))
        for name in before | now:
            if before.get(name) != now.get(name):
                raise UserError(
                    f"{self.path.parent} holds answers made with {name} = {before.get(name)}, and"
                    f" not {now.get(name)}: {anew}"
                )
        for name in ("model", "examples"):
            if begun[name] != self._begun[name]:
                what = {"model": "another model", "examples": "other data"}[name]
                raise UserError(f"{self.path.parent} holds answers of {what}: {anew}")
        if begun["environment"] != self._begun["environment"]:
            _log.warning(
                "the answers in %s were begun with %s and go on with %s: last digits may differ",
                self.path,
                begun["environment"],
                self._begun["environment"],
            )

    def _write(self, rows: Any) -> None:
        assert self._file is not None
        # ASCII: a text that is no valid Unicode is stored like any other.
        texts = map(json.dumps, rows)
        lines = (f'{{"crc32": {_checksum(text)}, "row": {text}}}\n' for text in texts)
        self._file.append("".join(lines).encode("ascii"))

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._file = None
        self._lock.release()


def discard_kept(directory: Path) -> None:
    """Remove the file of stored answers of an evaluation that has ended, if there is one."""
    (directory / PARTIAL).unlink(missing_ok=True)
    Path(_lock_in(directory).lock_file).unlink(missing_ok=True)


def _lock_in(directory: Path) -> filelock.BaseFileLock:
    return lock_of(directory / ".predictions.lock")


def answer(number: int, digest: str, completions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A question's answer as it is stored.

    Args:
      number, digest: of the question.
      completions: at least one, each with these fields of a `Prediction`: `model_output`, `tokens`
        and `finished`.
    """
    held = completions[0] if len(completions) == 1 else {"samples": completions}
    return {"number": number, "digest": digest, **held}


def _is_answer(row: Mapping[str, Any]) -> bool:
    completions = row.get("samples", [row])
    return row.keys() >= _ANSWER and all(one.keys() >= _COMPLETION for one in completions)


def what_is_evaluated(
    config: EvaluateConfig, checkpoint: Checkpoint, examples: int
) -> dict[str, Any]:
    """Everything the answers depend on except the questions themselves, as a JSON object."""
    settings = {name: value for name, value in to_dict(config).items() if name not in _MAY_CHANGE}
    for name in _MAY_CHANGE_OF_DATA:
        del settings["data"][name]
    return {
        "settings": settings,
        "model": _digest(checkpoint),
        "examples": examples,
        "environment": environment(),
    }


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of a model: configuration, EOS and never-sampled tokens, weights."""
    processor = checkpoint.processor
    told = (checkpoint.config, processor.eos_token_ids, processor.never_sampled)
    made = hashlib.sha256(repr(told).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint.params):
        array = np.asarray(leaf)
        made.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        made.update(array.tobytes())
    return made.hexdigest()


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode("ascii"))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
