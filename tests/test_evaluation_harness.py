"""Results in the form of lm-evaluation-harness."""

import dataclasses
import json

import pytest

from othink_jax.config import DataConfig, EvaluateConfig, SamplingConfig
from othink_jax.evaluation import evaluate, harness
from othink_jax.evaluation.answers import Prediction
from othink_jax.evaluation.harness import HARNESS_RESULTS, harness_results
from othink_jax.evaluation.result import Judged
from othink_jax.evaluation.samples import over_samples
from othink_jax.rewards import Grade
from tests.shallow import shallow
from tests.test_evaluation_several import settings

RESULT = {
    "n": 4,
    "seconds": 1.5,
    "device": "1 x cpu",
    "versions": {"othink_jax": "1", "transformers": "4"},
}


def judged(answers, right, samples=1):
    grades = [Grade(accuracy=float(one), format=1.0) for one in right]
    return Judged(
        predictions=[
            Prediction(
                number=place // samples,
                sample=place % samples,
                id=str(place),
                question="q",
                ground_truth="1",
                model_output=answer,
                tokens=1,
                finished=True,
            )
            for place, answer in enumerate(answers)
        ],
        verdicts={},
        chosen=grades,
        scores=[],
        sampled=over_samples(answers, grades, samples) if samples > 1 else None,
    )


def config(**changed):
    data = DataConfig(dataset="someone/charts", split="test", limit=4)
    return EvaluateConfig(**{"model": "runs/a", "out": "out", "data": data} | changed)


def read(results):
    """As `make_table` of the harness does: value and error, by task, metric and filter."""
    found = {}
    for task, row in results["results"].items():
        assert {task} == results["versions"].keys() == results["n-shot"].keys()
        for key, value in row.items():
            metric, _, under = key.partition(",")
            if metric != "alias" and not metric.endswith("_stderr"):
                found[task, metric, under] = value, row[f"{metric}_stderr,{under}"]
    return found


def test_an_accuracy_and_its_standard_error_over_questions_by_hand():
    made = harness_results(config(), judged(list("1211"), [1, 0, 1, 1]), RESULT)
    # Standard deviation 0.5 of one sample, over the root of 4.
    assert read(made) == {("someone_charts", "acc", "none"): (0.75, pytest.approx(0.25))}
    assert made["results"]["someone_charts"]["alias"] == "someone/charts, test"
    assert made["n-samples"] == {"someone_charts": {"original": 4, "effective": 4}}
    assert made["higher_is_better"] == {"someone_charts": {"acc": True}}
    assert made["configs"]["someone_charts"]["dataset_path"] == "someone/charts"
    assert made["config"]["model_args"] == "pretrained=runs/a,dtype=float32"
    assert made["config"]["limit"] == 4
    assert made["model_name_sanitized"] == "runs__a"
    json.dumps(made, allow_nan=False)


def test_samples_of_a_question_are_no_questions():
    sampled = config(samples=2, sampling=SamplingConfig(temperature=1.0))
    made = harness_results(sampled, judged(list("12111122"), [1, 0, 1, 1, 1, 1, 0, 0], 2), RESULT)
    found = {metric: value for (_, metric, _), value in read(made).items()}
    # Means of the questions: 0.5, 1, 1, 0; of two samples one is right in three of them.
    half = pytest.approx((0.625, (11 / 48 / 4) ** 0.5))
    assert found == {
        "acc": half,
        "pass@1": half,
        "pass@2": (0.75, pytest.approx(0.25)),
        "maj@2": (0.75, pytest.approx(0.25)),
    }
    assert made["configs"]["someone_charts"]["repeats"] == 2
    assert made["config"]["gen_kwargs"]["do_sample"] is True


def test_questions_about_the_same_thing_are_a_cluster_and_one_has_no_error(monkeypatch):
    monkeypatch.setattr(harness, "contents_of", lambda config, numbers: dict.fromkeys(numbers, 0))
    made = harness_results(config(), judged(list("12"), [1, 0]), RESULT)
    assert list(read(made).values()) == [(0.5, "N/A")]


def test_the_file_stands_beside_the_result_where_it_is_asked_for(tmp_path):
    asked = settings(model=shallow(), out=tmp_path / "out", count=4, lm_eval_json=True)
    result = evaluate(asked)
    made = json.loads((asked.out / HARNESS_RESULTS).read_text())
    assert read(made)["counting", "acc", "none"][0] == result["accuracy"]
    assert made["config"]["device"] == result["device"]
    without = dataclasses.replace(asked, out=tmp_path / "without", lm_eval_json=False)
    assert "lm_eval_json" not in evaluate(without)["config"]
    assert not (without.out / HARNESS_RESULTS).exists()
