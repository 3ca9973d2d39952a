"""The format reward: did the completion use the tags it was asked to use?"""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(text: str) -> float:
    r"""1.0 if the whole text is one think block and one answer block, else 0.0 (no unit).

    White space may stand around and between the blocks, and either may be empty. Each tag must
    occur exactly once, so that a completion cannot offer several answers.

    R1-V matches the whole text with `<think>.*?</think>\s*<answer>.*?</answer>`. It differs in two
    ways: white space at either end is wrong there, and tags may be repeated inside the blocks.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in _TAGS):
        return 0.0
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return 0.0
    # Searched for, not matched by a pattern: time stays linear in the text, whatever it holds.
    between = text[text.index("</think>") + len("</think>") :]
    return float(between.lstrip().startswith("<answer>"))
