"""Cells, each in a process of its own, one a core if they are small; what is done stays done."""

import dataclasses
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.lab.cells import Cell, evaluation_name, is_done
from othink_jax.errors import UserError


def run_all(cells: Sequence[Cell], root: Path, *, one_a_core: bool = True) -> None:
    """Finish all cells, under `root`. An interrupted call, repeated, goes on where it stopped.

    Args:
      cells: of an experiment; one that is asked for twice gets all tests that are asked of it.
      root: where they lie.
      one_a_core: side by side, a core each: the fastest way for small models on a CPU. Otherwise
        one after the other, each with all devices.

    Raises:
      UserError: cells failed; the others are finished. It names their logs.
    """
    todo: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    pending = {cell.name: cell for cell in _merged(cells) if not is_done(root, cell)}
    for cell in pending.values():
        todo.put(cell)
    failed: list[Path] = []
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("cells", total=len(pending))

        def work(core: int | None) -> None:
            while True:
                try:
                    cell = todo.get_nowait()
                except queue.Empty:
                    return
                log = root / "logs" / f"{cell.name}.log"
                if not _run_in_process(cell, root, core, log):
                    failed.append(log)
                progress.advance(bar)

        cores = _cores() if one_a_core else [None]
        threads = [threading.Thread(target=work, args=(core,)) for core in cores]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            while not todo.empty():
                todo.get_nowait()
            for thread in threads:  # the processes have been told too: they save and stop
                thread.join()
            raise
    if failed:
        raise UserError("cells failed, see " + ", ".join(map(str, failed)))


def _merged(cells: Sequence[Cell]) -> list[Cell]:
    """Each model once, with all tests that are asked of it."""
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


def _run_in_process(cell: Cell, root: Path, core: int | None, log: Path) -> bool:
    """Whether it went well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.lab.cell_process", str(root)]
    environment = dict(os.environ)
    if core is not None:
        command.append(str(core))
        environment["JAX_PLATFORMS"] = "cpu"  # a core each, though there may be an accelerator
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            input=cell.to_json(),
            text=True,
            stdout=file,
            stderr=file,
            env=environment,
            check=False,
        )
    return done.returncode == 0
