r"""How an answer is marked in a completion: by tags, or by a regular expression."""

import dataclasses
import functools
import re

from othink_jax.rewards.answers import extract_answer, retagged

ANSWER_TAG = "answer"
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    r"""Where the final answer of a completion stands, and which completions have the right form.

    By tags, time is linear in the text. A regular expression can take any time, so `GradingPool`
    asks it in a process that can be killed.

    Raises:
      ValueError: the tag is no name of one, or the expression does not compile or has not exactly
        one group.
    """

    tag: str = ANSWER_TAG  # an answer is `<TAG>...</TAG>`, behind `<think>...</think>`
    # Or it is the one group of this expression, where that is found last; the tag does not count
    # then, and the form is right wherever it is found
    pattern: str | None = None

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.tag) or self.tag == "think":
            raise ValueError(
                f"--answer-tag must be a name such as `answer`, without brackets, and not `think`;"
                f" got {self.tag!r}"
            )
        if self.pattern is None:
            return
        if self.tag != ANSWER_TAG:
            raise ValueError("give --answer-tag or --answer-pattern, and not both")
        try:
            groups = _compiled(self.pattern).groups
        except re.error as error:
            raise ValueError(f"--answer-pattern {self.pattern!r}: {error}") from error
        if groups != 1:
            raise ValueError(
                f"--answer-pattern {self.pattern!r} must have one group, the answer, and has"
                f" {groups}; (?:...) groups without being one"
            )

    @property
    def linear(self) -> bool:
        """Whether reading takes time linear in the text."""
        return self.pattern is None

    def extract(self, text: str) -> str | None:
        """The answer of a completion, stripped; None where there is none."""
        if self.pattern is None:
            return extract_answer(text, self.tag)
        found = None
        for match in _compiled(self.pattern).finditer(text):
            found = match
        return None if found is None or found[1] is None else found[1].strip()

    def reward(self, text: str) -> float:
        """1.0 where a completion has the right form, else 0.0; see `format_reward`."""
        if self.pattern is None:
            return format_reward(text, self.tag)
        return float(self.extract(text) is not None)

    def written(self, solution: str) -> str:
        """A solution whose answer stands in `<answer>` tags, with it in this format's tags.

        Raises:
          ValueError: the format is a regular expression, of which nothing says how it is written.
        """
        if self.pattern is not None:
            raise ValueError("--answer-pattern does not say how an answer is written")
        return retagged(solution, ANSWER_TAG, self.tag)

    def in_usual_tags(self, solution: str) -> str:
        """The inverse of `written`; what has no answer in this format's tags stays as it is."""
        return solution if self.pattern is not None else retagged(solution, self.tag, ANSWER_TAG)


_compiled = functools.lru_cache(re.compile)

ANSWER_TAGS = AnswerFormat()  # R1-V's


def format_reward(text: str, tag: str = ANSWER_TAG) -> float:
    r"""1.0 if the whole text is one think block and one answer block, else 0.0 (no unit).

    White space may stand around and between the blocks, and either may be empty. Each tag must
    occur exactly once, so that a completion cannot offer several answers.

    R1-V matches the whole text with `<think>.*?</think>\s*<answer>.*?</answer>`. It differs in two
    ways: white space at either end is wrong there, and tags may be repeated inside the blocks.

    Args:
      text: the whole completion.
      tag: of the answer.
    """
    text = text.strip()
    tags = ("<think>", "</think>", f"<{tag}>", f"</{tag}>")
    if any(text.count(each) != 1 for each in tags):
        return 0.0
    if not (text.startswith("<think>") and text.endswith(f"</{tag}>")):
        return 0.0
    # Searched for, not matched by a pattern: time stays linear in the text, whatever it holds.
    between = text[text.index("</think>") + len("</think>") :]
    return float(between.lstrip().startswith(f"<{tag}>"))
