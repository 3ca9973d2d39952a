"""The reward functions that are known by name, against values worked out by hand."""

import pytest

from othink_jax.rewards import REWARDS, GradingPool, RewardExample, Scores, grade, load


def value(name, answer, truth, **example):
    """Of an answer in its tag; None for none."""
    text = "no tag" if answer is None else f"<think>1, 2</think><answer>{answer}</answer>"
    return REWARDS[name](text, RewardExample(question="?", answer=truth, **example))


def test_every_name_is_explained_in_a_line_and_has_a_full_value():
    for name in REWARDS:
        reward = load(name)
        assert reward.maximum == (0 if name in ("length", "repetition") else 1)
        assert len((reward.function.__doc__ or "").partition("\n")[0]) > 20


# Choices

LISTED = {"columns": {"choices": ["cat", "Dog", "a cow"]}}
BY_LETTER = {"columns": {"options": {"a": "cat", "b": 2}}}


@pytest.mark.parametrize(
    ("answer", "truth", "example", "expected"),
    [
        ("B", "B", {}, 1),
        ("(b) dog", "B", {}, 1),
        ("The answer is B", "B", {}, 1),
        ("A", "B", {}, 0),
        ("banana", "B", {}, 0),
        ("Yes", " yes", {}, 1),
        (None, "B", {}, 0),
        ("B", "Dog", LISTED, 1),
        ("dog", "B", LISTED, 1),
        ("B. dog", "dog", LISTED, 1),
        ("B. cat", "B", LISTED, 0),
        ("A cow", "C", LISTED, 1),
        ("A cow", "A", LISTED, 0),
        ("D", "B", LISTED, 0),
        ("a horse", "B", LISTED, 0),
        ("B or C", "B", LISTED, 0),
        ("2", "B", BY_LETTER, 1),
        ("A: cat", "2", BY_LETTER, 0),
    ],
)
def test_a_choice_is_named_by_letter_or_text(answer, truth, example, expected):
    assert value("choice", answer, truth, **example) == expected


@pytest.mark.parametrize(
    ("truth", "choices", "message"),
    [
        ("horse", ["cat"], "the truth 'horse' is none of the choices"),
        ("A", "cat, dog", "must be a list or a dict, and are str"),
        ("A", {"text": ["cat"], "label": ["A"]}, "each of the choices must be a text or a number"),
    ],
)
def test_choices_that_cannot_be_read_are_no_wrong_answers(truth, choices, message):
    with pytest.raises(ValueError, match=message):
        value("choice", "A", truth, columns={"choices": choices})


# Boxes: [0, 0, 10, 10] and [5, 5, 15, 15] share 25 of 175; halves of one box 50 of 100.

BOX = "[0, 0, 10, 10]"
# An image of 200 x 100 that is shown at 100 x 50 less a patch, and its box in pixels.
ONE = {"image_sizes": ((200, 100),), "shown_sizes": ((112, 56),)}


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (BOX, BOX, 1),
        ("[5, 5, 15, 15]", BOX, 25 / 175),
        ("the box is (0,0),(10,5)", BOX, 0.5),
        ('{"bbox_2d": [0, 0, 10.0, 5], "label": "cat 3"}', "(0,0),(10,10)", 0.5),
        ("[10, 0, 20, 10]", BOX, 0),
        ("[10, 10, 0, 0]", BOX, 0),
        ("[0, 0, 0, 10]", BOX, 0),
        (f"{BOX} or [5, 5, 15, 15]", BOX, 0),
        ("[0, 0, 10]", BOX, 0),
        (None, BOX, 0),
    ],
)
def test_a_box_counts_by_its_overlap(answer, truth, expected):
    assert value("iou", answer, truth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("[0, 0, 10, 5]", 1), ("[0, 0, 10, 4.9]", 0), (BOX, 1), (f"{BOX} {BOX}", 0), (None, 0)],
)
def test_a_box_is_right_from_an_overlap_of_one_half(answer, expected):
    assert value("box_accuracy", answer, BOX) == expected
    said = "no box" if answer is None else f"<answer>{answer}</answer>"
    assert grade(said, BOX, task="grounding").accuracy == expected
    assert grade(said, BOX, task="grounding").ungradable is False


