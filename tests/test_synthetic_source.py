"""Promises of all synthetic tasks as sources of examples."""

import collections
import pickle
import re
import subprocess
import sys

import grain
import numpy as np
import pytest
from PIL import Image

from othink_jax.data.synthetic import (
    CountingDifficulty,
    GeometryDifficulty,
    GroundingDifficulty,
    SyntheticSource,
    generate,
    preview,
)
from othink_jax.data.synthetic.source import sample_problem
from othink_jax.data.synthetic.splits import split_of
from othink_jax.errors import UserError

EVERY_SPLIT = [
    *(("counting", split) for split in ("train", "validation", "test", "test-ood")),
    *(
        (task, split)
        for task in ("geometry", "grounding")
        for split in ("train", "validation", "test")
    ),
]


@pytest.mark.parametrize(("task", "split"), EVERY_SPLIT)
def test_a_problem_is_what_its_example_is_about_and_its_content_decides_the_split(task, split):
    for index in range(6):
        problem = sample_problem(task, split, index, seed=3)
        example = generate(task, split, index, seed=3)
        assert (problem.question, str(problem.answer)) == (example.question, example.answer)
        if split != "test-ood":
            assert split_of(problem.content) == split


def fingerprint(example):
    pixels = [image.tobytes() for image in example.images]
    return example.id, pixels, example.question, example.answer, example.solution


@pytest.mark.parametrize(("task", "split"), EVERY_SPLIT)
def test_example_is_a_function_of_task_split_seed_and_index(task, split):
    source = SyntheticSource(task, split, 6, seed=3)
    first = [fingerprint(source[index]) for index in range(6)]
    again = [fingerprint(source[index]) for index in reversed(range(6))]
    assert first == again[::-1]
    others = [fingerprint(generate(task, split, index, seed=4))[1:] for index in range(6)]
    assert not any(one[1:] == other for one in first for other in others)


def test_another_process_makes_the_same_examples():
    program = (
        "import hashlib; from othink_jax.data.synthetic import generate\n"
        "for task in ('counting', 'geometry', 'grounding'):\n"
        "    made = generate(task, 'train', 11, seed=5)\n"
        "    print(hashlib.sha256(made.images[0].tobytes()).hexdigest(), made.question)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)  # each with its own hash randomisation
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(("task", "split"), EVERY_SPLIT)
def test_example_has_one_small_rgb_image_and_a_solution_that_ends_in_its_answer(task, split):
    for index in range(20):
        example = generate(task, split, index)
        (image,) = example.images
        assert (image.mode, image.size) == ("RGB", (112, 112))
        numbers = 4 if task == "grounding" else 1
        assert len(re.findall(r"\d+", example.answer)) == numbers
        assert example.solution.startswith("<think>")
        assert example.solution.endswith(f"</think> <answer>{example.answer}</answer>")


@pytest.mark.parametrize(("task", "split"), EVERY_SPLIT)
def test_no_answer_is_a_good_guess(task, split):
    answers = collections.Counter(generate(task, split, index).answer for index in range(400))
    assert max(answers.values()) < 0.25 * 400
    assert len(answers) >= 10


@pytest.mark.parametrize("task", ["counting", "geometry", "grounding"])
def test_train_and_test_examples_of_the_same_number_differ(task):
    for index in range(10):
        train, test = (generate(task, split, index) for split in ("train", "test"))
        assert fingerprint(train)[1:] != fingerprint(test)[1:]


def test_shares_of_the_splits_are_70_10_and_20_percent():
    shares = collections.Counter(split_of(f"content {number}") for number in range(20_000))
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        # Five standard deviations of a binomial share.
        assert abs(shares[split] / 20_000 - share) < 5 * np.sqrt(share * (1 - share) / 20_000)


def test_source_survives_pickling_and_feeds_grain_workers():
    source = SyntheticSource("counting", "test", 8, difficulty=CountingDifficulty(max_objects=3))
    copy = pickle.loads(pickle.dumps(source))
    assert fingerprint(copy[7]) == fingerprint(source[7])
    dataset = grain.MapDataset.source(source).map(lambda example: example.answer)
    assert list(dataset) == [source[index].answer for index in range(8)]


def test_source_takes_numpy_indices_and_refuses_those_outside():
    source = SyntheticSource("geometry", "train", 3)
    assert source[np.int64(2)].id == source[2].id
    for index in (-1, 3):
        with pytest.raises(IndexError, match="3 examples"):
            source[index]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: generate("sorting", "train", 0), "counting, geometry, grounding"),
        (lambda: generate("counting", "dev", 0), "validation"),
        (lambda: generate("geometry", "test-ood", 0), "test-ood"),
        (lambda: generate("counting", "train", 0, seed=-1), "seed"),
        (lambda: generate("counting", "train", 0, difficulty=GeometryDifficulty()), "Counting"),
        (lambda: generate("geometry", "train", 0, difficulty=CountingDifficulty()), "Geometry"),
        (lambda: generate("grounding", "train", 0, difficulty=CountingDifficulty()), "Grounding"),
        (lambda: generate("counting", "train", 0, difficulty=GroundingDifficulty()), "Counting"),
        (lambda: generate("grounding", "test-ood", 0), "test-ood"),
        (lambda: SyntheticSource("counting", "train", 0), "size"),
        (lambda: SyntheticSource("geometry", "test-ood", 5), "test-ood"),
        (lambda: CountingDifficulty(min_objects=5, max_objects=4), "min_objects"),
        (lambda: CountingDifficulty(max_occlusion=1.0), "max_occlusion"),
        (lambda: CountingDifficulty(clutter=-1), "clutter"),
        (lambda: GeometryDifficulty(step=7), "step"),
        (lambda: GeometryDifficulty(min_angle=10), "min_angle"),
        (lambda: GeometryDifficulty(kinds=("pentagon",)), "pentagon"),
        (lambda: GeometryDifficulty(kinds=()), "at least one"),
    ],
)
def test_mistake_is_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("task", "split"), [("counting", "test-ood"), ("geometry", "test"), ("grounding", "test")]
)
def test_preview_shows_every_sample_with_its_picture(tmp_path, task, split):
    path = tmp_path / "sheet.png"
    preview(task, split, 5, path, seed=2)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    for index in range(5):
        picture = generate(task, split, index, seed=2).images[0]
        zoomed = np.asarray(picture.resize((224, 224), Image.Resampling.NEAREST))
        row, column = divmod(index, 4)
        top, left = 12 + row * (224 + 76 + 12), 12 + column * (224 + 12)
        np.testing.assert_array_equal(sheet[top : top + 224, left : left + 224], zoomed)
    with pytest.raises(UserError, match="count"):
        preview(task, split, 0, path)
