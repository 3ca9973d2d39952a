"""Several completions a question: pass@k, majority vote, and what an evaluation keeps of them."""

import dataclasses
import itertools
import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from othink_jax.checkpoint.load import load
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    RewardConfig,
    SamplingConfig,
    evaluation_settings,
)
from othink_jax.errors import UserError
from othink_jax.evaluation import PARTIAL, Kept, evaluate
from othink_jax.evaluation.sampler import DoesNotFitError, Sampler
from othink_jax.evaluation.samples import majority, measured_ks, over_samples, pass_at_k
from othink_jax.report.evaluation import accuracy_lines
from othink_jax.rewards import AnswerFormat, Grade, GradingPool, grade, regrade
from othink_jax.statistics import (
    mean_interval,
    means_of,
    share_interval,
    summaries,
    wilson_interval,
)
from tests.shallow import shallow

SAMPLES, COUNT = 3, 6


def test_pass_at_k_equals_values_by_hand():
    # Of 5 samples 2 are right: 3 of 5 wrong; C(3, 2) / C(5, 2) = 3 / 10; C(3, 4) = 0.
    assert [pass_at_k(2, 5, k) for k in (1, 2, 4)] == pytest.approx([0.4, 0.7, 1.0])
    assert [pass_at_k(right, 3, 3) for right in range(4)] == [0, 1, 1, 1]
    for wrong in ((4, 3, 1), (-1, 3, 1), (1, 3, 0), (1, 3, 4)):
        with pytest.raises(ValueError, match="has no meaning"):
            pass_at_k(*wrong)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = [any(subset) for subset in itertools.combinations(right, k)]
    expected = statistics.fmean(subsets)
    assert pass_at_k(sum(right), len(right), k) == pytest.approx(expected, abs=1e-12)


def test_ks_are_powers_of_two_and_the_number_of_samples():
    assert [measured_ks(n) for n in (2, 6, 8)] == [[1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (("3", "4", "4"), 1),
        (("4", "3", "3", "4"), 0),  # of a tie, the one that came first
        (("0.5", "7", "7", r"\frac{1}{2}", "1/2"), 0),  # numbers by their value
        (("no", "Yes", "yes"), 1),
        (("2", "(B)", "b", "B."), 1),
        (("5", "5 cm", "5 cm"), 1),  # a unit makes another answer
        ([None, "3", None, "", " "], 1),  # no answers
        (("x" * 300, "y" * 300, "y" * 300), 1),  # too long to be read, and not all the same
        ([None, ""], None),
    ],
)
def test_the_majority_goes_by_what_answers_read(answers, winner):
    assert majority(answers) == winner


def test_an_answer_votes_as_it_is_marked_and_one_that_takes_too_long_to_find_does_not():
    texts = ["<a>4</a> <answer>5</answer>", "<answer>5</answer>"]
    with GradingPool(answers=AnswerFormat("a")) as pool:
        assert pool.extract_all(texts) == ["4", None]
    hard = AnswerFormat(pattern=r"((?:x+x+)+)y")
    with GradingPool(answers=hard, timeout_s=0.5, workers=1) as pool:
        assert pool.extract_all(["xxy", "x" * 60]) == ["xx", None]


def test_shares_have_the_interval_of_questions_and_not_of_completions():
    shares = [0.0, 0.5, 1.0, 0.5]
    _, low, high = mean_interval(shares)
    assert share_interval(shares) == (max(0, low), min(1, high))
    assert share_interval([1.0, 0.0, 1.0]) == wilson_interval(2, 3)
    assert share_interval([0.5]) == (0, 1)
    assert means_of([1, 0, 1, 1, 0, 0], 2) == [0.5, 1.0, 0.0]


def test_rewards_of_samples_have_the_interval_of_their_questions():
    measured = {"points": {"values": [1.0, 3.0, 2.0, 6.0], "maximum": 6.0, "failed": 0}}
    made = summaries(measured, samples=2)["points"]
    assert made["interval"] == list(mean_interval([2.0, 4.0])[1:])
    assert (made["mean"], made["full_share"]) == (3, 0.25)


def test_what_samples_say_of_two_questions():
    """Of the first, 1 of 3 is right and the majority is not; the second has no answer at all."""
    grades = [Grade(accuracy=float(n == 0), format=1.0) for n in range(6)]
    made = over_samples(["4", "5", "5", None, None, ""], grades, 3).summary()
    assert {k: one["mean"] for k, one in made["pass_at"].items()} == pytest.approx(
        {"1": 1 / 6, "2": 1 / 3, "3": 1 / 2}
    )
    assert made["pass_at"]["3"]["interval"] == list(wilson_interval(1, 2))
    assert made["majority"] == {"mean": 0, "interval": list(wilson_interval(0, 2)), "without": 1}


@pytest.mark.parametrize(
    ("samples", "temperature", "said"), [(0, 1.0, "samples must be >= 1"), (2, 0.0, "temperature")]
)
def test_samples_that_would_all_be_the_same_are_refused(tmp_path, samples, temperature, said):
    sampling = SamplingConfig(temperature=temperature)
    with pytest.raises(UserError, match=said):
        EvaluateConfig(
            model="tiny",
            out=tmp_path,
            data=DataConfig(task="counting"),
            samples=samples,
            sampling=sampling,
        )


@pytest.fixture(scope="module")
def tiny():
    return load(shallow())


