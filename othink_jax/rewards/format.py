r"""Answer formats: tags or a regular expression that mark the answer of a completion."""

import dataclasses
import functools
import re

from othink_jax.rewards.answers import extract_answer, retagged

ANSWER_TAG = "answer"
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    r"""Location of the final answer in a completion, and the required form of completions.

    Tags take time linear in the text. A regular expression can take any time, so `GradingPool` runs
    it in a process that can be killed.

    Raises:
      ValueError: the tag is not a valid name, or the expression does not compile or does not have
        exactly one group.
    """

    tag: str = ANSWER_TAG  # an answer is `<TAG>...</TAG>`, after `<think>...</think>`
    # Alternative to the tag: the answer is the one group of this expression in its last match; any
    # completion with a match has the right form
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
        """The answer of a completion, stripped; None if there is none."""
        if self.pattern is None:
            return extract_answer(text, self.tag)
        found = None
        for match in _compiled(self.pattern).finditer(text):
            found = match
        return None if found is None or found[1] is None else found[1].strip()

    def reward(self, text: str) -> float:
        """1.0 if a completion has the right form, else 0.0; see `format_reward`."""
        if self.pattern is None:
            return format_reward(text, self.tag)
        return float(self.extract(text) is not None)

    def written(self, solution: str) -> str:
        """A solution with its `<answer>` tags replaced by this format's tags.

        Raises:
          ValueError: the format is a regular expression, which does not say how to write an answer.
        """
        if self.pattern is not None:
            raise ValueError("--answer-pattern does not say how an answer is written")
        return retagged(solution, ANSWER_TAG, self.tag)

    def in_usual_tags(self, solution: str) -> str:
        """The inverse of `written`; a solution without this format's tags is unchanged."""
        return solution if self.pattern is not None else retagged(solution, self.tag, ANSWER_TAG)


_compiled = functools.lru_cache(re.compile)

ANSWER_TAGS = AnswerFormat()  # R1-V's


def format_reward(text: str, tag: str = ANSWER_TAG) -> float:
    r"""1.0 if the whole text is one think block and one answer block, else 0.0 (no unit).

    White space is allowed around and between the blocks, and either may be empty. Each tag must
    occur exactly once, so that a completion cannot offer several answers.

    R1-V matches the whole text with `<think>.*?</think>\s*<answer>.*?</answer>`. It differs in two
    ways: white space at either end is wrong there, and tags may be repeated inside the blocks.

    Args:
      text: the whole completion.
      tag: name of the answer's tag.
    """
    text = text.strip()
    tags = ("<think>", "</think>", f"<{tag}>", f"</{tag}>")
    if any(text.count(each) != 1 for each in tags):
        return 0.0
    if not (text.startswith("<think>") and text.endswith(f"</{tag}>")):
        return 0.0
    # Search, no pattern: time stays linear in the text, whatever it holds.
    between = text[text.index("</think>") + len("</think>") :]
    return float(between.lstrip().startswith(f"<{tag}>"))
