"""Tags, the format reward, and the reading of a final answer."""

import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from othink_jax.rewards import extract_answer, format_reward
from othink_jax.rewards.answers import read_answer

any_text = st.text(alphabet=st.characters())  # lone surrogates included
tag_soup = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "5", "x"]),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<think>3</think>\n<answer> 5\n</answer>", "5"),
        ("<answer>line\nbreak</answer>", "line\nbreak"),
        ("<answer>4</answer> no: <answer>5</answer>", "5"),
        ("<answer>4 <answer>5</answer>", "5"),
        ("<answer>5</answer> and </answer>", "5"),
        ("<answer>5</answer> <answer>6", "5"),
        ("<answer></answer>", ""),
        ("5", None),
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        ("", None),
    ],
)
def test_extracts_the_last_closed_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>5</answer>", 1.0),
        ("\n <think>a\nb</think> \n <answer>5\n</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<answer>5</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>5</answer><think>a</think>", 0.0),
        ("so <think>a</think><answer>5</answer>", 0.0),
        ("<think>a</think> so <answer>5</answer>", 0.0),
        ("<think>a</think><answer>5</answer> so", 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think>a<think></think><answer>5</answer>", 0.0),
        ("<think><answer>5</think></answer>", 0.0),
        ("<think>a<answer>5</answer></think><answer>", 0.0),
        ("<THINK>a</THINK><ANSWER>5</ANSWER>", 0.0),
        ("", 0.0),
    ],
)
def test_format_is_right_only_as_asked_for(text: str, reward: float) -> None:
    assert format_reward(text) == reward


gap = st.sampled_from(["", " ", "\n", "x", "<think>", "</think>", "<answer>", "</answer>"])


@given(st.builds("{}<think>{}</think>{}<answer>{}</answer>{}".format, *[gap] * 5) | tag_soup)
def test_format_is_r1v_pattern_but_for_white_space_around_and_repeated_tags(text: str) -> None:
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"
    matched = re.fullmatch(pattern, text.strip(), re.DOTALL) is not None
    assert format_reward(text) == float(matched and once)


@given(any_text | tag_soup)
def test_no_text_is_too_odd_to_read(text: str) -> None:
    content = extract_answer(text)
    assert content is None or content in text
    assert format_reward(text) in (0.0, 1.0)
    if format_reward(text) == 1.0:
        assert content is not None
    read_answer(text)


@pytest.mark.parametrize(
    "text", ["<answer>" * 125_000, "<think>" * 140_000, "<answer>" + "(" * 1_000_000 + "</answer>"]
)
def test_a_million_characters_are_read(text: str) -> None:
    # Quadratic time would make this hang for hours.
    content = extract_answer(text)
    assert content is None or read_answer(content).value == ""
    assert format_reward(text) == 0.0


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("5", 5, ""),
        ("-5", -5, ""),
        ("\u2212 5", -5, ""),
        ("+5", 5, ""),
        ("12.50", Fraction(25, 2), ""),
        (".5", Fraction(1, 2), ""),
        ("1,234,567", 1234567, ""),
        ("1{,}234", 1234, ""),
        ("3/4", Fraction(3, 4), ""),
        ("\\frac{3}{4}", Fraction(3, 4), ""),
        ("-\\dfrac{3}{4}", Fraction(-3, 4), ""),
        ("\\frac34", Fraction(3, 4), ""),
        ("2 1/2", Fraction(5, 2), ""),
        ("-2\\frac{1}{2}", Fraction(-5, 2), ""),
        ("65°", 65, "°"),
        ("65^{\\circ}", 65, "°"),
        ("$65^\\circ$", 65, "°"),
        ("65 degrees", 65, "°"),
        ("65 度", 65, "°"),
        ("5cm", 5, "cm"),
        ("5 cm.", 5, "cm"),
        ("5 \\text{ cm}^2", 5, "cm^2"),
        ("5cm²", 5, "cm^2"),
        ("5cm^2^", 5, "cm^2"),
        ("5 square centimeters", 5, "cm^2"),
        ("5平方米", 5, "m^2"),
        ("0.5米", Fraction(1, 2), "m"),
        ("40海里", 40, "nmi"),
        ("50%", Fraction(1, 2), "%"),
        ("three", 3, ""),
        ("Twenty", 20, ""),
        ("three objects", 3, ""),
        ("x = 5", 5, ""),
        ("\\angle CED = 140°", 140, "°"),
        ("\\boxed{5}", 5, ""),
        ("**5**", 5, ""),
        ("((5))", 5, ""),
        ("\uff15", 5, ""),  # full-width digit
    ],
)
def test_numbers_are_read_exactly(text: str, number: Fraction, unit: str) -> None:
    answer = read_answer(text)
    assert (answer.number, answer.unit) == (number, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 6",
        "5, 6",
        "5 or 6",
        "1,23",
        "1/0",
        "5x",
        "nan",
        "inf",
        "1e3",
        "atom",
        "(5)(6)",
        "--5",
        "x != 5",
        "x >= 5",
    ],
)
def test_what_is_no_single_number_is_not_read_as_one(text: str) -> None:
    assert read_answer(text).number is None


@pytest.mark.parametrize(
    "text", ["8√{3}", "8√3", "8 √(3)", "8\\sqrt{3}", "8\\sqrt3", "8 sqrt(3)", "$8 \\sqrt{3}$"]
)
def test_roots_have_one_spelling(text: str) -> None:
    assert read_answer(text).value == "8\\sqrt{3}"


@pytest.mark.parametrize("text", ["2400πcm^{2}", "2400 \\pi cm²", "2400pi cm^2"])
def test_pi_has_one_spelling(text: str) -> None:
    answer = read_answer(text)
    assert (answer.value, answer.unit) == ("2400\\pi", "cm^2")


@pytest.mark.parametrize(
    ("text", "choice", "value"),
    [
        ("B", "B", ""),
        ("(b)", "B", ""),
        ("B.", "B", ""),
        ("B. 50°", "B", "50"),
        ("(B) 50°", "B", "50"),
        ("B: 50", "B", "50"),
        ("Bob", "", "Bob"),
    ],
)
def test_choice_letters_are_split_off(text: str, choice: str, value: str) -> None:
    answer = read_answer(text)
    assert (answer.choice, answer.value) == (choice, value)


def test_importing_rewards_loads_no_algebra_and_no_jax() -> None:
    code = (
        "import sys, othink_jax.rewards; print(*{'sympy', 'math_verify', 'jax'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
