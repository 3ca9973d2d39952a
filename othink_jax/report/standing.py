"""Status of a run: finished, in progress, or stopped."""

import dataclasses
import datetime
import shlex
from pathlib import Path

from othink_jax.config import RUN_LOCK, RunRecord
from othink_jax.files import is_locked


def moment(iso: str) -> str:
    """An ISO time in readable form; any other text as it is."""
    try:
        found = datetime.datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{found.day} {found:%B %Y, %H:%M} {found.tzname() or ''}".strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """Status of a run at the time it is read."""

    step: int  # the last recorded step; 0 if there is none
    total: int  # number of steps of the finished run
    is_running: bool | None  # whether a process is running it; None if unknown
    read: str  # ISO time at which it is read
    resume_command: str  # the command that continues it

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.is_running and self.step >= self.total

    @property
    def sentence(self) -> str:
        """Status for the head of a page; the command follows it unless the run is in progress."""
        where = f"step {self.step} of {self.total}"
        if self.is_running:
            return f"In progress: {where}, written at {moment(self.read)}."
        if self.is_running is None:
            return (
                f"Unfinished: {where}, written at {moment(self.read)}. From here it cannot be told"
                " whether a process is at work on it; if none is, go on with"
            )
        return f"Stopped at {where}; go on with"


def is_running(run: Path) -> bool | None:
    """Whether a process is running a run; None if unknown.

    Call it before reading the metrics. If the run ends in between, they then include its last step,
    and no step is missing from a run that is reported as stopped.
    """
    return is_locked(run / RUN_LOCK)


def standing_of(run: Path, record: RunRecord, *, step: int, is_running: bool | None) -> Standing:
    """Status of a run now, from its record, its last step and the result of `is_running`."""
    return Standing(
        step=step,
        total=record.last_step,
        is_running=is_running,
        read=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        resume_command=f"othink-jax {record.kind} --resume {shlex.quote(str(run))}",
    )
