"""Several models in one call: paired tests between them, and going on where it stopped."""

import dataclasses
import json
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file

from othink_jax import cli
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.data.synthetic import LEVELS
from othink_jax.data.synthetic.source import sample_problem
from othink_jax.errors import UserError
from othink_jax.evaluation import PARTIAL, Kept, accuracy, evaluate, evaluate_several
from othink_jax.evaluation.paired import Answered, asked_otherwise, compared
from othink_jax.evaluation.several import folder_names
from othink_jax.report.evaluation import comparison_tables
from othink_jax.statistics import difference_interval, holm, mcnemar, mean_interval
from tests.shallow import shallow

COUNT = 8


def settings(**changed):
    data = DataConfig(
        task=changed.pop("task", "counting"),
        split="test",
        difficulty="easy",
        template=TINY_TEMPLATE,
        max_prompt_tokens=49,  # half of the questions have more
        min_pixels=None,
        max_pixels=None,
    )
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=24)
    made = {"data": data, "sampling": sampling, "reward": RewardConfig(grading_workers=1)}
    return EvaluateConfig(**{"count": COUNT, "batch_size": 2} | made | changed)


FILE = dataclasses.replace(
    settings(model="a", out="out"), data=DataConfig(dataset="questions.jsonl", split="test")
)


def answered(*right):
    """Of each question, whether its answer is right; or of each of its samples."""
    samples = [[one] if isinstance(one, bool) else list(one) for one in right]
    return Answered(
        result={"model": "m", "accuracy": 0.5, "interval": [0, 1], "examples": "x", "n": 1},
        questions={n: (f"id {n}", "q", "a") for n in range(len(right))},
        right=dict(enumerate(samples)),
    )


def test_each_model_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert folder_names(["tiny", "Qwen/Qwen2-VL-2B"]) == ["tiny", "Qwen2-VL-2B"]
    assert folder_names(["a/final", "b/final/"]) == ["a-final", "b-final"]
    assert folder_names(["r/checkpoints/5", "r/checkpoints/best"]) == ["r-5", "r-best"]
    assert folder_names(["a/checkpoints/5", "b/checkpoints/5"]) == ["a-5", "b-5"]
    assert folder_names([".", "x"]) == [tmp_path.name, "x"]
    with pytest.raises(UserError, match=r"a model is given twice: a, \./b/\.\./a"):
        folder_names(["a", "./b/../a"])


def test_pairs_have_p_values_by_hand_and_are_corrected_for_their_number():
    made = compared(
        {
            "a": answered(*[False] * 6, True, True),
            "b": answered(*[True] * 6, True, False),
            "c": answered(*[True] * 6, True, True),
        },
        FILE,
    )
    pairs = {(pair["first"], pair["second"]): pair for pair in made["pairs"]}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    # Of 7 questions that tell a from b, 6 go one way: 2 * (7 + 1) / 2^7; all 6 of a and c; 1 of 1.
    ps = [0.125, 0.03125, 1.0]
    assert [pair["p"] for pair in pairs.values()] == pytest.approx(ps)
    assert [pair["p_holm"] for pair in pairs.values()] == pytest.approx(holm(ps))
    first = pairs["a", "b"]
    assert (first["difference"], first["first_better"], first["second_better"]) == (5 / 8, 1, 6)
    differences = [1.0] * 6 + [0.0, -1.0]
    assert first["interval"] == pytest.approx([mean_interval(differences)[1], 1.0])


def test_models_that_no_question_tells_apart_have_no_interval():
    [pair] = compared({"a": answered(True, False), "b": answered(True, False)}, FILE)["pairs"]
    assert (pair["difference"], pair["interval"], pair["p"]) == (0, None, 1)
    assert difference_interval([1.0], [0]) is None


def test_samples_of_a_question_are_taken_together():
    """Four samples more right of one question are one piece of evidence, and not four."""
    few, many = [[False] * 4, [True] * 4], [[True] * 4, [True] * 4]
    [pair] = compared({"a": answered(*few), "b": answered(*many)}, FILE)["pairs"]
    assert (pair["p"], pair["difference"], pair["second_better"]) == (1, 0.5, 1)


def test_questions_that_show_the_same_thing_are_taken_together():
    config = settings(model="a", out="out", task="geometry")
    easy = LEVELS["geometry"]["easy"]
    shown = [
        sample_problem("geometry", "test", number, difficulty=easy).content for number in range(60)
    ]
    assert len(set(shown)) < 60
    first, second = [[number % 3 == kind for number in range(60)] for kind in (0, 1)]
    second = [True] * 30 + second[30:]
    [pair] = compared({"a": answered(*first), "b": answered(*second)}, config)["pairs"]
    assert pair["p"] == mcnemar(first, second, shown) != mcnemar(first, second)


def test_models_that_have_answered_other_questions_are_not_compared():
    other = answered(True, False)
    other = dataclasses.replace(other, questions={**other.questions, 1: ("id 1", "q", "b")})
    with pytest.raises(UserError, match="a and b have not answered the same questions"):
        compared({"a": answered(True, False), "b": other}, FILE)