@pytest.mark.parametrize("truth", ["4", f"{BOX}, {BOX}"])
def test_of_a_truth_without_its_one_box_no_answer_can_be_graded(truth):
    assert grade(f"<answer>{BOX}</answer>", truth, task="grounding").ungradable
    with GradingPool(task="grounding", workers=1) as pool:
        (made,) = pool.grade_all([f"<answer>{truth}</answer>"], [truth])
    assert (made.accuracy, made.ungradable) == (0, True)


def test_each_models_coordinates_are_brought_to_those_of_the_truth():
    truth = "[50, 25, 150, 75]"
    thousandths, shown = "(250,250),(750,750)", "[28, 14, 84, 42]"
    assert value("iou", truth, truth, **ONE) == 1
    assert value("iou_qwen2_vl", thousandths, truth, **ONE) == 1
    assert value("iou_qwen2_5_vl", shown, truth, **ONE) == pytest.approx(1)
    assert value("iou_qwen2_vl", "(250,250),(500,750)", truth, **ONE) == 0.5
    assert value("box_accuracy_qwen2_vl", "(250,250),(500,750)", truth, **ONE) == 1
    assert value("box_accuracy_qwen2_vl", "(250,250),(490,750)", truth, **ONE) == 0
    assert value("point_in_box_qwen2_vl", "(250, 700)", truth, **ONE) == 1
    assert value("point_in_box_qwen2_5_vl", "(29, 43)", truth, **ONE) == 0
    assert value("box_map_qwen2_vl", thousandths, truth, **ONE) == 1


@pytest.mark.parametrize("name", ["iou_qwen2_vl", "point_in_box_qwen2_5_vl", "box_map_qwen2_vl"])
def test_coordinates_of_an_unknown_image_are_refused(name):
    answer = "(1, 2)" if "point" in name else BOX
    with pytest.raises(ValueError, match="the size of one image is needed, and 0 are known"):
        value(name, answer, BOX)


@pytest.mark.parametrize("truth", ["4", f"{BOX}, {BOX}"])
def test_a_truth_without_its_one_box_is_no_wrong_answer(truth):
    with pytest.raises(ValueError, match="the truth must hold one box, and holds"):
        value("iou", BOX, truth)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(5, 5)", 1),
        ("[0, 10]", 1),
        ("click (5.5, 2)", 1),
        ("(11, 5)", 0),
        ("(5, -1)", 0),
        ("(5, 5) or (11, 5)", 0),
        (BOX, 0),
        (None, 0),
    ],
)
def test_a_point_lies_in_the_box_or_not(answer, expected):
    assert value("point_in_box", answer, BOX) == expected


def boxes(*labelled):
    rows = (f'{{"label": "{label}", "bbox_2d": {box}}}' for label, box in labelled)
    return f"[{', '.join(rows)}]"


