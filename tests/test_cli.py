"""The commands as a user types them: what they print, write and refuse, with which exit code."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from othink_jax import cli
from othink_jax.checkpoint import hf, orbax_model
from othink_jax.config import DataConfig, GRPOConfig, SamplingConfig
from othink_jax.data.synthetic import generate
from othink_jax.presets import with_preset
from othink_jax.report import model_card
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.run_directory import RunDirectory
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.shallow import shallow
from tests.test_grpo import rows_of, without_times

WEIGHTS = "model.safetensors"
QUESTION = "How many objects are there? Think, then answer."
SETTINGS = ("--preset", "tiny", "--task", "counting", "--steps", "2")


def new_run(out, *further):
    """The words that start a run of seconds."""
    short = ("--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "16")
    return ("grpo", "--model", shallow(), *SETTINGS, *short, *further, "--out", out)


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Of runs, and of their continuations."""
    with programs_of_equal_settings_are_compiled_once():
        yield


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def command(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["othink-jax", *map(str, words)])
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main sets its own
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scene.png"
    generate("counting", "test", 0).images[0].save(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what its command printed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(
            sys, "argv", ["othink-jax", *map(str, new_run(out, "--checkpoint-every", "1"))]
        )
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        cli.main()
    return out, said.getvalue()


def error_line(result: tuple[int, str, str]) -> str:
    """The one line on stderr of a command that failed for a mistake of the user's."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("othink-jax: ")]
    assert code == 1
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_generate_answers_in_text_and_in_json(run, image):
    code, out, _ = run("generate", "tiny", "--image", image, "--prompt", QUESTION, "--greedy")
    assert code == 0
    words = ("generate", "tiny", "--image", image, "--prompt", QUESTION, "--greedy", "--json")
    made = json.loads(run(*words)[1])
    assert made["text"] == out.strip()
    assert len(made["token_ids"]) == len(made["logprobs"])
    assert all(logprob <= 0 for logprob in made["logprobs"])


def test_the_end_of_orbaxs_event_loop_is_passed_over_and_nothing_else(monkeypatch, capsys):
    class Raises:
        def __init__(self, message):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    monkeypatch.setattr(sys, "unraisablehook", cli._hear)
    Raises("Event loop is closed")
    assert capsys.readouterr().err == ""
    Raises("another failure")
    assert "another failure" in capsys.readouterr().err


def test_a_models_own_generation_config_gives_defaults_that_are_printed(run, image, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shallow(), model)
    file = model / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.5}))
    words = ("--image", image, "--prompt", QUESTION, "--max-new-tokens", "5")
    _, _, err = run("generate", model, *words)
    assert "temperature 0.01, top_k 1, top_p 0.5, repetition_penalty 1" in err
    _, _, err = run("generate", model, *words, "--top-k", "7")
    assert "max_new_tokens 5, temperature 0.01, top_k 7, top_p 0.5" in err
    file.write_text(json.dumps({"repetition_penalty": 1.05}))
    _, _, err = run("generate", model, *words)
    assert "temperature 0, top_k 50, top_p 1, repetition_penalty 1.05" in err
    file.unlink()
    _, _, err = run("generate", model, *words)
    assert "temperature 1, top_k 50" in err
    file.write_text("[]")
    assert "generation_config.json" in error_line(run("generate", model, *words))


def test_evaluate_writes_predictions_and_result(run, tmp_path):
    out = tmp_path / "evaluation"
    words = ("evaluate", "tiny", "--task", "counting", "--split", "test", "--count", "6")
    code, printed, _ = run(*words, "--batch-size", "4", "--out", out)
    assert code == 0
    result = json.loads((out / "result.json").read_text())
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == result["n"] == 6
    assert result["accuracy"] == sum(row["correct"] for row in rows) / 6
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    assert f"accuracy {result['accuracy']:.1%}" in printed
    again = error_line(run(*words, "--out", out))
    assert "holds a result already" in again


def test_stored_predictions_are_graded_again(run, tmp_path):
    path = tmp_path / "predictions.jsonl"
    rows = [
        {"question": "q", "ground_truth": 4, "model_output": "<answer> 4 </answer>"},
        {"question": "q", "ground_truth": 9, "model_output": "<answer>eight</answer>"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("grade", path, "--task", "counting", "--grader", "r1v", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == 0.5
    assert json.loads(out)["n"] == 2
    path.write_text(json.dumps(rows[0]) + "\n{broken\n")
    assert "line 2" in error_line(run("grade", path, "--task", "counting"))


def test_grpo_trains_reports_and_refuses_a_directory_in_use(run, trained):
    out, printed = trained
    assert str(out / "report.html") in printed
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["optimizer"]["learning_rate"] == 1e-4  # of the preset `tiny`
    assert record["config"]["sampling"]["max_new_tokens"] == 16  # given over it
    assert "--resume" in error_line(run(*new_run(out)))
    assert run("grpo", "--resume", out)[0] == 0


def test_a_controller_steers_the_kl_weight_says_why_and_goes_on_as_if_never_stopped(run, tmp_path):
    """PID on two replicas: while the KL is below its target, log beta falls by P and I times that.

    The report and the model card say so with all numbers.
    """
    out = tmp_path / "run"
    control = ("--kl-schedule", "pid", "--kl-target", "0.05", "--kl-args", "integral", "0.1")
    further = ("--steps", "3", "--checkpoint-every", "1", "--strategy", "pmap", "--devices", "2")
    assert run(*new_run(out, *control, *further))[0] == 0
    rows = without_times(rows_of(out))
    errors = [row["kl"] / 0.05 - 1 for row in rows]
    assert max(errors) < 0
    expected = [0.04, 0.04 * np.exp(0.3 * errors[0])]
    expected.append(0.04 * np.exp(0.2 * errors[1] + 0.1 * (errors[0] + errors[1])))
    assert [row["beta"] for row in rows] == pytest.approx(expected)
    for row, after in zip(rows, expected[1:], strict=False):
        said = f"KL {row['kl']:.3g} below its target 0.05: the weight falls to {after:.3g}"
        assert (row["kl_target"], row["beta_reason"]) == (0.05, said)

    words = (
        "control pid (target 0.05, first weight 0.04, proportional 0.2, integral 0.1, derivative"
    )
    assert words in (out / "report.html").read_text()
    assert words in model_card(out)
    shutil.rmtree(out / "checkpoints" / "3")
    assert run("grpo", "--resume", out)[0] == 0
    assert without_times(rows_of(out)) == rows


def test_sft_trains_reports_and_makes_a_model_that_is_evaluated_and_exported(run, tmp_path):
    out = tmp_path / "run"
    words = ("sft", "--model", shallow(), *SETTINGS, "--limit", "4", "--prompts-per-step", "4")
    code, printed, _ = run(*words, "--out", out)
    assert code == 0
    assert str(out / "report.html") in printed
    record = json.loads((out / "config.json").read_text())
    assert record["kind"] == "sft"
    assert record["config"]["max_completion_tokens"] == 40  # of the preset `tiny`
    assert "othink-jax sft --resume" in error_line(run("grpo", "--resume", out))
    assert run("sft", "--resume", out)[0] == 0
    place = tmp_path / "evaluation"
    words = ("--task", "counting", "--count", "2", "--batch-size", "2", "--out", place)
    assert run("evaluate", out, *words)[0] == 0
    asked = json.loads((place / "result.json").read_text())["config"]
    assert asked["sampling"]["max_new_tokens"] == 40
    assert run("export", out, tmp_path / "made")[0] == 0
    assert "post-trained with SFT" in (tmp_path / "made" / "README.md").read_text()


def test_convert_and_export_keep_every_weight(run, tmp_path, image):
    assert run("convert", "tiny", tmp_path / "orbax")[0] == 0
    assert run("export", tmp_path / "orbax", tmp_path / "hf")[0] == 0
    words = ("--image", image, "--prompt", QUESTION, "--greedy", "--json")
    answers = {run("generate", where, *words)[1] for where in ("tiny", tmp_path / "hf")}
    assert len(answers) == 1
    assert "--force" in error_line(run("convert", "tiny", tmp_path / "orbax"))
    assert "not empty" in error_line(run("export", "tiny", tmp_path / "hf"))


def _edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _lose_a_shard(model):
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _add_a_tensor(model):
    tensors = load_file(model / WEIGHTS)
    save_file(tensors | {"model.norm.weight_scale": np.ones(1)}, model / WEIGHTS)


def _lose_a_vision_token(model):
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace("<|image_pad|>", "<|picture|>"))


BROKEN = {
    "truncated": (lambda m: os.truncate(m / WEIGHTS, 100_000), "safetensors is damaged"),
    "absent shard": (_lose_a_shard, "absent: model-00002-of-00002"),
    "other shape": (
        lambda m: _edit_json(m / "config.json", intermediate_size=24),
        r"up_proj\.weight is \(\d+, \d+\), not \(24, ",
    ),
    "unknown key": (_add_a_tensor, r"unknown model\.norm\.weight_scale"),
    "pickle": (lambda m: (m / WEIGHTS).rename(m / "pytorch_model.bin"), "run code when"),
    "other model": (lambda m: _edit_json(m / "config.json", model_type="llava"), "llava"),
    "other tokenizer": (_lose_a_vision_token, r"names <.image_pad.>, tokenizer.json does not"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), r"no tokenizer\.json"),
}


@pytest.mark.parametrize("command", ["convert", "export"])
@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_a_model_is_one_line_and_nothing_is_written(
    run, tmp_path, command, damage, message
):
    model = tmp_path / "model"
    shutil.copytree(hf.resolve("tiny"), model)
    damage(model)
    assert re.search(message, error_line(run(command, model, tmp_path / "out")))
    assert os.listdir(tmp_path) == ["model"]


FULL_DISK = {
    "convert": (
        "type_handlers.NumpyHandler.serialize",
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a" in OCDBT database at local file "db/": Failed'
            ' writing: "db/d/1": Failed to write 9 bytes to file 11: No space left on device'
            " [os_error_code='28']"
        ),
        "db/d/1",
    ),
    "export": ("safetensors_file.write", OSError(errno.ENOSPC, "No space left on device"), ""),
}


@pytest.mark.parametrize("command", FULL_DISK)
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_left(run, tmp_path, monkeypatch, command):
    """With the errors that a full tmpfs gave."""
    writer, error, file = FULL_DISK[command]

    def full(*_, **__):
        raise error

    module = orbax_model if command == "convert" else hf
    monkeypatch.setattr(f"{module.__name__}.{writer}", full)
    line = error_line(run(command, "tiny", tmp_path / "out"))
    assert line.endswith(f"{file or 'writing'}: No space left on device")
    assert os.listdir(tmp_path) == []


def test_export_of_a_run_comes_with_a_card_and_in_shards_of_the_dtype_asked_for(
    run, trained, tmp_path
):
    words = ("--dtype", "bfloat16", "--max-shard-size", "1500KB")
    assert run("export", trained[0], tmp_path / "made", *words)[0] == 0
    card = (tmp_path / "made" / "README.md").read_text()
    for said in (
        f"# {Path(shallow()).name}, post-trained with GRPO-D on counting, train",
        "β falls from 0.07 to 0.04",
        "| steps | 2 of 2 |",
        "It has not been evaluated.",
    ):
        assert said in card
    files = sorted(file.name for file in (tmp_path / "made").glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert "max-shard-size" in error_line(
        run("export", "tiny", tmp_path / "no", "--max-shard-size", "big")
    )
    assert run("export", "tiny", tmp_path / "made", "--force")[0] == 0
    assert not (tmp_path / "made" / "README.md").exists()


def test_export_of_an_unfinished_run_says_of_which_step_its_weights_are(run, trained, tmp_path):
    """Stopped in its second step, whose row stands there; its first checkpoint is its last."""
    unfinished = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(unfinished / "checkpoints" / "2")
    code, _, err = run("export", unfinished, tmp_path / "made")
    assert code == 0
    assert f"{unfinished} is not finished: weights after step 1 of 2\n" in err
    assert "these are the weights after step 1 of 2" in (tmp_path / "made/README.md").read_text()
    assert run("export", unfinished / "checkpoints" / "1", tmp_path / "same")[0] == 0
    made, same = (load_file(tmp_path / name / WEIGHTS) for name in ("made", "same"))
    assert all(np.array_equal(made[name], same[name]) for name in made)
    shutil.rmtree(unfinished / "checkpoints")
    assert "after step 0 of 2" in run("export", unfinished, tmp_path / "made", "--force")[2]
    assert "| steps | 0 of 2 |" in (tmp_path / "made/README.md").read_text()


def test_a_run_of_adapters_is_trained_and_exported_alone_with_a_card(run, tmp_path):
    words = ("--train", "lora", "--lora-rank", "4", "--lora-alpha", "8")
    assert run(*new_run(tmp_path / "run", *words))[0] == 0
    words = ("--adapter", "--dtype", "bfloat16")
    assert run("export", tmp_path / "run", tmp_path / "made", *words)[0] == 0
    names = {file.name for file in (tmp_path / "made").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "SHA256SUMS"}
    card = (tmp_path / "made" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "| trained part | adapters of the text tower (rank 4, alpha 8) |" in card
    said = error_line(run("export", "tiny", tmp_path / "no", "--adapter"))
    assert said == "othink-jax: tiny has no adapters: it is no run directory"


def test_preview_writes_a_sheet(run, tmp_path):
    out = tmp_path / "sheet.png"
    assert run("data", "preview", "--task", "geometry", "--count", "5", "--out", out)[0] == 0
    assert Image.open(out).width > 400


def test_python_m_is_the_same_command(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["othink_jax", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("othink_jax", run_name="__main__")
    assert exit.value.code in (0, None)
    assert "grpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("unknown",),
        ("grpo", "--model", "tiny"),
        ("grpo", "--model", "tiny", "--task", "chess", "--out", "x"),
        ("grpo", "--model", "tiny", "--task", "counting", "--out", "x", "--preset", "huge"),
        ("sft", "--model", "tiny", "--task", "counting", "--out", "x", "--group-size", "4"),
        ("generate", "tiny"),
    ],
)
def test_wrong_usage_exits_with_2(run, words):
    assert run(*words)[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kl-min", "0.2", "--kl-max", "0.1"), "kl_min"),
        (("--exploration-fraction", "1.5"), "exploration_fraction"),
        (("--group-size", "1"), "group_size"),
        (("--dataset", "x.jsonl"), "--dataset"),
        (("--template", "no place"), "{question}"),
        (("--strategy", "pmap", "--devices", "99"), "99"),
        (("--strategy", "pmap", "--devices", "4"), "2 prompts"),
        (("--model", "no/such/model"), "no/such/model"),
        (("--split", "spring"), "spring"),
        (("--seed", "-1"), "seed"),
        (("--limit-seed", "4294967296"), "limit_seed"),
        (("--kl-max", "inf"), "kl_max"),
        (("--kl-schedule", "magic"), "what is known: constant, dynamic, linear"),
        (("--kl-schedule", "dual"), "--kl-schedule dual needs --kl-target"),
        (("--kl-schedule", "dual", "--kl-target", "0"), "kl_target must be > 0"),
        (("--kl-target", "0.1"), "--kl-schedule dynamic does not take --kl-target"),
        (("--kl-schedule", "step", "--kl-args", "steps", "inf"), "steps must be a whole number"),
        (("--b2", "1"), "b2"),
        (("--lora-rank", "0"), "lora_rank"),
        (("--weight-decay", "-1"), "weight_decay"),
        (("--max-prompt-tokens", "5"), "over max_prompt_tokens = 5"),
        (("--wandb",), "pip install"),
        (
            ("--tags", "two words"),
            '--tags "two words": a tag is one word; several are --tags FIRST',
        ),
        (("--tags", "a,b"), "a tag is one word"),
        (("--tags", "a", ""), '--tags "": a tag has from 1 to 64 characters'),
        (("--tags", "x" * 65), "a tag has from 1 to 64 characters"),
        (("--tags", "a\u202eb"), '--tags "a\\u202eb": a tag is one word'),
        (("--notes", "\udc80"), "--notes is not UTF-8 text: \\udc80"),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_writes_nothing(run, tmp_path, words, said):
    out = tmp_path / "run"
    assert said in error_line(run(*new_run(out, *words)))
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("grpo", "--model", "tiny", "--task", "counting", "--out"),
        ("evaluate", "tiny", "--task", "counting", "--count", "2", "--out"),
        ("convert", "tiny"),
        ("export", "tiny"),
        ("data", "preview", "--task", "counting", "--count", "1", "--out"),
    ],
    ids=lambda words: words[0],
)
def test_a_place_that_cannot_be_written_is_one_clear_line(run, tmp_path, words):
    file = tmp_path / "file"
    file.write_text("precious")
    assert str(file) in error_line(run(*words, file / "out"))
    assert file.read_text() == "precious"


def test_evaluation_takes_the_test_split_and_says_so(run, tmp_path):
    out = tmp_path / "result"
    words = ("--task", "geometry", "--difficulty", "easy", "--count", "2", "--out", out)
    code, said, _ = run("evaluate", "tiny", "--preset", "tiny", *words)
    assert code == 0
    assert "on geometry (easy), test (95% interval" in said
    data = json.loads((out / "result.json").read_text())["config"]["data"]
    assert (data["split"], data["difficulty"]) == ("test", "easy")


def test_a_run_is_evaluated_as_it_was_trained(tmp_path):
    data = DataConfig(
        task="counting",
        template="Q: {question}",
        system_prompt="- be brief",
        answer_tag="final",
        max_pixels=None,
    )
    sampling = SamplingConfig(max_new_tokens=17, top_k=3)
    config = GRPOConfig(model="tiny", out=tmp_path, data=data, sampling=sampling)
    RunDirectory(tmp_path).begin(config, 1, GRPOTrainer)
    words = with_preset("evaluate", ["--model", str(tmp_path), "--top-k=5"])
    given = dict(word.split("=", 1) for word in words[:-3] + words[-1:])  # a later one goes over
    assert given["--template"] == "Q: {question}"
    assert (given["--system-prompt"], given["--answer-tag"]) == ("- be brief", "final")
    assert "--answer-pattern" not in given
    assert (given["--min-pixels"], given["--max-pixels"]) == ("3136", "None")
    assert (given["--max-new-tokens"], given["--top-k"], given["--split"]) == ("17", "5", "test")


def test_epochs_go_over_the_steps_of_a_preset():
    assert "--steps=150" in with_preset("grpo", ["--model", "tiny"])
    assert "--steps=150" not in with_preset("grpo", ["--model", "tiny", "--epochs=2"])


def test_an_unreadable_image_is_named(run, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    line = error_line(run("generate", "tiny", "--image", broken, "--prompt", "What?"))
    assert "broken.png" in line
    line = error_line(run("generate", "tiny", "--image", tmp_path / "none.png", "--prompt", "?"))
    assert "none.png" in line