@pytest.fixture
def config(tmp_path):
    return EvaluateConfig(
        model=shallow(),
        out=tmp_path / "out",
        data=DataConfig(
            task="counting",
            split="test",
            difficulty="easy",
            template=TINY_TEMPLATE,
            max_prompt_tokens=49,  # half of the questions have more
            min_pixels=None,
            max_pixels=None,
        ),
        count=COUNT,
        samples=SAMPLES,
        batch_size=2,
        sampling=SamplingConfig(temperature=0.8, max_new_tokens=24),
        seed=1,
        reward=RewardConfig(grading_workers=1),
    )


def rows_of(config):
    return [
        json.loads(line) for line in (config.out / "predictions.jsonl").read_text().splitlines()
    ]


def without_place(result):
    """Of an evaluation, what does not depend on where and how fast it was made."""
    settings = {name: value for name, value in result["config"].items() if name != "out"}
    return result | {"seconds": 0, "config": settings}


def test_every_sample_of_every_question_is_kept_and_counts(tiny, config):
    rewarded = RewardConfig(grading_workers=1, functions=("accuracy",))
    result = evaluate(dataclasses.replace(config, reward=rewarded), checkpoint=tiny)
    rows = rows_of(config)
    ids = [int(row["id"][-1]) for row in rows]
    assert ids == [
        2,
        2,
        2,
        3,
        3,
        3,
        5,
        5,
        5,
        0,
        0,
        0,
        1,
        1,
        1,
        4,
        4,
        4,
    ]  # what cannot be read comes last
    assert [row["sample"] for row in rows] == [0, 1, 2] * COUNT
    assert len({row["model_output"] for row in rows[:9]}) > 3  # not the same one all the time
    right = [float(row["correct"]) for row in rows]
    assert not {0.0, 1.0}.issuperset(means_of(right, SAMPLES))  # of a question, some are right
    assert right == [grade(row["model_output"], row["ground_truth"]).accuracy for row in rows]
    assert (result["n"], result["unreadable"], result["samples"]) == (COUNT, 3, SAMPLES)
    assert result["accuracy"] == statistics.fmean(right)
    assert result["pass_at"]["1"]["mean"] == pytest.approx(result["accuracy"], abs=1e-12)
    assert result["interval"] == list(share_interval(means_of(right, SAMPLES)))
    over_questions = mean_interval(means_of(right, SAMPLES))[1:]
    assert result["rewards"]["accuracy"]["interval"] == list(over_questions)
    any_right = [any(right[at : at + SAMPLES]) for at in range(0, len(right), SAMPLES)]
    assert result["pass_at"]["3"]["mean"] == statistics.fmean(any_right)
    assert result["majority"]["without"] >= 3
    assert (
        regrade(config.out / "predictions.jsonl", task="counting")["accuracy"] == result["accuracy"]
    )
    said = accuracy_lines(result)
    assert f"n = {COUNT}, strict grader, temperature 0.8, 3 samples a question)" in said[0]
    assert [line.split(" ")[0] for line in said[1:]] == ["pass@1", "pass@2", "pass@3", "majority"]


def test_the_prompts_of_a_batch_are_given_to_the_sampler_once(tiny, config, monkeypatch):
    drawn = []
    sampled = Sampler._sample

    def noted(self, prompts, pad, rows):
        made = sampled(self, prompts, pad, rows)
        drawn.append((len(prompts), made))
        return made

    monkeypatch.setattr(Sampler, "_sample", noted)
    evaluate(dataclasses.replace(config, count=4), checkpoint=tiny)
    [(prompts, made)] = drawn
    assert (prompts, made.tokens.shape) == (2, (2, SAMPLES, 24))  # the others are too long


def test_of_interrupted_samples_nothing_is_drawn_twice_or_otherwise(
    tiny, config, tmp_path, monkeypatch
):
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    result = evaluate(whole, checkpoint=tiny)
    add = Kept.add

    def interrupted(self, answers):
        add(self, answers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, checkpoint=tiny)
    assert len((config.out / PARTIAL).read_text().splitlines()) == 3  # and what has begun
    fewer = dataclasses.replace(config, samples=1)
    with pytest.raises(UserError, match="answers made with samples = 3, and not 1"):
        evaluate(fewer, checkpoint=tiny)
    added = []
    monkeypatch.setattr(Kept, "add", lambda *given: (added.append(given[1]), add(*given)))
    assert without_place(evaluate(config, checkpoint=tiny)) == without_place(result)
    assert len(added) == 1
    assert rows_of(config) == rows_of(whole)


def test_samples_that_do_not_fit_are_named_with_what_takes_less(tiny, config, monkeypatch):
    def too_large(self, prompts, pad, rows):
        raise DoesNotFitError("a device has no memory for it")

    monkeypatch.setattr(Sampler, "_sample", too_large)
    with pytest.raises(UserError, match=r"3 of 6 questions do not fit .* fewer --samples take"):
        evaluate(config, checkpoint=tiny)


def test_one_sample_is_an_evaluation_as_it_has_always_been(tiny, config):
    config = dataclasses.replace(config, samples=1)
    result = evaluate(config, checkpoint=tiny)
    assert not {"samples", "pass_at", "majority"} & result.keys()
    assert "samples" not in result["config"]
    assert "sample" not in rows_of(config)[0]
    assert evaluation_settings(dataclasses.replace(config, samples=2))["samples"] == 2
    assert len(accuracy_lines(result)) == 1
