"""Running cells, each in its own process, one per core if they are small."""

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.lab.cells import Cell, evaluation_name, is_done
from othink_jax.errors import UserError


def run_all(cells: Sequence[Cell], root: Path, *, one_a_core: bool = True) -> None:
    """Finish all cells under `root`. A repeated call resumes where an interrupted one stopped.

    Args:
      cells: of an experiment; the tests of duplicate cells are merged.
      root: directory of the cells.
      one_a_core: run cells in parallel, one core each: the fastest way for small models on a CPU.
        Otherwise run them one after the other, each with all devices.

    Raises:
      UserError: cells failed; the message names their logs. All other cells are finished.
    """
    todo: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    pending = {cell.name: cell for cell in _merged(cells) if not is_done(root, cell)}
    for cell in pending.values():
        todo.put(cell)
    failed: list[Path] = []
    processes = _Processes()
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, transient=True, disable=not pending)
    with bars as progress, _terminated_as_interrupted():
        bar = progress.add_task("cells", total=len(pending))

        def work(core: int | None) -> None:
            while True:
                try:
                    cell = todo.get_nowait()
                except queue.Empty:
                    return
                log = root / "logs" / f"{cell.name}.log"
                if not processes.run(cell, root, core, log):
                    failed.append(log)
                progress.advance(bar)

        cores = _cores() if one_a_core else [None]
        with ThreadPoolExecutor(len(cores)) as pool:
            workers = [pool.submit(work, core) for core in cores]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                processes.stop()
                raise
    if failed:
        raise UserError("cells failed, see " + ", ".join(map(str, failed)))


def _merged(cells: Sequence[Cell]) -> list[Cell]:
    """Each model once, with the tests of all its duplicates."""
    found: dict[str, Cell] = {}
    for cell in cells:
        before = found.get(cell.name, cell)
        tests = {evaluation_name(test): test for test in before.tests + cell.tests}
        found[cell.name] = dataclasses.replace(
            cell,
            tests=tuple(tests.values()),
            every_checkpoint=before.every_checkpoint or cell.every_checkpoint,
        )
    return list(found.values())


def _cores() -> list[int | None]:
    return [*sorted(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else [None]


class _Processes:
    """Processes of the cells, each in its own session: only `stop` signals it, and only once."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, cell: Cell, root: Path, core: int | None, log: Path) -> bool:
        """Run a cell; returns whether it succeeded."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if core is not None:
            environment["JAX_PLATFORMS"] = "cpu"  # one core each, even with an accelerator
        with log.open("a", encoding="utf-8") as file:
            with self._lock:
                if self._stopped:
                    return False
                process = subprocess.Popen(
                    _command(root, core),
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=file,
                    text=True,
                    env=environment,
                    start_new_session=True,
                )
                self._running.add(process)
            process.communicate(cell.to_json())
        with self._lock:
            self._running.remove(process)
        return process.returncode == 0

    def stop(self) -> None:
        """Terminate all processes, where training saves first, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _command(root: Path, core: int | None) -> list[str]:
    where = [str(root)] if core is None else [str(root), str(core)]
    return [sys.executable, "-m", "experiments.lab.cell_process", *where]


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
