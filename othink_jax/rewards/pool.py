"""Grading many completions that a model wrote, within a limit of time and memory for each.

Most verdicts need no algebra and are given at once in the calling process. The rest go to worker
processes, for a model can write expressions that no grader finishes: towers of powers, roots nested
a thousand times. A worker that exceeds its time is killed and replaced.
"""

import concurrent.futures
import logging
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

import pebble

from othink_jax.rewards.format import format_reward
from othink_jax.rewards.verdict import (
    Grade,
    Grader,
    Task,
    check_grader,
    quick_verdict,
    symbolic_verdict,
)

# What a worker may allocate beyond what it has at its start; an ordinary answer takes some 10 MB.
_HEADROOM_BYTES = 1 << 30


class GradingPool:
    """Grades completions, in worker processes where it must; a context manager.

    Workers start when they are first needed, and stop when the context is left. Any thread may call
    `grade_all`, several at a time too.

    As with all of multiprocessing, a script that uses a pool guards its entry point by
    `if __name__ == "__main__":`, for workers are spawned: a fork of a process that runs JAX's
    threads can deadlock.
    """

    def __init__(
        self,
        grader: Grader = "strict",
        *,
        task: Task | None = None,
        timeout_s: float = 5.0,
        workers: int = 2,
    ) -> None:
        """Prepare a pool.

        Args:
          grader: `strict`, or `r1v` for R1-V's published verdicts.
          task: see `grade`.
          timeout_s: wall-clock limit for one completion in a worker, seconds.
          workers: processes at most.

        Raises:
          ValueError: a name is unknown or a number is not positive.
        """
        check_grader(grader, task)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {timeout_s}")
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        self._grader: Grader = grader
        self._task: Task | None = task
        self._timeout_s = timeout_s
        self._workers = workers
        self._pool: pebble.ProcessPool | None = None
        self._lock = threading.Lock()
        self._left = False

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._left = True
            self._stop()

    def grade_all(self, texts: Sequence[str], golds: Sequence[str]) -> list[Grade]:
        """Grade each completion against its ground truth.

        Args:
          texts: whole completions.
          golds: as many ground truths.

        Returns:
          Grades in the order of the texts. What cannot be graded in time or memory, or crashes its
          worker, has accuracy 0 and is marked `ungradable`. It comes within
          ceil(n / workers) * (timeout_s + the start of a worker, some seconds), where n counts the
          texts that need algebra: a batch that hangs as a whole takes that long, and none longer.

        Raises:
          ValueError: the lengths differ.
          RuntimeError: no worker can be started, or one is needed after the context was left.
        """
        verdicts = [
            quick_verdict(text, gold, self._grader, self._task)
            for text, gold in zip(texts, golds, strict=True)
        ]
        left_open = [i for i, verdict in enumerate(verdicts) if verdict is None]
        symbolic = self._verdicts([(texts[i], golds[i]) for i in left_open])
        for i, verdict in zip(left_open, symbolic, strict=True):
            verdicts[i] = verdict
        return [
            Grade(float(verdict or 0), format_reward(text), ungradable=verdict is None)
            for text, verdict in zip(texts, verdicts, strict=True)
        ]

    def _verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Verdicts of the workers on (text, gold); None for what cannot be graded."""
        if not pairs:
            return []
        workers = self._live_pool()
        futures: list[pebble.ProcessFuture] = []
        verdicts: list[bool | None] = []
        try:
            for pair in pairs:
                futures.append(self._schedule(workers, pair))
            for future in futures:
                verdicts.append(_wait(workers, future))
        except _PoolBroke:
            # A worker died before it could say what it was working on, and took the pool's other
            # tasks with it. Alone, a task can only harm itself.
            verdicts += [self._verdict_alone(pair) for pair in pairs[len(verdicts) :]]
        finally:
            # After Ctrl-C, leave nothing in the queue for a caller who goes on with this pool.
            for future in futures:
                future.cancel()
        return verdicts

    def _verdict_alone(self, pair: tuple[str, str]) -> bool | None:
        workers = self._live_pool()
        try:
            return _wait(workers, self._schedule(workers, pair))
        except _PoolBroke:
            return None

    def _schedule(self, workers: pebble.ProcessPool, pair: tuple[str, str]) -> pebble.ProcessFuture:
        try:
            return workers.schedule(
                symbolic_verdict, args=(*pair, self._grader), timeout=self._timeout_s
            )
        except RuntimeError as error:  # what pebble raises on a pool that is no longer active
            raise _PoolBroke from error

    def _live_pool(self) -> pebble.ProcessPool:
        """The pool of workers, started if there is none or if it broke."""
        with self._lock:
            # Another thread may still be grading: nobody would stop workers that it starts now.
            if self._left:
                raise RuntimeError("the grading pool was left; grade inside its `with` block")
            if self._pool is None or not self._pool.active:
                self._stop()
                self._pool = pebble.ProcessPool(
                    max_workers=self._workers,
                    initializer=_prepare_worker,
                    context=multiprocessing.get_context("spawn"),
                )
                # Without this probe, workers that cannot start would look like hostile completions.
                try:
                    ready = _wait(self._pool, self._pool.schedule(_is_ready))
                except _PoolBroke:
                    ready = None
                if not ready:
                    raise RuntimeError(
                        "no grading worker can be started; is the script's entry point guarded by"
                        ' `if __name__ == "__main__":`, and is math-verify installed?'
                    )
            return self._pool

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


class _PoolBroke(Exception):
    """A pool of workers has ended; tasks that it still held have no result."""


def _wait(workers: pebble.ProcessPool, future: pebble.ProcessFuture) -> bool | None:
    """Result of a task; None if it ran out of time or memory, or its worker crashed."""
    # A pool that breaks forgets the tasks it has not yet handed out, so their futures never end.
    while not future.done():
        if not workers.active:
            raise _PoolBroke
        concurrent.futures.wait([future], timeout=0.5)
    # Asked for, not raised: math-verify's TimeoutException is a BaseException, and a SystemExit or
    # KeyboardInterrupt out of a worker would end the training run.
    try:
        error = future.exception()
    except concurrent.futures.CancelledError as cancelled:
        raise _PoolBroke from cancelled
    if isinstance(error, BrokenProcessPool):
        raise _PoolBroke from error
    if error is not None:
        return None
    verdict: bool | None = future.result()
    return verdict


def _is_ready() -> bool:
    return True


def _prepare_worker() -> None:
    """Load the grader before any time is taken, then limit what this process may allocate."""
    import math_verify  # noqa: F401

    # The default action ends a worker at once, even amid one long operation on large integers, when
    # no Python handler would run.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # math-verify builds its parser on first use, a hundred times the cost of an ordinary verdict.
    symbolic_verdict("<answer>\\sqrt{4}</answer>", "2", "strict")
    if sys.platform == "linux":
        import resource

        # Above what is mapped already: a script whose worker imports jax with it maps gigabytes.
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + _HEADROOM_BYTES
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
