"""Event files of TensorBoard: read back with its own format, and what a full disk does to them."""

import errno
import os

import pytest
from tensorboardX.proto.event_pb2 import Event

from othink_jax.training.events import EventFile


def events_of(content: bytes) -> list[Event]:
    """Records are a length (8 bytes), its checksum (4), the event, and its checksum (4)."""
    events = []
    while content:
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_rows_are_on_disk_at_once(tmp_path):
    events = EventFile.of_now(tmp_path / "tensorboard")
    events.add({"reward": 0.5, "kl": 0.25}, step=3)
    (path,) = (tmp_path / "tensorboard").iterdir()
    first, row = events_of(path.read_bytes())
    assert (first.file_version, row.step) == ("brain.Event:2", 3)
    assert {value.tag: value.simple_value for value in row.summary.value} == {
        "reward": 0.5,
        "kl": 0.25,
    }
    events.close()


def test_a_full_disk_is_an_error_and_no_wait(tmp_path):
    (tmp_path / "events").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        EventFile(tmp_path / "events")
