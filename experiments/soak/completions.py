r"""The grading pool under a memory limit: hostile completions, and a batch in which all hang.

Claim: no completion that is wrong by construction is graded right, and none that is right is
    graded wrong, whatever its neighbours do. Nothing is raised, and memory stays below its limit. A
    batch of n completions that all hang takes ceil(n / workers) rounds, each of one time limit and
    the start of a worker that replaces a killed one.
Command: python -m experiments.soak.completions --json runs/soak/completions.json
Cost: about half an hour on two CPU cores for 100 000 completions, 2 GB.
Shows: counts by kind and verdict, the slowest batch, the peak resident memory of the parent and of
    a worker, and the time of the batch in which every completion hangs.
"""

import argparse
import itertools
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from othink_jax.rewards import GradingPool

_BATCH = 128
_TIMEOUT_S = 5.0  # as in training
_WORKERS = 2
_HANGING = 16  # completions of the batch in which all hang
_MEMORY_BYTES = 2 << 30  # on top of the address space mapped at the start

# Each holds a large prime, so that no other answer equals one by chance.
_TRUTHS = (
    "104729",
    "104729°",
    "104729cm^{2}",
    "104729√{3}",
    r"\frac{104729}{3}",
    "104729π",
    r"1.04729\times10^{-34}",
    "x-104729y=5",
    "x^2+y^2=104729",
    "x=104729",
    "AB=104729CD",
    "(104729, 2)",
    "104729x+3",
    "x<104729",
    r"\begin{pmatrix}104729\\2\end{pmatrix}",
)
# {} stands for the truth. Each pattern turns a right answer into another one.
_HEDGES = (
    "{} or {}1",
    "{}1 or {}",
    "not {}",
    "I do not think that it is {}",
    "half of {}",
    "{} dozen",
    "at least {}",
    "more than {}",
    "{} = 7",
    "7 = {}",
    "2({})",
    "{}+1",
    "({}, {})",
    "{}; 7",
    "7, {}",
    "{} and 7",
    "{}/7",
    "7^{{{}}}",
    "either {} or 7",
    "{} 7",
    "7 {}",
    "{}!",
    r"\boxed{{{}}}\boxed{{7}}",
    "{} is wrong",
    "anything but {}",
)
_HANGS = (
    "9^{9^{9^9}}",
    "(9^{9999})^{9999}",
    "104729^{104729^{104729}}",
    r"\sqrt{2}^{9^{9^{9}}}",
    "((9999!)!)",
    "(9999!)^{9999}",
)
_TOKENS = (
    *"0123456789.,-+*/^()[]{}=<>:;!|&%$# \n'\"√π°∠△½²⁻³≈≠xyABCDmn\\",
    *(r"\frac", r"\sqrt", r"\pi", r"\cdot", r"\times", r"\angle", r"\text{", r"\boxed{", r"\left("),
    *(
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\\",
        r"\$",
        r"\!",
        r"\binom",
        r"\sum_{i=1}^{9}",
        "**",
    ),
    *(r"\int", r"\log", r"\sin", r"\infty", r"\pm", r"\in", r"\cup", "cm", "degrees", "is", "not"),
    *(
        "or",
        "and",
        "the",
        "answer",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "\x00",
        "\ud800",
    ),
)
_WRAPPERS = ("{}", " {}", "${}$", r"\boxed{{{}}}", r"\({}\)", "**{}**", "{}.", "\n{}\n")


def soup(rng: random.Random, truth: str) -> str:
    """Random tokens; the prime comes up in one of a million."""
    return "".join(rng.choices(_TOKENS, k=rng.randint(0, 60)))


def spliced(rng: random.Random, truth: str) -> str:
    """The truth with its prime changed, and perhaps a prefix and a suffix."""
    changed = truth.replace("04729", rng.choice(("04723", "04792", "0472", "047291", "14729")))
    if truth == changed:
        changed = "7"
    return (
        f"{rng.choice(('', '-', '∠', 'x=', '2'))}{changed}{rng.choice(('', ' cm', '%', '°', '!'))}"
    )


def hedged(rng: random.Random, truth: str) -> str:
    """The truth among words or numbers that turn it into another answer."""
    return rng.choice(_HEDGES).replace("{}", "\0").format().replace("\0", truth)


