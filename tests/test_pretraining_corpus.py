"""The pre-training corpus: its mixture, its careless answers, and what it must never show."""

import collections
import operator
import re

import numpy as np
import pytest

from experiments import pretraining_corpus
from experiments.pretraining_corpus import CorpusConfig, corpus_texts, sample
from othink_jax.config import TINY_TEMPLATE
from othink_jax.data.synthetic import counting, geometry, grounding, scenes
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError

STYLES = re.compile(
    r"<answer>(?P<direct>[^<]+)</answer>"
    r"|<think>quick look</think> <answer>(?P<look>[^<]+)</answer>"
    r"|<think>(?P<thought>.+)</think> <answer>(?P<steps>[^<]+)</answer>"
)
KINDS_WITH_STYLES = ("counting", "geometry", "grounding")


def hasty_answer(problem, kind):
    if kind == "counting":
        return str(max(problem.answer - 1, 0))
    if kind == "geometry":
        return str(problem.answer + 10)
    left, top, right, bottom = problem.box
    shift = 10 if right <= 102 else -10  # of 112 pixels
    return f"[{left + shift},{top},{right + shift},{bottom}]"


def items(count, *, progress=1.0, **settings):
    config = CorpusConfig(**settings)
    for index in range(count):
        yield sample(np.random.default_rng([9, index]), config=config, progress=progress)


def only(kind, count, **settings):
    shares = dict.fromkeys(pretraining_corpus._KINDS, 0.0) | {kind: 1.0}
    return items(count, **(shares | settings))


@pytest.fixture
def problems(monkeypatch):
    """The problems that the corpus draws, in order, with the split it asked for."""
    drawn = []
    for task in (counting, geometry, grounding):

        def record(rng, split, difficulty, draw=task.sample_problem):
            drawn.append((split, draw(rng, split, difficulty)))
            return drawn[-1][1]

        monkeypatch.setattr(task, "sample_problem", record)
    return drawn


def fingerprint(item):
    return item.kind, [image.tobytes() for image in item.images], item.question, item.response


def test_sample_is_a_function_of_its_generator():
    assert list(map(fingerprint, items(40))) == list(map(fingerprint, items(40)))
    assert len({item.question + item.response for item in items(40)}) > 30


def test_every_kind_comes_as_often_as_its_share_says():
    counts = collections.Counter(item.kind for item in items(2000, grounding=0.3))
    config = CorpusConfig(grounding=0.3)
    total = sum(getattr(config, kind) for kind in pretraining_corpus._KINDS)
    for kind in pretraining_corpus._KINDS:
        share = getattr(config, kind) / total
        assert abs(counts[kind] / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)


def test_every_content_shown_belongs_to_the_training_split(problems):
    for _ in items(300, grounding=0.5):
        pass
    assert len(problems) > 200
    for split, problem in problems:
        if isinstance(problem, geometry.GeometryProblem):
            content = geometry.content(problem.kind, problem.givens)
        else:
            content = scenes.content(tuple(item.look for item in problem.scene.items))
        assert split == split_of(content) == "train"


@pytest.mark.parametrize("kind", KINDS_WITH_STYLES)
def test_direct_and_stepwise_answers_are_right_and_quick_looks_err_as_told(problems, kind):
    styles, wrong = collections.Counter(), collections.Counter()
    for item in only(kind, 1200, steps_style=0.25, direct_style=0.15, hasty_error=0.5):
        problem = problems[-1][1]
        assert item.question == TINY_TEMPLATE.format(question=problem.question)
        match = STYLES.fullmatch(item.response)
        answer = match["direct"] or match["look"] or match["steps"]
        assert match[item.style]
        if match["thought"]:
            assert match["thought"] == problem.steps
        right, hasty = str(problem.answer), hasty_answer(problem, kind)
        assert answer in ((right, hasty) if item.style == "look" else (right,))
        styles[item.style] += 1
        if problem.answer:  # one cannot overlook one of none
            wrong[item.style, answer != right] += 1
    for style, share in (("steps", 0.25), ("direct", 0.15), ("look", 0.6)):
        assert abs(styles[style] / 1200 - share) < 5 * np.sqrt(share * (1 - share) / 1200)
    looks = wrong["look", True] + wrong["look", False]
    assert abs(wrong["look", True] / looks - 0.5) < 5 * 0.5 / np.sqrt(looks)


