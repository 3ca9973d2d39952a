"""The geometry task: answers that the drawing confirms, numbers that only the drawing holds."""

import collections
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.data.synthetic import diagrams, geometry
from othink_jax.data.synthetic.figures import KINDS, Mark, Sketch
from othink_jax.data.synthetic.geometry import LEVELS, GeometryDifficulty
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError

SPLITS = ("train", "validation", "test")
DEFAULT = LEVELS["default"]
NAMES = [kind.name for kind in KINDS]


def problem_of(seed, split="train", difficulty=DEFAULT):
    return geometry.sample_problem(np.random.default_rng(seed), split, difficulty)


def measured(points, vertex, first, second):
    """Degrees between two rays, by the law of cosines."""
    a = math.dist(points[vertex], points[first])
    b = math.dist(points[vertex], points[second])
    c = math.dist(points[first], points[second])
    cosine = (a * a + b * b - c * c) / (2 * a * b)
    return math.degrees(math.acos(min(1, max(-1, cosine))))  # rounding may pass -1 on a line


def asked_angle(problem):
    """The angle that the question names, measured in the drawing."""
    diagram, name = problem.diagram, re.search(r"angle (\w+)[.?]$", problem.question)[1]
    if name == "x":
        (mark,) = (mark for mark in diagram.marks if mark.text == "x")
        return measured(diagram.points, mark.vertex, *mark.arms)
    if len(name) == 3:
        return measured(diagram.points, name[1], name[0], name[2])
    return measured(diagram.points, name, *sorted({"A", "B", "C"} - {name}))


