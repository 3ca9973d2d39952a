"""The grounding task: one thing is meant, and its box is what is seen of it."""

import collections
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.data.synthetic import counting, grounding, scenes, sprites
from othink_jax.data.synthetic.counting import Selection
from othink_jax.data.synthetic.grounding import LEVELS, GroundingDifficulty, GroundingProblem
from othink_jax.data.synthetic.scenes import Item, Look, Scene
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError
from othink_jax.rewards import grade

SPLITS = ("train", "validation", "test")


def problem_of(seed, split="train", difficulty=LEVELS["default"]):
    return grounding.sample_problem(np.random.default_rng(seed), split, difficulty)


def problem_with(*items, **selection):
    scene = Scene(items=items, backdrop="studio", clutter=0, texture=0)
    return GroundingProblem(scene=scene, selection=Selection(**selection), question="")


def named_in(question):
    """Indices of the attributes of a look whose words stand in a question, with these words."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    kinds = (set(sprites.SHAPES), set(sprites.COLOURS), set(sprites.SIZES))
    return {place: (words & kind).pop() for place, kind in enumerate(kinds) if words & kind}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_question_names_one_thing_of_the_scene(split, level):
    for seed in range(60):
        problem = problem_of(seed, split, LEVELS[level])
        named = named_in(problem.question)
        meant = [
            index
            for index, item in enumerate(problem.scene.items)
            if all(item.look[place] == word for place, word in named.items())
        ]
        assert meant == [problem.target]
        assert named


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), level=st.sampled_from(sorted(LEVELS)))
def test_the_box_holds_all_that_is_seen_of_the_thing_and_no_line_more(seed, level):
    problem = problem_of(seed, difficulty=LEVELS[level])
    shown = scenes.id_buffer(problem.scene.items) == problem.target
    left, top, right, bottom = problem.box
    assert shown[top:bottom, left:right].sum() == shown.sum()
    for edge in (
        shown[top, left:right],
        shown[bottom - 1, left:right],
        shown[top:bottom, left],
        shown[top:bottom, right - 1],
    ):
        assert edge.any()


def test_a_hand_made_box_ends_where_a_nearer_thing_hides_its_own():
    look = Look("cube", "red", "large")
    alone = Item(look=look, x=40, y=40, variant=1)
    nearer = Item(look=Look("cube", "blue", "large"), x=48, y=60, variant=1)
    rows, columns = np.nonzero(alone.sprite.mask)
    corner = 40 - alone.sprite.image.width // 2
    whole = (
        corner + columns.min(),
        corner + rows.min(),
        corner + columns.max() + 1,
        corner + rows.max() + 1,
    )
    assert problem_with(alone, colour="red").box == whole
    hidden = problem_with(alone, nearer, colour="red").box
    assert hidden[:2] == whole[:2]
    assert whole[1] < hidden[3] < whole[3]  # its lower edge is behind the other


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [(20, 20, "top left"), (56, 20, "top middle"), (92, 60, "middle right"), (40, 92, "bottom")],
)
def test_steps_say_in_which_third_the_thing_stands(x, y, words):
    thing = Item(look=Look("sphere", "red", "small"), x=x, y=y, variant=1)
    assert problem_with(thing, colour="red").steps.startswith(words)


def test_the_answer_is_a_box_that_the_grader_takes():
    problem = problem_of(0)
    left, top, right, bottom = problem.box
    assert problem.answer == f"[{left},{top},{right},{bottom}]"
    said = f"<think>{problem.steps}</think> <answer>{problem.answer}</answer>"
    assert grade(said, problem.answer, task="grounding").accuracy == 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_belongs_to_its_split_alone_and_is_none_of_anothers_counting(split):
    for seed in range(200):
        looks = tuple(item.look for item in problem_of(seed, split).scene.items)
        assert problem_of(seed, split).content == scenes.content(looks)
        assert split_of(scenes.content(looks)) == split
    counted = counting.sample_problem(np.random.default_rng(0), split, counting.LEVELS["easy"])
    assert counted.content == scenes.content(tuple(item.look for item in counted.scene.items))


def test_things_stand_everywhere_and_are_as_many_as_told():
    problems = [problem_of(seed) for seed in range(600)]
    thirds = collections.Counter(problem.steps for problem in problems)
    rows, columns = ("top", "middle", "bottom"), ("left", "middle", "right")
    assert set(thirds) == {f"{row} {column}" for row, column in itertools.product(rows, columns)}
    assert min(thirds.values()) > 20
    counts = collections.Counter(len(problem.scene.items) for problem in problems)
    assert set(counts) == set(range(1, 7))
    assert min(counts.values()) > 60  # 100 on average


def test_more_things_than_the_ground_holds_are_refused():
    with pytest.raises(UserError, match="do not fit"):
        GroundingDifficulty(max_objects=13)
