"""The grading pool: limits of time and memory, order, threads, an end without leftovers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import math_verify.errors
import pytest

from othink_jax.rewards import AnswerFormat, Grade, GradingPool, grade, pool

RIGHT, WRONG, UNGRADABLE = Grade(1.0, 0.0), Grade(0.0, 0.0), Grade(0.0, 0.0, ungradable=True)


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def strict_pool() -> Iterator[GradingPool]:
    with GradingPool("strict", timeout_s=2.0, workers=2) as strict:
        yield strict


def test_results_come_in_the_order_of_the_texts(strict_pool: GradingPool) -> None:
    # Fast path, workers and workers that are killed, mixed.
    answers = ["8√3", "8", "9^{9^{9^9}}", "\\sqrt{192}", "four", "24/\\sqrt{3}", "8√2"]
    expected = [RIGHT, WRONG, UNGRADABLE, RIGHT, WRONG, RIGHT, WRONG]
    assert strict_pool.grade_all([tagged(a) for a in answers], ["8√{3}"] * 7) == expected


def test_agrees_with_grading_in_this_process(strict_pool: GradingPool) -> None:
    texts = [tagged(f"\\sqrt{{{n * n * 3}}}") for n in range(1, 20)] + ["<think></think>", "5"]
    golds = ["7√{3}"] * len(texts)
    expected = [grade(text, gold) for text, gold in zip(texts, golds, strict=True)]
    assert strict_pool.grade_all(texts, golds) == expected
    assert sum(result.accuracy for result in expected) == 1.0


HOSTILE = [
    "9^9^9^9",
    "9^{9^{9^9}}",
    "10^9!",
    "2^{99999999999}",
    "\\binom{10^9}{5\\cdot10^8}",
    "\\sqrt{" * 60 + "2" + "}" * 60,
    "(" * 120 + "3" + ")" * 120,
    "(" * 120,
    "{" * 10_000 + "}" * 10_000,
    "5" * 10**6,
    "nan",
    "inf",
    "\\infty",
    "",
    "\ud800",
    "8\ud800√3",
    "<answer>",
    "\x00",
]


@pytest.mark.parametrize("gold", ["8√{3}", "5", "2x+1"])
def test_hostile_answers_score_zero(strict_pool: GradingPool, gold: str) -> None:
    texts = [tagged(answer) for answer in HOSTILE]
    texts += ["<answer>5", "5</answer>", "<answer>" * 1000, ""]
    # The last is right: no hostile neighbour harms it.
    grades = strict_pool.grade_all([*texts, tagged(gold)], [gold] * (len(texts) + 1))
    assert [result.accuracy for result in grades] == [0.0] * len(texts) + [1.0]


def test_hostile_texts_score_zero_with_r1v() -> None:
    texts = [f"it is ${answer}$" for answer in HOSTILE] + ["it is 140"]
    with GradingPool("r1v", task="geometry", timeout_s=1.0) as r1v:
        grades = r1v.grade_all(texts, ["140°"] * len(texts))
    assert [result.accuracy for result in grades] == [0.0] * len(HOSTILE) + [1.0]


def scripted_verdict(text: str, gold: str, grader: str, task: str, answers: AnswerFormat) -> bool:
    """Stands in for the algebra in workers, so that each way to fail comes surely."""
    if "sleep" in text:
        time.sleep(600)
    if "loop in C" in text:
        return bool(9 ** (9**9))
    if "crash" in text:
        os.abort()
    if "memory" in text:
        return bool(bytearray(2 << 30))
    if "limit" in text:
        with pytest.raises(MemoryError):
            bytearray(2 << 30)
        return bool(bytearray(100 << 20))
    for error in (math_verify.errors.TimeoutException, SystemExit, KeyboardInterrupt):
        if error.__name__ in text:
            raise error
    return "right" in text


def test_each_way_to_fail_is_counted_and_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "symbolic_verdict", scripted_verdict)
    texts = ["right", "sleep", "crash", "right", "memory", "loop in C", "wrong", "crash", "right"]
    with GradingPool("r1v", task="geometry", timeout_s=1.0) as scripted:
        for _ in range(2):  # the replaced workers are as good as the first
            grades = scripted.grade_all(texts, ["1"] * len(texts))
            assert [result.accuracy for result in grades] == [1, 0, 0, 1, 0, 0, 0, 0, 1]
            assert [result.ungradable for result in grades] == [
                text in ("sleep", "crash", "memory", "loop in C") for text in texts
            ]


def test_a_batch_that_hangs_takes_its_rounds_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "symbolic_verdict", scripted_verdict)
    with GradingPool("r1v", task="geometry", timeout_s=0.5, workers=2) as scripted:
        start = time.perf_counter()
        assert scripted.grade_all(["sleep"] * 4, ["1"] * 4) == [UNGRADABLE] * 4
        seconds = time.perf_counter() - start
    # Two rounds, each with the start of a worker, which takes long on a busy machine.
    assert 1.0 < seconds < 2 * (0.5 + 60.0)


def test_what_is_no_exception_stays_in_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised again in the parent, these would end a training run, or look like the user's Ctrl-C.
    monkeypatch.setattr(pool, "symbolic_verdict", scripted_verdict)
    texts = ["right", "TimeoutException", "SystemExit", "right", "KeyboardInterrupt", "right"]
    with GradingPool("r1v", task="geometry") as scripted:
        grades = scripted.grade_all(texts, ["1"] * len(texts))
    assert grades == [RIGHT if text == "right" else UNGRADABLE for text in texts]


def test_memory_is_limited_and_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "symbolic_verdict", scripted_verdict)
    with GradingPool("r1v", task="geometry", workers=1) as scripted:
        assert scripted.grade_all(["limit"], ["1"]) == [RIGHT]


def test_workers_start_only_when_needed_and_are_gone_after() -> None:
    before = set(multiprocessing.active_children())
    with GradingPool("strict", workers=2) as strict:
        assert strict.grade_all([tagged("5"), "no tag"], ["5", "5"]) == [RIGHT, WRONG]
        assert strict.grade_all([], []) == []
        assert set(multiprocessing.active_children()) == before
        assert strict.grade_all([tagged("\\sqrt{25}")], ["5"]) == [RIGHT]
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
    assert set(multiprocessing.active_children()) == before
    assert not any(worker.is_alive() for worker in workers)


def test_a_pool_that_was_left_starts_no_worker() -> None:
    before = set(multiprocessing.active_children())
    with GradingPool("strict") as left:
        pass
    with pytest.raises(RuntimeError, match="was left"):
        left.grade_all([tagged("\\sqrt{25}")], ["5"])
    assert set(multiprocessing.active_children()) == before


def test_a_pool_whose_workers_all_died_starts_again(strict_pool: GradingPool) -> None:
    others = set(multiprocessing.active_children())
    with GradingPool("strict", workers=1) as strict:
        assert strict.grade_all([tagged("\\sqrt{25}")], ["5"]) == [RIGHT]
        (worker,) = set(multiprocessing.active_children()) - others
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        assert strict.grade_all([tagged("\\sqrt{25}")] * 3, ["5"] * 3) == [RIGHT] * 3


def test_any_thread_may_grade(strict_pool: GradingPool) -> None:
    results: dict[int, list[Grade]] = {}

    def work(k: int) -> None:
        texts = [tagged(f"\\sqrt{{{n * n}}}") for n in range(1, 8)]
        results[k] = strict_pool.grade_all(texts, [str(k)] * 7)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(1, 8):
        assert results[k] == [RIGHT if n == k else WRONG for n in range(1, 8)]


def test_workers_that_cannot_start_are_an_error_and_no_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "prepare_worker", os.abort)
    with GradingPool("strict") as strict, pytest.raises(RuntimeError, match="no grading worker"):
        strict.grade_all([tagged("\\sqrt{25}")], ["5"])


def test_ctrl_c_ends_the_script_and_its_workers(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "hang.py")
    with open(script, "w") as file:
        file.write(
            textwrap.dedent(
                """
                import os, signal, time
                from othink_jax.rewards import GradingPool, pool

                # Where the suite runs in the background, it would be ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)

                def hang(text, gold, grader, task, answers):
                    os.write(1, b"%d\\n" % os.getpid())  # in one piece, beside the other's
                    time.sleep(600)

                if __name__ == "__main__":
                    pool.symbolic_verdict = hang
                    with GradingPool("r1v", task="geometry", timeout_s=600) as grading:
                        grading.grade_all(["a"] * 4, ["b"] * 4)
                """
            )
        )
    # A group of its own, signalled as a whole: so does a terminal.
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grader": "lenient"}, "grader"),
        ({"task": "poetry"}, "task"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"workers": 0}, "workers"),
    ],
)
def test_impossible_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradingPool(**settings)


def test_texts_and_truths_must_be_as_many(strict_pool: GradingPool) -> None:
    with pytest.raises(ValueError, match="shorter"):
        strict_pool.grade_all(["a", "b"], ["1"])
