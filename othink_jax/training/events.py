"""Event files for TensorBoard, written row by row in the thread of the run."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """One file of scalars; needs the extra `tensorboard`.

    tensorboardX's own `SummaryWriter` writes from a thread, and when that has died of a full disk
    the next eleven values wait for it, for ever. Here an error is raised where it happens.
    """

    def __init__(self, path: Path) -> None:
        """Begin a file; raises ImportError without tensorboardX, OSError as `open` does."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        self._event = Event
        self._records = RecordWriter(str(path))
        self._write(file_version="brain.Event:2")

    @classmethod
    def of_now(cls, directory: Path) -> "EventFile":
        """A file of the name that TensorBoard looks for, in a directory that need not be there."""
        directory.mkdir(parents=True, exist_ok=True)
        return cls(directory / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Write the values of a step, by name; raises OSError on a full disk."""
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._write(step=step, summary={"value": values})

    def close(self) -> None:
        """End the file; what `add` has taken is on disk already."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()