def test_what_models_are_asked_otherwise_is_said():
    alike = settings(model="a", out="a", batch_size=7, by=("x",))
    fewer = SamplingConfig(temperature=0.0, max_new_tokens=24, top_k=3)
    assert asked_otherwise({"a": alike, "b": settings(model="b", out="b", sampling=fewer)}) == {}
    data = dataclasses.replace(alike.data, template="{question}")
    found = asked_otherwise({"a": alike, "b": dataclasses.replace(alike, data=data)})
    assert found == {"data.template": {"a": TINY_TEMPLATE, "b": "{question}"}}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model that answers otherwise than the usual one."""
    place = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(shallow(), place)
    change(place)
    return str(place)


def change(place):
    weights = load_file(place / "model.safetensors")
    norm = "model.norm.weight"
    save_file({**weights, norm: weights[norm] * 0.5}, place / "model.safetensors")


@pytest.fixture
def configs(tmp_path, other):
    return [settings(model=model, out=tmp_path / "out") for model in (shallow(), other)]


def told():
    names = []
    return names, lambda name, result: names.append(name)


def without_place(result):
    return {name: x for name, x in result.items() if name not in ("seconds", "config")}


def test_an_interrupted_call_goes_on_and_is_that_of_one_that_was_not(
    configs, tmp_path, monkeypatch
):
    own, name = tmp_path / "own", folder_names([config.model for config in configs])
    alone = [
        evaluate(dataclasses.replace(config, out=own / str(n))) for n, config in enumerate(configs)
    ]
    out, added, add = configs[0].out, [], Kept.add

    def interrupted(self, answers):
        add(self, answers)
        added.append(self.path.parent.name)
        if len(added) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_several(configs, done=told()[1])
    assert added == [name[0], name[0], name[1]]
    assert {file.name for file in out.iterdir()} == set(name)
    done, tell = told()
    made = evaluate_several(configs, done=tell)
    assert done == name
    assert added[3:] == [name[1]]  # nothing of the first model is answered again
    assert made == json.loads((out / "comparison.json").read_text())
    for place, single in zip(name, alone, strict=True):
        assert {file.name for file in (out / place).iterdir()} == {
            "predictions.jsonl",
            "result.json",
        }
        found = json.loads((out / place / "result.json").read_text())
        assert without_place(found) == without_place(single)
        assert made["models"][place]["accuracy"] == single["accuracy"]
    assert made["n"] == COUNT
    [pair] = made["pairs"]
    assert pair["difference"] == pytest.approx(alone[1]["accuracy"] - alone[0]["accuracy"])
    with pytest.raises(UserError, match="holds a comparison already"):
        evaluate_several(configs, done=tell)


def test_answers_of_a_model_that_has_changed_meanwhile_are_not_compared(
    configs, other, tmp_path, monkeypatch
):
    mine = tmp_path / "mine"
    shutil.copytree(other, mine)
    configs = [dataclasses.replace(configs[0], model=str(mine)), configs[1]]

    def stop(name, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_several(configs, done=stop)
    before = (configs[0].out / "mine" / "result.json").read_bytes()
    change(mine)
    with pytest.raises(UserError, match="mine holds answers of another model"):
        evaluate_several(configs, done=told()[1])
    assert (configs[0].out / "mine" / "result.json").read_bytes() == before


def test_one_model_is_in_memory_at_a_time(configs, monkeypatch):
    load, alive, sizes = accuracy.load, [], []

    def loaded(*given, **named):
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        made = load(*given, **named)
        sizes.append(sum(array.nbytes for array in jax.tree.leaves(made.params)))
        return made

    monkeypatch.setattr(accuracy, "load", loaded)
    evaluate_several(configs, done=told()[1])
    assert alive[1] - alive[0] < sizes[0] / 10


def test_a_question_that_only_one_of_them_can_read_is_the_same_question(configs):
    data = dataclasses.replace(configs[1].data, max_prompt_tokens=None)
    configs[1] = dataclasses.replace(configs[1], data=data)
    made = evaluate_several(configs, done=told()[1])
    limits = made["asked_otherwise"].pop("data.max_prompt_tokens")
    assert list(limits.values()) == [49, None]
    assert not made["asked_otherwise"]
    files = [configs[0].out / name / "predictions.jsonl" for name in limits]
    read = [file.read_text().count('"readable": true') for file in files]
    assert read == [COUNT // 2, COUNT]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("nowhere/at/all", "there is no directory nowhere/at/all"),
        (shallow(), "a model is given twice"),
        ("empty", "has no config.json"),
    ],
)
def test_what_is_wrong_with_any_model_is_said_before_one_is_loaded(
    configs, tmp_path, monkeypatch, second, said
):
    monkeypatch.setattr(accuracy, "load", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        evaluate_several(
            [configs[0], dataclasses.replace(configs[1], model=second)], done=told()[1]
        )
    assert not configs[0].out.exists()


def test_a_result_that_stands_there_is_not_replaced(configs):
    name = folder_names([config.model for config in configs])[1]
    place = configs[0].out / name
    place.mkdir(parents=True)
    (place / "result.json").write_text("{}")
    with pytest.raises(UserError, match=f"{name} holds a result already"):
        evaluate_several(configs, done=told()[1])
    assert {file.name for file in configs[0].out.iterdir()} == {name}


def test_the_command_takes_several_models_and_shows_their_differences(
    configs, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    models = [config.model for config in configs]
    words = ("--task", "counting", "--preset", "tiny", "--count", "3", "--max-new-tokens", "12")
    cli.run(["evaluate", *models, *words, "--out", str(tmp_path / "said")])
    said = capsys.readouterr().out
    first, second = folder_names(models)
    assert f"{first}:\naccuracy " in said
    assert f"\n{second} - {first}  " in said
    comparison = json.loads((tmp_path / "said" / "comparison.json").read_text())
    assert all(table.text() in said for table in comparison_tables(comparison))
    assert "not asked alike" not in caplog.text
    assert not list((tmp_path / "said").glob(f"*/{PARTIAL}"))
