"""How far a run is: finished, at work, or stopped."""

import dataclasses
import datetime
import shlex
from pathlib import Path

from othink_jax.config import RUN_LOCK, RunRecord
from othink_jax.files import is_locked


def moment(iso: str) -> str:
    """A time of a record as a reader writes it; as it stands if it is no ISO time."""
    try:
        found = datetime.datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{found.day} {found:%B %Y, %H:%M} {found.tzname() or ''}".strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands when it is read."""

    step: int  # the last one that is recorded; 0 if none is
    total: int  # steps that it will have
    at_work: bool | None  # whether a process makes its steps; None where that cannot be told
    read: str  # an ISO time
    go_on: str  # the command that continues it

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.at_work and self.step >= self.total

    @property
    def sentence(self) -> str:
        """For the head of a page; the command follows it, but where a process is at work."""
        where = f"step {self.step} of {self.total}"
        if self.at_work:
            return f"In progress: {where}, written at {moment(self.read)}."
        if self.at_work is None:
            return (
                f"Unfinished: {where}, written at {moment(self.read)}. From here it cannot be told"
                " whether a process is at work on it; if none is, go on with"
            )
        return f"Stopped at {where}; go on with"


def at_work(run: Path) -> bool | None:
    """Whether a process makes steps of a run; None where that cannot be told.

    To be asked before its metrics are read: of a run that ends in between, the last step is then
    there, and no step is missing from one that is said to have stopped.
    """
    return is_locked(run / RUN_LOCK)


def standing_of(run: Path, record: RunRecord, *, step: int, at_work: bool | None) -> Standing:
    """Where a run stands now, by its record, its last step and what `at_work` says."""
    return Standing(
        step=step,
        total=record.last_step,
        at_work=at_work,
        read=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        go_on=f"othink-jax {record.kind} --resume {shlex.quote(str(run))}",
    )
