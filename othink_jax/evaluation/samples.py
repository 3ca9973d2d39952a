"""Metrics of several completions per question: pass@k and majority vote."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from othink_jax.rewards import Grade, same_answer_key
from othink_jax.statistics import share_interval


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right.

    Eq. 1 of Chen et al. 2021 (arXiv 2107.03374): 1 - C(n - c, k) / C(n, k).

    Args:
      right: c, the number of right samples.
      samples: n, the number of samples.
      k: at most `samples`.

    Raises:
      ValueError: a number is out of its range.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {right} right among {samples} samples has no meaning")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def measured_ks(samples: int) -> list[int]:
    """The k of pass@k: powers of two below the number of samples, and that number itself."""
    return [*(2**power for power in range((samples - 1).bit_length())), samples]


def majority(answers: Sequence[str | None]) -> int | None:
    """Index of a completion with the most frequent answer; None if there is no answer.

    Self-consistency (arXiv 2203.11171). Answers are the same if they read the same, see
    `same_answer_key`. Of answers with equally many votes, the first wins. The index is that of the
    first completion with this answer.

    Args:
      answers: of the completions of a question; None, or an empty one, does not vote.
    """
    keys = [same_answer_key(answer or "") for answer in answers]
    votes = Counter(key for key in keys if key is not None)
    if not votes:
        return None
    # Counter keeps the order in which the keys came, and max takes the first of equals.
    return keys.index(max(votes, key=votes.__getitem__))


@dataclasses.dataclass(frozen=True)
class Sampled:
    """pass@k and majority vote of each question."""

    pass_at: Mapping[int, Sequence[float]]  # by k, see `measured_ks`
    # 1 if the majority answer is right, by the verdict on the first completion that gives it, else
    # 0; None if no completion has an answer
    majority: Sequence[float | None]

    @property
    def voted(self) -> list[float]:
        """`majority`, with 0 for a question without an answer."""
        return [right or 0.0 for right in self.majority]

    def summary(self) -> dict[str, dict[str, Any]]:
        """`pass_at`, by k (as a string), and `majority`: mean over questions, and its 95% interval.

        `majority` also has `without`, the number of questions without an answer.
        """
        return {
            "pass_at": {str(k): _mean(shares) for k, shares in self.pass_at.items()},
            "majority": {**_mean(self.voted), "without": self.majority.count(None)},
        }


def over_samples(answers: Sequence[str | None], grades: Sequence[Grade], samples: int) -> Sampled:
    """pass@k and majority vote of each question.

    Args:
      answers, grades: of all completions, those of a question consecutive.
      samples: completions per question.
    """
    first = range(0, len(answers), samples)
    rights = [int(sum(one.accuracy for one in grades[at : at + samples])) for at in first]
    chosen = [majority(answers[at : at + samples]) for at in first]
    return Sampled(
        pass_at={
            k: [pass_at_k(right, samples, k) for right in rights] for k in measured_ks(samples)
        },
        majority=[
            None if one is None else grades[at + one].accuracy
            for at, one in zip(first, chosen, strict=True)
        ],
    )


def _mean(shares: Sequence[float]) -> dict[str, Any]:
    return {"mean": math.fsum(shares) / len(shares), "interval": list(share_interval(shares))}