@pytest.mark.parametrize("name", NAMES)
def test_answer_and_givens_are_what_a_protractor_reads_in_the_drawing(name):
    for seed in range(25):
        problem = problem_of(seed, difficulty=GeometryDifficulty(kinds=(name,)))
        assert asked_angle(problem) == pytest.approx(problem.answer, abs=1e-6)
        given = [mark for mark in problem.diagram.marks if mark.text != "x"]
        assert sorted(int(mark.text) for mark in given) == sorted(problem.givens)
        for mark in given:
            drawn = measured(problem.diagram.points, mark.vertex, *mark.arms)
            assert drawn == pytest.approx(int(mark.text), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_obeys_what_the_text_says(name):
    for seed in range(10):
        problem = problem_of(seed, difficulty=GeometryDifficulty(kinds=(name,)))
        fact, points = problem.kind.fact, problem.diagram.points
        at = {end: np.array(place) for end, place in points.items()}
        if "parallel" in fact:
            ab, cd = at["B"] - at["A"], at["D"] - at["C"]
            assert abs(ab[0] * cd[1] - ab[1] * cd[0]) < 1e-6
        if "equal" in fact:
            assert math.dist(at["A"], at["B"]) == pytest.approx(math.dist(at["A"], at["C"]))
        if "extended" in fact:
            assert measured(points, "C", "B", "D") == pytest.approx(180)
        if "OC bisects" in fact:
            assert measured(points, "O", "A", "C") == pytest.approx(measured(points, "O", "C", "B"))
        if "OD bisects" in fact:
            assert measured(points, "O", "B", "D") == pytest.approx(measured(points, "O", "D", "C"))
            assert measured(points, "O", "A", "B") == pytest.approx(180)
        if problem.diagram.radius is not None:
            for end in "ABC":
                assert math.dist(at["O"], at[end]) == pytest.approx(problem.diagram.radius)
        if "diameter" in fact:
            np.testing.assert_allclose((at["A"] + at["B"]) / 2, at["O"], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(SPLITS))
def test_steps_are_true_equations_that_lead_from_givens_to_answer(seed, split):
    problem = problem_of(seed, split)
    known = {*problem.givens, 2, 90, 180}
    for equation in problem.steps.split(","):
        left, right = equation.split("=")
        if left != "x":
            first, operator, second = re.fullmatch(r"(\d+)([-+/])(\d+)", left).groups()
            assert {int(first), int(second)} <= known
            a, b = int(first), int(second)
            assert int(right) == {"-": a - b, "+": a + b, "/": a / b}[operator]
        known.add(int(right))
    assert int(right) == problem.answer


@pytest.mark.parametrize("split", SPLITS)
def test_givens_stand_in_the_drawing_and_in_no_text(split):
    for seed in range(60):
        problem = problem_of(seed, split)
        assert not re.search(r"\d", problem.question)
        values = [text.text for text in problem.diagram.texts if text.is_value]
        assert sorted(v for v in values if v != "x") == sorted(map(str, problem.givens))


def test_picture_holds_every_text_in_its_place_and_ink():
    """Blue ink stands in the boxes of the values and nowhere else."""
    for seed in range(40):
        diagram = problem_of(seed).diagram
        pixels = np.asarray(diagrams.render(diagram)).astype(int)
        blue = pixels[..., 2] - pixels[..., 0] > 60
        outside = blue.copy()
        for text in diagram.texts:
            if not text.is_value:
                continue
            x, y = (round(coordinate) for coordinate in text.centre)
            window = np.s_[y - 7 : y + 8, x - 14 : x + 15]
            assert np.ptp(np.nonzero(blue[window])[0]) + 1 >= (10 if text.text != "x" else 6)
            outside[window] = False
        assert not outside.any()


def test_texts_keep_off_lines_edges_and_each_other():
    for seed in range(60):
        diagram = problem_of(seed).diagram
        plain = diagrams.Diagram(
            points=diagram.points,
            segments=diagram.segments,
            marks=(),
            radius=None,
            texts=(),
            paper=255,
        )
        ink = np.asarray(diagrams.render(plain)).min(axis=-1) < 200
        boxes = []
        for text in diagram.texts:
            x, y = text.centre
            reach = 4 + 4 * len(text.text) if text.is_value else 4
            boxes.append((x - reach + 4, y - 4, x + reach - 4, y + 4))
            left, top, right, bottom = (round(edge) for edge in boxes[-1])
            assert min(left, top) >= 0
            assert max(right, bottom) < 112
            assert not ink[top : bottom + 1, left : right + 1].any()
        for one, other in itertools.combinations(boxes, 2):
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_points_keep_off_the_arcs_of_angles(name):
    for seed in range(60):
        diagram = problem_of(seed, difficulty=GeometryDifficulty(kinds=(name,))).diagram
        for mark, text in itertools.product(diagram.marks, diagram.texts):
            if not text.is_value:
                start, opening = diagrams.sector(mark, diagram.points)
                x, y = diagram.points[mark.vertex]
                for turn in np.linspace(start, start + opening, 30):
                    dot = x + 9 * math.cos(turn), y + 9 * math.sin(turn)
                    assert math.dist(dot, text.centre) > 6.5  # a capital is 9 pixels high


def test_each_measure_is_nearest_to_its_own_vertex():
    for seed in range(60):
        diagram = problem_of(seed).diagram
        vertices = {mark.vertex for mark in diagram.marks}
        for mark, text in zip(diagram.marks, diagram.texts, strict=False):
            near = min(vertices, key=lambda v: math.dist(diagram.points[v], text.centre))
            assert (near, text.text) == (mark.vertex, mark.text)


def test_figure_without_room_for_its_number_is_not_drawn():
    needle = Sketch(
        points={"O": (0, 0), "A": (1, 0), "B": (1, 0.05)},
        segments=(("O", "A"), ("O", "B")),
        marks=(Mark(vertex="O", arms=("A", "B"), text="3"),),
    )
    assert diagrams.lay_out(np.random.default_rng(0), needle) is None


@pytest.mark.parametrize("split", SPLITS)
def test_every_figure_belongs_to_its_split_alone(split):
    for seed in range(200):
        problem = problem_of(seed, split)
        assert split_of(geometry.content(problem.kind, problem.givens)) == split


def test_splits_share_no_figure_with_the_same_givens():
    seen = {
        split: {
            (problem.kind.name, tuple(sorted(problem.givens)))
            for problem in (problem_of(seed, split) for seed in range(300))
        }
        for split in SPLITS
    }
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_every_kind_of_figure_is_in_every_split():
    for split, name in itertools.product(SPLITS, NAMES):
        problem = problem_of(0, split, GeometryDifficulty(kinds=(name,)))
        assert problem.kind.name == name


def test_no_answer_is_a_good_guess_in_the_test_split():
    answers = collections.Counter(problem_of(seed, "test").answer for seed in range(1000))
    assert max(answers.values()) < 130  # a tenth by construction, and four standard errors


def test_content_of_a_symmetric_figure_ignores_the_order_of_its_givens():
    by_name = {kind.name: kind for kind in KINDS}
    triangle, remote = by_name["triangle"], by_name["remote"]
    assert geometry.content(triangle, (40, 60)) == geometry.content(triangle, (60, 40))
    assert geometry.content(remote, (120, 60)) != geometry.content(remote, (60, 120))


@pytest.mark.parametrize("level", LEVELS)
def test_angles_of_a_level_are_multiples_of_its_step(level):
    difficulty = LEVELS[level]
    for seed in range(60):
        problem = problem_of(seed, difficulty=difficulty)
        assert problem.kind.name in difficulty.kinds
        assert all(angle % difficulty.step == 0 for angle in (*problem.givens, problem.answer))
        assert 20 <= problem.answer <= 160


def test_hard_level_leaves_the_grid_of_five_degrees():
    answers = collections.Counter(
        problem_of(seed, difficulty=LEVELS["hard"]).answer % 5 for seed in range(60)
    )
    assert len(answers) == 5


def test_difficulty_without_any_content_is_refused():
    difficulty = GeometryDifficulty(step=10, min_angle=45, kinds=("diameter",))
    refused = 0
    for split in SPLITS:
        try:
            problem_of(0, split, difficulty)
        except UserError as error:
            refused += 1
            assert "widen" in str(error)  # noqa: PT017 (some splits do have contents)
    assert refused
