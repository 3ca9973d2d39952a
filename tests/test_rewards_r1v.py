"""R1-V's published verdicts, quirks included."""

import pytest
from math_verify import parse, verify

from othink_jax.rewards import GradingPool, grade


@pytest.mark.parametrize(
    ("text", "gold", "accuracy"),
    [
        ("<answer>4</answer>", "4", 1.0),
        ("<answer> 4\n</answer>", "4", 1.0),
        ("<answer>04</answer>", "4", 1.0),
        ("<answer>5</answer>", "4", 0.0),
        # The first tag that holds digits alone wins, whatever follows or stands before.
        ("<answer>4</answer><answer>5</answer>", "4", 1.0),
        ("<answer>5</answer><answer>4</answer>", "4", 0.0),
        ("<answer>four</answer><answer>4</answer>", "4", 1.0),
        ("<answer>4.0</answer>", "4", 0.0),
        ("<answer>-4</answer>", "-4", 0.0),
        ("<answer>four</answer>", "4", 0.0),
        ("<answer>4 cubes</answer>", "4", 0.0),
        ("4", "4", 0.0),
        ("<answer>4", "4", 0.0),
        ("<answer>" + "4" * 10_000 + "</answer>", "4", 0.0),
    ],
)
def test_counting_takes_the_first_tag_of_digits(text: str, gold: str, accuracy: float) -> None:
    assert grade(text, gold, "r1v", "counting").accuracy == accuracy


def test_counting_never_matches_a_truth_that_is_no_integer() -> None:
    assert grade("<answer>4</answer>", "4.5", "r1v", "counting").accuracy == 0.0


@pytest.mark.parametrize(
    ("text", "gold", "accuracy"),
    [
        ("<think> so </think> <answer> 140° </answer>", "140°", 1.0),
        ("it is 140", "140°", 1.0),  # no tag is needed
        ("<think> so </think> <answer> 14 </answer>", "140°", 0.0),
        ("no number", "140°", 0.0),
        # A number counts only after a space or `=`: one in the reasoning beats one in its tag.
        ("<think>I see 5 items</think> <answer>3</answer>", "5", 1.0),
        ("<think>I see 5 items</think> <answer>3</answer>", "3", 0.0),
        # A root is lost from the truth: 8 is right, and 8√3 is not.
        ("<answer> 8 </answer>", "8√{3}", 1.0),
        ("<answer> $8\\sqrt{3}$ </answer>", "8√{3}", 0.0),
        # A truth that does not parse is never right.
        ("<answer> $\\sqrt{3}$ </answer>", "√{3}", 0.0),
        ("<answer> $\\frac{12}{5}$ </answer>", "\\frac{12}{5}", 1.0),
    ],
)
def test_geometry_parses_the_whole_text(text: str, gold: str, accuracy: float) -> None:
    assert grade(text, gold, "r1v", "geometry").accuracy == accuracy


@pytest.mark.parametrize(
    ("text", "counting", "geometry"),
    [
        ("<think>a</think> <answer>12</answer>", 1.0, 0.0),
        ("<think>a</think> <answer> 12 cm </answer>", 0.0, 1.0),
        ("<think>3*4 = 12</think> <answer>x</answer>", 0.0, 1.0),
    ],
)
def test_an_integer_is_graded_by_the_rule_of_its_task(
    text: str, counting: float, geometry: float
) -> None:
    assert grade(text, "12", "r1v", "counting").accuracy == counting
    assert grade(text, "12", "r1v", "geometry").accuracy == geometry


def test_without_a_task_nothing_is_guessed() -> None:
    with pytest.raises(ValueError, match="give task"):
        grade("<answer>12</answer>", "12", "r1v")
    with pytest.raises(ValueError, match="give task"):
        GradingPool("r1v")


def test_geometry_compares_the_wrong_way_round() -> None:
    # math-verify takes the right-hand side of an equation for a bare gold, but not the reverse.
    text, gold = "$2x + z = 1$", "$1$"
    assert verify(parse(gold), parse(text)) != verify(parse(text), parse(gold))
    assert grade(text, gold, "r1v", "geometry").accuracy == float(verify(parse(text), parse(gold)))


@pytest.mark.parametrize("grader", ["strict", "r1v"])
def test_the_format_reward_is_the_same_for_both(grader: str) -> None:
    text = "<think>so</think><answer>4</answer>"
    assert grade(text, "4", grader, "counting").format == 1.0  # type: ignore[arg-type]
    assert grade(text + "!", "4", grader, "counting").format == 0.0  # type: ignore[arg-type]
