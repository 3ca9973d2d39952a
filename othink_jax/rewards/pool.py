"""Grading of many model completions, with a limit of time and memory for each.

Most verdicts need no algebra and are given at once in the calling process. The rest go to worker
processes, because a model can write expressions that no grader finishes: towers of powers, roots
nested a thousand times. A worker that exceeds its time is killed and replaced. Reward functions
always run in workers, because they can do anything.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

import pebble

from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat
from othink_jax.rewards.functions import Reward, RewardExample, Scores, last_line
from othink_jax.rewards.verdict import (
    Grade,
    check_grader,
    grade,
    quick_verdict,
    symbolic_verdict,
)
from othink_jax.rewards.worker import is_ready, prepare_worker, score
from othink_jax.tasks import Grader, Task


class GradingPool:
    """Grades completions, in worker processes if needed; a context manager.

    Workers start when they are first needed, and stop when the context exits. Several threads may
    call `grade_all` at the same time.

    As always with multiprocessing, a script that uses a pool must guard its entry point by
    `if __name__ == "__main__":`. Workers are spawned, because a fork of a process that runs JAX's
    threads can deadlock.
    """

    def __init__(
        self,
        grader: Grader = "strict",
        *,
        task: Task | None = None,
        timeout_s: float = 5.0,
        workers: int = 2,
        rewards: Sequence[Reward] = (),
        answers: AnswerFormat = ANSWER_TAGS,
    ) -> None:
        """Prepare a pool.

        Args:
          grader: `strict`, or `r1v` for R1-V's published verdicts.
          task: see `grade`.
          timeout_s: wall-clock limit for one completion in a worker, by one grader or function,
            seconds.
          workers: largest number of worker processes.
          rewards: functions that `score_all` calls. Workers load them by their paths.
          answers: how answers are marked.

        Raises:
          ValueError: a name is unknown or a number is not positive.
        """
        check_grader(grader, task, answers)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {timeout_s}")
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        self._grader: Grader = grader
        self._task: Task | None = task
        self._timeout_s = timeout_s
        self._workers = workers
        self._rewards = tuple(rewards)
        self._answers = answers
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
          Grades in the order of the texts. A text that exceeds time or memory, or crashes its
          worker, has accuracy 0 and is marked `ungradable`. The call takes at most
          ceil(n / workers) * (timeout_s + the start of a worker, some seconds), where n is the
          number of texts that need algebra; it takes that long if all of them hang.

        Raises:
          ValueError: the lengths differ.
          RuntimeError: no worker can be started, or one is needed after the context exited.
        """
        pairs = list(zip(texts, golds, strict=True))
        if not self._answers.linear:
            by = (self._grader, self._task, self._answers)
            made = self._run(grade, [(*pair, *by) for pair in pairs])
            return [Grade(0, 0, True) if isinstance(one, _Failure) else one for one in made]
        verdicts = [
            quick_verdict(text, gold, self._grader, self._task, self._answers)
            for text, gold in pairs
        ]
        left_open = [i for i, verdict in enumerate(verdicts) if verdict is None]
        symbolic = self._run(
            symbolic_verdict,
            [(*pairs[i], self._grader, self._task, self._answers) for i in left_open],
        )
        for i, verdict in zip(left_open, symbolic, strict=True):
            verdicts[i] = None if isinstance(verdict, _Failure) else verdict
        return [
            Grade(float(verdict or 0), self._answers.reward(text), ungradable=verdict is None)
            for text, verdict in zip(texts, verdicts, strict=True)
        ]

    def extract_all(self, texts: Sequence[str]) -> list[str | None]:
        """The final answer of each completion; None if there is none or extraction fails."""
        if self._answers.linear:
            return [self._answers.extract(text) for text in texts]
        made = self._run(self._answers.extract, [(text,) for text in texts])
        return [None if isinstance(one, _Failure) else one for one in made]

    def score_all(self, texts: Sequence[str], examples: Sequence[RewardExample]) -> list[Scores]:
        """Scores of each completion by the pool's reward functions.

        Args:
          texts: whole completions.
          examples: the examples that they answer, as many.

        Returns:
          Scores in the order of the texts. A function scores 0 if it raises, its value is not a
          finite number, or it exceeds its time or memory; `errors` holds the reason.

        Raises:
          ValueError: the lengths differ.
          RuntimeError: as `grade_all`.
        """
        pairs = list(zip(texts, examples, strict=True))
        tasks = [(reward.path, reward.source, *pair) for pair in pairs for reward in self._rewards]
        made, count = self._run(score, tasks), len(self._rewards)
        return [self._scores(made[i * count : (i + 1) * count]) for i in range(len(pairs))]

    def _scores(self, results: Sequence["tuple[float, str] | _Failure"]) -> Scores:
        """Scores of one completion from the results of all functions."""
        values, errors = {}, {}
        for reward, result in zip(self._rewards, results, strict=True):
            value, error = (0.0, result.reason) if isinstance(result, _Failure) else result
            values[reward.name] = value
            if error:
                errors[reward.name] = error
        return Scores(values, errors)

    def _run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a function in the workers once per task; each result may be a `_Failure`."""
        if not tasks:
            return []
        workers = self._live_pool()
        futures: list[pebble.ProcessFuture] = []
        results: list[Any] = []
        try:
            for task in tasks:
                futures.append(self._schedule(workers, function, task))
            for future in futures:
                results.append(self._wait(workers, future))
        except _PoolBroke:
            # A worker died before it could say what it was working on, and took the pool's other
            # tasks with it. Alone, a task can only harm itself.
            results += [self._run_alone(function, task) for task in tasks[len(results) :]]
        finally:
            # After Ctrl-C, leave nothing in the queue for a caller that keeps using this pool.
            for future in futures:
                future.cancel()
        return results

    def _run_alone(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
        workers = self._live_pool()
        try:
            return self._wait(workers, self._schedule(workers, function, task))
        except _PoolBroke:
            return _Failure("its process died")

    def _schedule(
        self, workers: pebble.ProcessPool, function: Callable[..., Any], task: tuple[Any, ...]
    ) -> pebble.ProcessFuture:
        try:
            return workers.schedule(function, args=task, timeout=self._timeout_s)
        except RuntimeError as error:  # pebble raises it if the pool is no longer active
            raise _PoolBroke from error

    def _wait(self, workers: pebble.ProcessPool, future: pebble.ProcessFuture) -> Any:
        """Result of a task, or a `_Failure`."""
        # A pool that breaks drops the tasks it has not yet handed out: their futures never finish.
        while not future.done():
            if not workers.active:
                raise _PoolBroke
            concurrent.futures.wait([future], timeout=0.5)
        # Do not let `result()` raise it: math-verify's TimeoutException is a BaseException, and a
        # SystemExit or KeyboardInterrupt from a worker would end the training run.
        try:
            error = future.exception()
        except concurrent.futures.CancelledError as cancelled:
            raise _PoolBroke from cancelled
        if isinstance(error, BrokenProcessPool):
            raise _PoolBroke from error
        if isinstance(error, TimeoutError):
            return _Failure(f"it took longer than {self._timeout_s:g} s")
        if isinstance(error, pebble.ProcessExpired):
            return _Failure("its process died")
        return future.result() if error is None else _Failure(last_line(error))

    def _live_pool(self) -> pebble.ProcessPool:
        """The pool of workers, started if there is none or if it broke."""
        with self._lock:
            # Another thread may still be grading; nothing would stop workers that it starts now.
            if self._left:
                raise RuntimeError("the grading pool was left; grade inside its `with` block")
            if self._pool is None or not self._pool.active:
                self._stop()
                self._pool = pebble.ProcessPool(
                    max_workers=self._workers,
                    initializer=prepare_worker,
                    initargs=([reward.path for reward in self._rewards],),
                    context=multiprocessing.get_context("spawn"),
                )
                # Without this probe, workers that cannot start would look like hostile completions.
                try:
                    ready = self._wait(self._pool, self._pool.schedule(is_ready))
                except _PoolBroke:
                    ready = False
                if ready is not True:
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
    """The pool of workers has ended; its pending tasks have no result."""


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Stands for a task without a result."""

    reason: str