@pytest.mark.parametrize("kind", KINDS_WITH_STYLES)
def test_without_hasty_errors_every_answer_is_right(problems, kind):
    for item in only(kind, 200, hasty_error=0.0):
        match = STYLES.fullmatch(item.response)
        answer = match["direct"] or match["look"] or match["steps"]
        assert answer == str(problems[-1][1].answer)


def test_quick_looks_begin_when_told():
    before = {item.style for item in only("counting", 200, progress=0.49, looks_from=0.5)}
    after = {item.style for item in only("counting", 200, progress=0.5, looks_from=0.5)}
    assert (before, after) == ({"direct", "steps"}, {"direct", "steps", "look"})


def test_training_begins_with_small_scenes(problems):
    def sizes(progress):
        problems.clear()
        for _ in only("describe", 200, progress=progress):
            pass
        return np.array([len(problem.scene.items) for _, problem in problems])

    assert np.mean(sizes(0.05) <= 3) > 0.7
    assert np.mean(sizes(0.2) <= 3) < 0.5


def test_descriptions_name_everything_in_order(problems):
    for item in only("describe", 50):
        looks = [thing.look for thing in problems[-1][1].scene.items]
        words = item.response.split()
        assert words[0::3] == [str(n) for n in range(1, len(looks) + 1)]
        assert words[1::3] == [look.colour for look in looks]
        assert words[2::3] == [look.shape for look in looks]


def test_comparisons_are_right_and_not_one_sided(problems):
    answers = collections.Counter()
    for item in only("compare", 300):
        first, second = re.findall(r"more (\w+) objects than (\w+) objects", item.question)[0]
        colours = [thing.look.colour for thing in problems[-1][1].scene.items]
        right = colours.count(first) > colours.count(second)
        assert item.response == ("yes" if right else "no")
        answers[item.response] += 1
    assert min(answers.values()) > 0.3 * 300


def test_places_are_thirds_of_the_picture(problems):
    for item in only("locate", 200):
        colour, shape = item.question.removesuffix("?").split()[-2:]
        things = [
            thing
            for thing in problems[-1][1].scene.items
            if (thing.look.colour, thing.look.shape) == (colour, shape)
        ]
        assert ("leftmost" in item.question) == (len(things) > 1)
        leftmost = min(things, key=lambda thing: thing.x)
        row, column = item.response.split()
        low, high = {"left": (0, 38), "middle": (37, 75), "right": (74, 112)}[column]
        assert low <= leftmost.x <= high
        low, high = {"top": (0, 38), "middle": (37, 75), "bottom": (74, 112)}[row]
        assert low <= leftmost.y <= high


def test_readings_are_the_measures_in_the_diagram_each_with_its_corner(problems):
    named = 0
    for item in only("read", 100):
        marks = problems[-1][1].diagram.marks
        read = re.findall(r"(?:([A-Z]) )?(\d+|x)", item.response)
        wanted = [(mark.vertex if mark.vertex in "ABCDO" else "", mark.text) for mark in marks]
        assert sorted(read) == sorted(wanted)
        named += any(corner for corner, _ in read)
    assert 50 < named < 100  # corners at a crossing of parallels have no name


def test_arithmetic_needs_no_image_and_is_right():
    for item in only("arithmetic", 100):
        assert item.images == ()
        a, sign, b = re.fullmatch(r"(\d+)([-+/])(\d+)=\?", item.question).groups()
        operation = {"-": operator.sub, "+": operator.add, "/": operator.truediv}[sign]
        assert int(item.response) == operation(int(a), int(b))


def test_texts_for_the_tokenizer_hold_every_question_and_response():
    texts = list(corpus_texts(30, 4))
    assert texts == list(corpus_texts(30, 4))
    for index in range(30):
        item = sample(np.random.default_rng([4, index]))
        assert texts[3 * index + 1] == f"user\n{item.question}"
        assert texts[3 * index + 2] == f"assistant\n{item.response}"


@pytest.mark.parametrize(
    "settings",
    [
        {"hasty_error": 1.5},
        {"steps_style": -0.1},
        {"easy_until": 2.0},
        {"steps_style": 0.7, "direct_style": 0.4},
    ],
)
def test_impossible_mixture_is_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        CorpusConfig(**settings)