TWO = ("[0, 0, 10, 10]", "[20, 20, 30, 30]")
FAR = "[50, 50, 60, 60]"


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (f"[{TWO[0]}, {TWO[1]}]", f"[{TWO[1]}, {TWO[0]}]", 1),
        # Right, then wrong: precision 1 up to a recall of one half, 51 of 101 recalls.
        (f"{TWO[0]} {FAR}", f"{TWO[0]} {TWO[1]}", 51 / 101),
        # Wrong first: precision one half there.
        (f"{FAR} {TWO[0]}", f"{TWO[0]} {TWO[1]}", 0.5 * 51 / 101),
        # The same again finds nothing more.
        (f"{BOX} {BOX}", BOX, 1),
        (f"{TWO[0]} {TWO[0]}", f"{TWO[0]} {TWO[1]}", 51 / 101),
        # IoU 0.6 reaches the thresholds 0.5, 0.55 and 0.6.
        ("[0, 0, 10, 6]", BOX, 0.3),
        (boxes(("Cat", TWO[0]), ("dog", TWO[1])), boxes(("cat", TWO[0]), ("dog", TWO[1])), 1),
        (boxes(("dog", TWO[0]), ("cat", TWO[1])), boxes(("cat", TWO[0]), ("dog", TWO[1])), 0),
        # A label that the truth has not is one of three.
        (
            boxes(("cat", TWO[0]), ("dog", TWO[1]), ("cow", FAR)),
            boxes(("cat", TWO[0]), ("dog", TWO[1])),
            2 / 3,
        ),
        ("```json\n" + boxes(("cat", TWO[0])) + "\n```", boxes(("cat", TWO[0])), 1),
        (boxes(("cat", "[0, 0, NaN, 10]"), ("cat", BOX)), boxes(("cat", BOX)), 1),
        ("nothing", "[]", 1),
        (BOX, "[]", 0),
        ("nothing", BOX, 0),
        (None, "[]", 0),
    ],
)
def test_a_list_of_boxes_counts_by_its_mean_average_precision(answer, truth, expected):
    assert value("box_map", answer, truth) == pytest.approx(expected)


# Texts and numbers


@pytest.mark.parametrize(
    ("answer", "truths", "expected"),
    [
        ("hello", ["hello"], 1),
        (" Hello  World", ["hello world"], 1),
        ("hallo", ["hello"], 0.8),  # one of five
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("kit", ["kittens"], 0),  # four of seven
        ("ab", ["cb"], 0),  # one half is too much
        ("hallo", ["x", "hello", "hullo"], 0.8),
        (None, ["hello"], 0),
        ("", [""], 1),
        ("x" * 5000, ["x"], 0),
    ],
)
def test_a_text_counts_by_its_similarity_to_the_nearest_truth(answer, truths, expected):
    assert value("anls", answer, "other", columns={"answers": truths}) == pytest.approx(expected)
    if len(truths) == 1:
        assert value("anls", answer, truths[0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-100", "100", 0),
        ("0.315", "0.3", 1),
        ("1,000", "1020", 1),
        ("52%", "0.5", 1),
        ("52", "0.5", 0),
        ("0", "0.0", 1),
        ("0.01", "0", 0),
        ("Blue ", "blue", 1),
        ("5", "five", 0),
        ("nan", "nan", 1),  # as texts
        (None, "5", 0),
    ],
)
def test_a_number_may_be_five_percent_away_and_a_text_may_not(answer, truth, expected):
    assert value("relaxed_accuracy", answer, truth) == expected


def penalty(name, text):
    return REWARDS[name](text, RewardExample(question="?", answer="4"))


def test_penalties_are_of_the_whole_text():
    assert [penalty("length", "x" * n) for n in (0, 250, 1000, 5000)] == [0, -0.25, -1, -1]
    assert penalty("repetition", "one two") == 0
    assert penalty("repetition", "one two three four") == 0
    # Runs: a b c, b c a, c a b, A b c: one of four was there before.
    assert penalty("repetition", "a b c a b\nC") == -0.25
    assert penalty("repetition", "no " * 102) == -0.99


@pytest.mark.timeout(120)
def test_floods_end_within_the_limit_and_score_nothing():
    floods = ["[" * 50_000, "[0, " * 20_000, "[0," + " " * 50_000, "(0,0),(" * 10_000, "A" * 50_000]
    texts = [f"<answer>{flood}</answer>" for flood in floods]
    names = [name for name in REWARDS if load(name).maximum == 1 and name != "choice"]
    example = RewardExample(
        question="?", answer=BOX, image_sizes=((8, 8),), shown_sizes=((28, 28),)
    )
    with GradingPool(rewards=[load(name) for name in names]) as pool:
        scores = pool.score_all(texts, [example] * len(texts))
    assert scores == [Scores(dict.fromkeys(names, 0.0), {})] * len(texts)
