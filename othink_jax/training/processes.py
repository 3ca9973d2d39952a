"""Multi-process runs: connecting the processes, exchanging small values, ending together.

Every process runs the same program. Each loads its part of the data and grades its own completions;
the first one writes. If one of them fails or dies, the others end within a minute.
"""

import atexit
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from othink_jax.config import ProcessConfig
from othink_jax.errors import UserError, first_line
from othink_jax.training.supervisor import ADVICE

_T = TypeVar("_T")

_BEAT_S = 2.0  # between two heartbeats of a process
_SILENT_S = 30.0  # a process without a heartbeat for this long has died
# JAX's own heartbeat timeout, at which it aborts a process. Ours fires first and says what to do.
_HEARTBEAT_S = 2 * int(_SILENT_S)
_FAREWELL_S = 10.0  # how long process 0 waits at its exit for the others to end
_SMALLEST_TEXT = 4096  # minimum size of an exchanged value, bytes; nearly all values fit
# Errors that JAX's collectives raise if another process is gone.
_GONE = re.compile("Gloo|[Cc]onnection (reset|closed)|coordination service|heartbeat|UNAVAILABLE")


def initialize(config: ProcessConfig) -> None:
    """Connect to the other processes, if any. Call it before JAX is asked for its devices.

    Raises:
      UserError: the processes cannot connect.
    """
    if not config.several:
        return
    settings: dict[str, Any] = {
        "heartbeat_timeout_seconds": _HEARTBEAT_S,
        "initialization_timeout": config.connect_timeout_s,
    }
    if config.coordinator is not None:
        settings |= {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
        }
    try:
        jax.distributed.initialize(**settings)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this run do not find each other: {first_line(error)}"
        ) from error


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def all_gather(value: _T) -> list[_T]:
    """All-gather a JSON value: one per process, in process order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    # Each size compiles another program; powers of two keep them few.
    padded = np.zeros(max(_SMALLEST_TEXT, 1 << int(lengths.max() - 1).bit_length()), np.uint8)
    padded[: len(text)] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True)
    ]


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name.

    Raises:
      RuntimeError: another process is at the barrier of another name.
    """
    others = set(all_gather(name)) - {name}
    if others:
        raise RuntimeError(f"at the barrier {name!r} another process is at {others.pop()!r}")


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Context of all joint work of the processes: if one fails or dies, the others end too.

    Raises:
      UserError: another process is gone; it replaces the error that JAX raises.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
        barrier("done")
    except BaseException as error:
        watch.end_at_exit(130 if isinstance(error, KeyboardInterrupt) else 1)
        if isinstance(error, ValueError | RuntimeError) and _GONE.search(str(error)):
            raise UserError(f"another process of this run is gone{ADVICE}") from error
        raise
    finally:
        watch.stop()


class _Watch(threading.Thread):
    """Thread that sends heartbeats of this process and checks those of the others."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        from jax._src import distributed  # the key-value store of a run has no public API

        self._store: Any = distributed.global_state.client
        self._me = jax.process_index()
        self._others = [i for i in range(jax.process_count()) if i != self._me]
        self._parent = os.getppid()
        self._stopped = threading.Event()
        self._last_word = threading.Lock()  # held by the thread that reports why this process ends

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def run(self) -> None:
        last: dict[int, tuple[str | None, float]] = {
            i: (None, time.monotonic()) for i in self._others
        }
        beat = 0
        while not self._stopped.wait(_BEAT_S):
            beat += 1
            try:
                self._tell(str(beat))
                now = {i: self._told_by(i) for i in self._others}
            except Exception:  # process 0 hosts the store, which is gone with it
                self._end("process 0 has died", told=True)
                return
            if os.getppid() != self._parent:
                self._end("its parent process has died")
            for i, value in now.items():
                if value == "ended":
                    self._end(f"process {i} has ended")
                elif value != last[i][0]:
                    last[i] = value, time.monotonic()
                elif time.monotonic() - last[i][1] > _SILENT_S:
                    self._end(f"process {i} has died")

    def _tell(self, value: str) -> None:
        self._store.key_value_set(f"othink_jax/{self._me}", value, allow_overwrite=True)

    def _told_by(self, process: int) -> str | None:
        try:
            return self._store.key_value_try_get(f"othink_jax/{process}")
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _end(self, reason: str, *, told: bool = False) -> None:
        """End this process at once. `told` means that there is nobody left to tell."""
        if self._stopped.is_set() or not self._last_word.acquire(blocking=False):
            return  # the main thread is ending this process already, and reports why
        line = f"othink-jax: this process ends, for {reason}; the run goes on from its last"
        os.write(2, f"\n{line} checkpoint with --resume\n".encode())
        if not told:
            with contextlib.suppress(Exception):
                self._tell("ended")
        os._exit(1)

    def end_at_exit(self, code: int) -> None:
        """Tell the others that this process ends, and exit without JAX's wait for their shutdown.

        The exit happens in `atexit`, after this process has printed its own messages.
        """
        self._last_word.acquire()  # blocks forever if the watch is ending the process
        self.stop()
        with contextlib.suppress(Exception):
            self._tell("ended")
        atexit.register(self._leave, code)

    def _leave(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # Process 0 hosts the store; its end aborts every process that is still running.
        end = time.monotonic() + (_FAREWELL_S if self._me == 0 else 0.0)
        with contextlib.suppress(Exception):
            while time.monotonic() < end and any(self._told_by(i) != "ended" for i in self._others):
                time.sleep(0.1)
            time.sleep(0.5)
        os._exit(code)
