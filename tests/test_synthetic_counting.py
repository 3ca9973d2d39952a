"""The counting task: right answers, scenes that show them, splits that share no scene."""

import collections
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.data.synthetic import counting, scenes, sprites
from othink_jax.data.synthetic.counting import LEVELS, CountingDifficulty, Selection
from othink_jax.data.synthetic.scenes import Item, Look, Scene
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError

SPLITS = ("train", "validation", "test", "test-ood")
DEFAULT = LEVELS["default"]


def problem_of(seed, split="train", difficulty=DEFAULT):
    return counting.sample_problem(np.random.default_rng(seed), split, difficulty)


def counted_from_pixels(question, items):
    """Answer the question's words from the things that the id buffer shows."""
    shown = [items[index].look for index in set(scenes.id_buffer(items).ravel()) - {-1}]
    words = set(re.findall(r"[a-z]+", question.lower()))

    def asked(look):
        return all(
            not words & set(names) or value in {word.removesuffix("s") for word in words & names}
            for value, names in (
                (look.colour, set(sprites.COLOURS)),
                (look.size, set(sprites.SIZES)),
                (look.shape, {f"{shape}s" for shape in sprites.SHAPES}),
            )
        )

    return sum(map(asked, shown))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", LEVELS)
def test_answer_is_what_a_recount_of_the_picture_gives(split, level):
    for seed in range(60):
        problem = problem_of(seed, split, LEVELS[level])
        assert problem.answer == counted_from_pixels(problem.question, problem.scene.items)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(SPLITS), occlusion=st.floats(0.05, 0.6))
def test_nothing_is_hidden_more_than_allowed(seed, split, occlusion):
    difficulty = CountingDifficulty(max_occlusion=occlusion)
    scene = problem_of(seed, split, difficulty).scene
    buffer = scenes.id_buffer(scene.items)
    for index, item in enumerate(scene.items):
        alone = np.count_nonzero(scenes.id_buffer([item]) == 0)
        assert np.count_nonzero(buffer == index) >= (1 - occlusion) * alone


def test_hand_made_overlap_is_measured():
    """Two large cubes, the nearer one shifted by a quarter of a width, and one far from both."""
    look = Look("cube", "red", "large")
    behind = Item(look=look, x=40, y=40, variant=1)
    before = Item(look=look, x=47, y=47, variant=1)
    away = Item(look=look, x=90, y=90, variant=1)
    mask = behind.sprite.mask
    hidden = np.count_nonzero(mask[7:, 7:] & mask[:-7, :-7])
    shown = scenes.visible([behind, before, away])
    np.testing.assert_allclose(shown, [1 - hidden / np.count_nonzero(mask), 1, 1])


def test_picture_shows_each_thing_in_its_colour_where_the_id_buffer_says():
    hues = {name: np.array(rgb, float) for name, rgb in sprites.COLOURS.items()}
    right = total = 0
    for seed in range(30):
        scene = problem_of(seed).scene
        pixels = np.asarray(scenes.render(scene)).astype(float)
        buffer = scenes.id_buffer(scene.items)
        for index, item in enumerate(scene.items):
            # Without the shading: only the direction away from grey.
            seen = pixels[buffer == index].mean(axis=0)
            likeness = {
                name: np.dot(seen - seen.mean(), hue - hue.mean())
                / np.linalg.norm(hue - hue.mean())
                for name, hue in hues.items()
            }
            right += max(likeness, key=likeness.__getitem__) == item.look.colour
            total += 1
    assert right == total


def test_things_are_large_enough_to_see():
    shapes = sprites.SHAPES + sprites.OOD_SHAPES
    for shape, variant in itertools.product(shapes, range(sprites.VARIANTS)):
        small, large = (
            np.ptp(np.nonzero(sprites.sprite(shape, "red", size, variant).mask)[1]) + 1
            for size in ("small", "large")
        )
        assert small >= 13
        assert large >= small + 6


def test_every_picture_lies_within_the_paper():
    for seed in range(60):
        for item in problem_of(seed, difficulty=LEVELS["hard"]).scene.items:
            left, top = item.corner
            assert 0 <= left <= 112 - item.sprite.image.width
            assert 0 <= top <= 112 - item.sprite.image.height