def huge(rng: random.Random, truth: str) -> str:
    """A hundred thousand characters over which a careless regular expression backtracks."""
    piece = rng.choice(
        ("(", "{", "</answer><answer>", r"\frac{", "1,", "=", "x=", "**", " is ", "√", "½", "-")
    )
    return truth + piece * (100_000 // len(piece))


def long_enough(rng: random.Random, truth: str) -> str:
    """One piece, repeated up to the length limit of an answer."""
    piece = rng.choice(("(", "{", "9^", "x=", "1:", "½", "**", "a is ", "((1,2),", r"\sqrt{", "1!"))
    return piece * (250 // len(piece))


def hanging(rng: random.Random, truth: str) -> str:
    """An expression that no algebra system evaluates within the limits of time or memory."""
    return rng.choice(_HANGS)


def right(rng: random.Random, truth: str) -> str:
    """The truth itself, in one of several wrappers."""
    return rng.choice(_WRAPPERS).format(truth)


# Kinds of completions and their shares of a batch.
_KINDS: tuple[tuple[Callable[[random.Random, str], str], float], ...] = (
    (soup, 0.3),
    (spliced, 0.2),
    (hedged, 0.3),
    (huge, 0.005),
    (long_enough, 0.1),
    (hanging, 0.001),
    (right, 0.094),
)


def completions(rng: random.Random, count: int) -> Iterator[tuple[str, str, str]]:
    """Random cases: kind, completion and truth."""
    makers, shares = zip(*_KINDS, strict=True)
    for make in rng.choices(makers, shares, k=count):
        truth = rng.choice(_TRUTHS)
        yield make.__name__, f"<think>so</think><answer>{make(rng, truth)}</answer>", truth


def limit_memory() -> None:
    """Limit the memory of this process and so of the workers that it starts."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY_BYTES, mapped + _MEMORY_BYTES))


def hang_all(pool: GradingPool) -> float:
    """Seconds for a batch in which every completion hangs."""
    texts = [f"<answer>{_HANGS[0]}</answer>"] * _HANGING
    start = time.perf_counter()
    grades = pool.grade_all(texts, ["104729"] * _HANGING)
    assert all(grade.ungradable for grade in grades)
    return time.perf_counter() - start


def run(arguments: argparse.Namespace) -> None:
    # Not at the top: every worker imports this module and would import jax.
    from experiments.soak.record import Campaign, Outcome

    campaign = Campaign("completions", arguments)
    limit_memory()
    rng = random.Random(arguments.seed)
    cases = completions(rng, arguments.count)
    slowest = 0.0
    with GradingPool(timeout_s=_TIMEOUT_S, workers=_WORKERS) as pool:
        while batch := list(itertools.islice(cases, _BATCH)):
            start = time.perf_counter()
            grades = pool.grade_all([text for _, text, _ in batch], [truth for *_, truth in batch])
            slowest = max(slowest, time.perf_counter() - start)
            for (kind, text, truth), grade in zip(batch, grades, strict=True):
                verdict = (
                    "ungradable" if grade.ungradable else "right" if grade.accuracy else "wrong"
                )
                good = (verdict == "right") == (kind == "right")
                campaign.add(
                    Outcome(
                        kind=f"{kind}: {verdict}", good=good, detail=f"{text[:300]!r} for {truth!r}"
                    )
                )
        hung = hang_all(pool)
    rounds = math.ceil(_HANGING / _WORKERS)
    measured: dict[str, Any] = {
        "timeout_s": _TIMEOUT_S,
        "workers": _WORKERS,
        "batch": _BATCH,
        "slowest_batch_s": round(slowest, 1),
        "memory_limit_mb": _MEMORY_BYTES >> 20,
        "parent_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "worker_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "hanging_batch": {
            "completions": _HANGING,
            "seconds": round(hung, 1),
            "seconds_a_round": round(hung / rounds, 2),
        },
    }
    campaign.finish(**measured)


def main() -> None:
    from experiments.soak.record import parser

    if sys.platform != "linux":
        raise SystemExit("the memory limit of this campaign needs Linux")
    run(parser(__doc__, count=100_000).parse_args())


if __name__ == "__main__":
    main()
