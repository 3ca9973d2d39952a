"""The strict grader: what is right, what is nearly right and therefore wrong."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.rewards import grade
from othink_jax.rewards.rounding import rounds_to
from othink_jax.rewards.strict import quick_verdict


def accuracy(answer: str, gold: str) -> float:
    result = grade(f"<think>so</think><answer>{answer}</answer>", gold)
    assert not result.ungradable
    return result.accuracy


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4", "4"),
        ("four", "4"),
        ("4.0", "4"),
        ("140", "140°"),
        ("140°", "140"),
        ("\\angle CED = 140^{\\circ}", "140°"),
        ("1000", "1,000"),
        ("3/4", "\\frac{3}{4}"),
        ("0.75", "\\frac{3}{4}"),
        ("0.333333", "\\frac{1}{3}"),
        ("12/16", "\\frac{3}{4}"),
        ("2\\frac{2}{5}", "\\frac{12}{5}"),
        ("8√3", "8√{3}"),
        ("8\\sqrt{3}", "8√{3}"),
        ("\\sqrt{192}", "8√{3}"),
        ("24/\\sqrt{3}", "8√{3}"),
        ("13.856406", "8√{3}"),
        ("3√3/2", "\\frac{3}{2}√{3}"),
        ("3/2√3", "\\frac{3}{2}√{3}"),
        ("\\frac{2}{\\sqrt5}", "\\frac{2}{5}√{5}"),
        ("1+\\sqrt{3} hours", "(√{3}+1)小时"),
        ("2(\\sqrt{2}-1)", "2√{2}-2"),
        ("2400π", "2400πcm^{2}"),
        ("\\frac{\\pi}{6}", "\\frac{1}{6}π"),
        ("16\\pi square meters", "16π平方米"),
        ("40 nautical miles", "40海里"),
        ("25 cm²", "25cm^2^"),
        ("2 \\cdot 3", "6"),
        ("\\sqrt{36}", "6"),
        ("50%", "0.5"),
        ("0.5", "50%"),
        ("50", "50%"),
        ("B", "B"),
        ("(b)", "B"),
        ("B. 50°", "B"),
        ("B. 50°", "50°"),
        ("50°", "B. 50°"),
        ("Yes", "yes"),
        ("1+2x", "2x+1"),
        ("(3, 4)", "(3,4)"),
        ("3,4", "(3,4)"),
        ("(6/2, \\sqrt{16})", "(3,4)"),
        ("[0.5,1]", "[\\frac{1}{2},1]"),
    ],
)
def test_right_answers_are_right(answer: str, gold: str) -> None:
    assert accuracy(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5", "4"),
        ("-4", "4"),
        ("40", "4"),
        ("4 5", "4"),
        ("4 or 5", "4"),
        ("4, 5", "4"),
        ("(4, 5)", "4"),
        ("4", "(4, 5)"),
        ("(4,3)", "(3,4)"),
        ("[4,3]", "(3,4)"),
        ("[3,4]", "(3,4)"),
        ("4,3", "(3,4)"),
        ("(-1,2)", "(2,-1)"),
        ("(3,4,5)", "(3,4)"),
        ("(\\sqrt{9},5)", "(3,4)"),
        ("4 or 4", "4"),
        ("x = 4 or x = 5", "5"),
        ("at least 4", "4"),
        ("", "4"),
        ("?", "4"),
        ("nan", "4"),
        ("inf", "4"),
        ("4/0", "4"),
        ("4.0000001", "4.0000002"),
        ("0.33", "\\frac{1}{3}"),
        ("4/3", "\\frac{3}{4}"),
        ("8", "8√{3}"),
        ("3", "8√{3}"),
        ("8√2", "8√{3}"),
        ("13.86", "8√{3}"),
        ("√{3}", "8√{3}"),
        ("2400", "2400πcm^{2}"),
        ("7536", "2400πcm^{2}"),
        ("100 cm", "100m"),
        ("12 cm", "12cm^{2}"),
        ("140 cm", "140°"),
        ("50%", "50"),
        ("0.5%", "0.5"),
        ("5", "50%"),
        ("A", "B"),
        ("AB", "B"),
        ("A. 50°", "B. 50°"),
        ("B. 60°", "B. 50°"),
        ("50°", "B"),
        ("B", "50°"),
        ("no", "yes"),
        ("2x", "2x+1"),
    ],
)
def test_near_misses_are_wrong(answer: str, gold: str) -> None:
    assert accuracy(answer, gold) == 0.0


def test_the_truth_is_compared_as_the_truth() -> None:
    # An interval answers a truth that is an inequality; math-verify denies it the other way round.
    assert accuracy("x \\in (1,2)", "1<x<2") == 1.0
    assert accuracy("1<x<2", "(1,2)") == 0.0


def test_only_the_last_answer_tag_counts() -> None:
    assert grade("<think>I see 5 items</think><answer>3</answer>", "5").accuracy == 0.0
    assert grade("<answer>5</answer> or rather <answer>3</answer>", "5").accuracy == 0.0
    assert grade("<answer>3</answer> or rather <answer>5</answer>", "5").accuracy == 1.0
    assert grade("5", "5").accuracy == 0.0


def test_an_empty_truth_is_never_matched() -> None:
    assert grade("<answer></answer>", "").accuracy == 0.0


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match="grader"):
        grade("", "5", "lenient")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="task"):
        grade("", "5", task="poetry")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("4", "4", True),
        ("5", "4", False),
        ("65 degrees", "65°", True),
        ("0.6", "\\frac{3}{5}", True),
        ("the fourth", "4", False),
        ("B", "C", False),
        ("8\\sqrt{3}", "8√{3}", True),
        ("180-50=120", "130", False),
        ("2y=2x+1", "2x+1", False),
        ("x=y+1", "x=10", False),
    ],
)
def test_everyday_answers_need_no_algebra(answer: str, gold: str, right: bool) -> None:
    assert quick_verdict(f"<answer>{answer}</answer>", gold) is right


@pytest.mark.parametrize(
    ("decimal", "exact", "rounded"),
    [
        ("0.333333", Fraction(1, 3), True),
        ("0.33333", Fraction(1, 3), False),
        ("0.333334", Fraction(1, 3), False),
        ("33333.333333", Fraction(10**5, 3), True),
        ("33333.3333", Fraction(10**5, 3), False),
        # Below 0.001, four digits of the number, not six decimals.
        ("0.0003333", Fraction(1, 3000), True),
        ("0.000333", Fraction(1, 3000), False),
        ("0.000000", Fraction(1, 10**7), False),
        ("0", Fraction(1, 10**400), False),
        ("0.0000001", Fraction(0), False),
        ("0.0", Fraction(0), True),
        ("-0.333333", Fraction(-1, 3), True),
        ("0.333333", Fraction(-1, 3), False),
    ],
)
def test_a_decimal_is_as_precise_as_its_size_asks(
    decimal: str, exact: Fraction, rounded: bool
) -> None:
    assert rounds_to(Fraction(decimal), exact) is rounded


def test_a_truth_that_is_an_equation_of_numbers_is_read_as_its_value() -> None:
    assert accuracy("130", "180-50=130") == 1.0
    assert accuracy("180-50", "180-50=130") == 1.0
    assert accuracy("50", "180-50=130") == 0.0


integers = st.integers(-(10**9), 10**9)
fractions = st.fractions(max_denominator=1000)
roots = st.builds(
    "{}{}√{{{}}}{}".format,
    st.sampled_from(["", "-", "2", "-13"]),
    st.sampled_from(["", "\\frac{2}{3}"]),
    st.integers(2, 99),
    st.sampled_from(["", "+1", "-7", "π", "cm", "米"]),
)


def latex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@given(integers.map(str) | fractions.map(str) | fractions.map(latex) | roots)
def test_the_truth_itself_is_right(gold: str) -> None:
    assert quick_verdict(f"<answer>{gold}</answer>", gold) is True


# Algebra on a hundred generated roots: each takes some milliseconds, none can hang.
@settings(max_examples=100, deadline=None)
@given(roots)
def test_a_root_in_latex_is_right_and_one_more_is_wrong(gold: str) -> None:
    spelled = gold.replace("√", "\\sqrt").replace("π", "\\pi").replace("米", " m")
    assert accuracy(f"${spelled}$", gold) == 1.0
    assert accuracy(f"1+({spelled.rstrip(' cm')})", gold) == 0.0


@given(integers, integers)
def test_different_integers_are_never_equal(answer: int, gold: int) -> None:
    assert quick_verdict(f"<answer>{answer}</answer>", str(gold)) is (answer == gold)


@given(fractions, fractions)
def test_fractions_are_compared_exactly(answer: Fraction, gold: Fraction) -> None:
    assert quick_verdict(f"<answer>{answer}</answer>", latex(gold)) is (answer == gold)


@given(
    st.integers(-(10**6), 10**6) | st.decimals(-1000, 1000, places=2),
    st.integers(-(10**6), 10**6),
    st.sampled_from(["{}", " {} ", "{}°", "{} degrees", "${}$", "\n{}.", "({})", "\\boxed{{{}}}"]),
    st.sampled_from(["", "0", "000"]),
)
def test_formatting_noise_does_not_change_the_verdict(
    value: object, gold: int, noise: str, zeros: str
) -> None:
    plain = str(value)
    padded = plain + zeros if "." in plain else f"{plain}.{zeros}" if zeros else plain
    for truth in (str(gold), plain):
        expected = quick_verdict(f"<answer>{plain}</answer>", truth)
        assert expected is not None
        assert quick_verdict(f"<answer>{noise.format(padded)}</answer>", truth) is expected


coefficients = st.integers(-9, 9)
lines = st.tuples(coefficients, coefficients, coefficients).filter(lambda line: line[0] and line[1])


# Algebra on generated lines: each takes some milliseconds, none can hang.
@settings(max_examples=50, deadline=None)
@given(lines, lines, st.integers(-5, 5).filter(bool))
def test_an_equation_is_right_for_its_multiples_alone(
    line: tuple[int, int, int], other: tuple[int, int, int], factor: int
) -> None:
    def spelled(a: int, b: int, c: int) -> str:
        return f"{a}x={-b}y+{c}".replace("+-", "-")

    gold = spelled(*line)
    assert accuracy(spelled(*(factor * number for number in line)), gold) == 1.0
    same = all(line[i] * other[j] == line[j] * other[i] for i in range(3) for j in range(3))
    assert accuracy(spelled(*other), gold) == float(same)
    assert accuracy(str(line[2]), gold) == 0.0


soup = st.lists(
    st.sampled_from(
        [
            *"0123456789.,-+*/^()[]{}=%$!:&≈½² √π°∠BxmC",
            "\\frac",
            "\\sqrt",
            "\\pi",
            " cm",
            " is ",
            " or ",
        ]
    ),
    max_size=20,
).map("".join)


@settings(max_examples=500)
@given(st.text(alphabet=st.characters()) | soup, soup)
def test_no_text_makes_the_fast_path_raise(text: str, gold: str) -> None:
    assert quick_verdict(text, gold) in (True, False, None)
    assert quick_verdict(f"<answer>{text}</answer>", gold) in (True, False, None)