def test_clutter_and_texture_do_not_depend_on_the_things():
    bare = Scene(items=(), backdrop="studio", clutter=12, texture=7)
    marks = Scene(items=(), backdrop="studio", clutter=0, texture=7)
    difference = np.abs(
        np.asarray(scenes.render(bare)).astype(int) - np.asarray(scenes.render(marks))
    )
    changed = difference.max(axis=-1) > 0
    assert 0 < changed.mean() < 0.02  # small marks
    picture = np.asarray(scenes.render(bare)).astype(int)
    assert np.ptp(picture, axis=-1).max() == 0  # grey, as no thing is


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_scene_belongs_to_its_split_alone(split):
    for seed in range(300):
        looks = tuple(item.look for item in problem_of(seed, split).scene.items)
        assert split_of(scenes.content(looks)) == split


def test_splits_share_no_scene_and_each_has_small_ones():
    seen = collections.defaultdict(set)
    for split, seed in itertools.product(("train", "validation", "test"), range(400)):
        problem = problem_of(seed, split, CountingDifficulty(max_objects=2))
        seen[split].add(tuple(sorted(item.look for item in problem.scene.items)))
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert all(any(len(looks) == 1 for looks in contents) for contents in seen.values())


def test_content_ignores_place_and_order_but_no_attribute():
    one, other = Look("sphere", "red", "small"), Look("cube", "red", "small")
    assert scenes.content((one, other)) == scenes.content((other, one))
    alike = [(one,), (one, one), (one._replace(size="large"),), (one._replace(colour="blue"),)]
    assert len({scenes.content(looks) for looks in alike}) == 4


def test_ood_scenes_have_other_shapes_and_other_ground_and_questions_without_shapes():
    for seed in range(100):
        ood, train = problem_of(seed, "test-ood"), problem_of(seed, "train")
        assert {item.look.shape for item in ood.scene.items} <= set(sprites.OOD_SHAPES)
        assert {item.look.shape for item in train.scene.items} <= set(sprites.SHAPES)
        assert (ood.scene.backdrop, train.scene.backdrop) == ("outdoors", "studio")
        assert ood.selection.shape is None
    assert not set(sprites.OOD_SHAPES) & set(sprites.SHAPES)


def test_steps_number_the_things_asked_for_from_left_to_right():
    looks = [
        Look("cube", "blue", "large"),
        Look("sphere", "red", "small"),
        Look("cylinder", "red", "large"),
    ]
    items = tuple(
        Item(look=look, x=20 + 30 * place, y=60, variant=1) for place, look in enumerate(looks)
    )
    scene = Scene(items=items, backdrop="studio", clutter=0, texture=0)

    def steps(**selection):
        return counting.CountingProblem(
            scene=scene, selection=Selection(**selection), question=""
        ).steps

    assert steps() == "1 blue cube 2 red sphere 3 red cylinder"
    assert steps(colour="red") == "1 red sphere 2 red cylinder"
    assert steps(size="large", shape="cube") == "1 blue cube"
    assert steps(colour="green") == "none"


def test_items_stand_in_reading_order():
    """In bands of a quarter of the picture from top to bottom, in each from left to right."""
    for seed in range(40):
        places = [(item.y // 28, item.x) for item in problem_of(seed).scene.items]
        assert places == sorted(places)


def test_questions_are_short_and_vary():
    questions = {problem_of(seed).question for seed in range(300)}
    assert max(len(question.split()) for question in questions) <= 12
    assert len(questions) > 30
    assert any(problem_of(seed).answer == 0 for seed in range(100))


def test_numbers_of_things_are_spread_evenly():
    counts = collections.Counter(len(problem_of(seed).scene.items) for seed in range(900))
    assert set(counts) == set(range(1, 10))
    assert min(counts.values()) > 60  # 100 on average
    assert max(counts.values()) < 140


def test_more_things_than_the_ground_holds_are_refused():
    with pytest.raises(UserError, match="do not fit"):
        CountingDifficulty(min_objects=13, max_objects=13)


def test_the_most_things_find_room_without_overlap():
    difficulty = CountingDifficulty(min_objects=12, max_objects=12, max_occlusion=0.0)
    assert scenes.visible(problem_of(0, difficulty=difficulty).scene.items).min() == 1
