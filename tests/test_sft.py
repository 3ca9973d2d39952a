"""Supervised fine-tuning of the embedded model: what a run writes, resumes and refuses."""

import dataclasses
import gc
import json
import os
import signal

import jax
import numpy as np
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration as Peer

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import load
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    GRPOConfig,
    LoRAConfig,
    OptimizerConfig,
    ParallelConfig,
    SFTConfig,
    read_run,
)
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.presets import with_preset
from othink_jax.training import grpo, loop
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.sft import SFTTrainer, resume, train
from tests.peers import PeerProcessor
from tests.shallow import shallow
from tests.test_grpo import final_params, rows_of, without_times
from tests.test_sources import write_jsonl

DATA = DataConfig(
    task="counting", limit=4, template=TINY_TEMPLATE, min_pixels=None, max_pixels=None
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, lr_schedule="constant")


def config_for(out, **changes) -> SFTConfig:
    """Four examples, all of them at each step."""
    settings = {
        "model": shallow(),
        "out": out,
        "data": DATA,
        "epochs": 4.0,
        "prompts_per_step": 4,
        "optimizer": OPTIMIZER,
        "max_completion_tokens": 40,
        "remat": "none",
        "checkpoint_every": 2,
    }
    return SFTConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four epochs, which are four steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(out))
    return out


def test_every_step_has_its_row_of_metrics(finished):
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0].keys() == {
        *("step", "loss", "tokens", "grad_norm", "learning_rate", "skipped", "tokens_per_second"),
        *("seconds_data", "seconds_update", "seconds_step", "elapsed"),
    }
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_the_first_loss_is_that_of_transformers_from_texts_and_images(finished):
    """Of one example after the other, with its tokenizer, its image processor and its model."""
    directory, source = hf.resolve(shallow()), open_source(DATA)
    peer, processor = Peer.from_pretrained(directory).eval(), PeerProcessor(directory)
    lost, count = 0.0, 0
    for example in (source[number] for number in range(4)):
        question = TINY_TEMPLATE.format(question=example.question)
        content = [
            {"type": "image", "image": example.images[0]},
            {"type": "text", "text": question},
        ]
        inputs = processor([{"role": "user", "content": content}])
        answer = processor.tokenizer(example.solution + "<|im_end|>", return_tensors="pt")
        rows = {"input_ids": answer["input_ids"]}
        rows["attention_mask"] = torch.ones_like(rows["input_ids"])
        rows["mm_token_type_ids"] = torch.zeros_like(rows["input_ids"])
        labels = torch.full_like(inputs["input_ids"], -100)
        labels = torch.cat([labels, rows["input_ids"]], dim=1)
        inputs |= {name: torch.cat([inputs[name], row], dim=1) for name, row in rows.items()}
        with torch.no_grad():
            lost += peer(**inputs, labels=labels, num_items_in_batch=1).loss.item()
        count += rows["input_ids"].numel()
    row = rows_of(finished)[0]
    assert row["tokens"] == count
    assert row["loss"] == pytest.approx(lost / count, rel=1e-5)


def test_the_loss_falls_from_step_to_step(tmp_path):
    """Of the embedded model, which has not yet learned the form of the solutions."""
    train(config_for(tmp_path / "run", model="tiny"))
    losses = [row["loss"] for row in rows_of(tmp_path / "run")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


def test_all_parameters_move_the_vision_tower_among_them(finished):
    base = load(shallow()).params
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), load(finished).params, base)
    assert all(jax.tree.leaves(changed))


def test_a_resumed_run_equals_the_uninterrupted_one(finished, tmp_path, monkeypatch, capsys):
    """Stopped after step 3 by a signal, continued: the same metrics and parameters, bit for bit."""
    step = SFTTrainer.step

    def stop_in_step_3(self, number, *rest):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *rest)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "step", stop_in_step_3)
        with pytest.raises(KeyboardInterrupt):
            train(config_for(out))
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3]
    assert f"\nothink-jax sft --resume {out}\n" in capsys.readouterr().err
    resume(out)
    assert without_times(rows_of(out)) == without_times(rows_of(finished))
    for ours, whole in zip(final_params(out), final_params(finished), strict=True):
        np.testing.assert_array_equal(ours, whole)


def trains_as(finished, out, **changes):
    train(config_for(out, **changes))
    for ours, one in zip(
        without_times(rows_of(out)), without_times(rows_of(finished)), strict=True
    ):
        assert ours == pytest.approx(one, rel=1e-3)


def test_pieces_that_are_computed_again_on_two_devices_train_as_one_batch_does(finished, tmp_path):
    parallel = ParallelConfig(strategy="pmap", devices=2)
    trains_as(finished, tmp_path / "run", parallel=parallel, micro_batches=2, remat="layer")


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does(finished, tmp_path):
    parallel = ParallelConfig(strategy="mesh", devices=4, tensor=2)
    trains_as(finished, tmp_path / "run", parallel=parallel)


@pytest.mark.parametrize("part", [pytest.param("text", marks=pytest.mark.slow), "lora"])
def test_what_is_frozen_is_there_once_and_stays(part, tmp_path, monkeypatch):
    """And the state of a step is what is trained, and two moments of it; there is no reference."""
    held, step, base = {}, SFTTrainer.step, load(shallow())
    shapes = {
        "text": base.params["text"]["embed"]["embedding"].shape,
        "visual": base.params["visual"]["patch_embed"]["kernel"].shape,
    }

    def count():
        gc.collect()
        live = [array.shape for array in jax.live_arrays()]
        return {tower: live.count(shape) for tower, shape in shapes.items()}

    def counted(self, number, *rest):
        if number == 1:
            held.update({tower: copies - before[tower] for tower, copies in count().items()})
        return step(self, number, *rest)

    monkeypatch.setattr(SFTTrainer, "step", counted)
    before, out = count(), tmp_path / "run"
    lora = LoRAConfig(lora_rank=4, lora_alpha=8.0)
    train(config_for(out, train=part, steps=2, lora=lora))
    assert held == {"text": 3 if part == "text" else 1, "visual": 1}
    after = load(out).params
    same = jax.tree.map(np.array_equal, after["visual"], base.params["visual"])
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(np.array_equal, after["text"]["layers"], base.params["text"]["layers"])
    assert not any(jax.tree.leaves(moved[0]["q"]["kernel"]))
    losses = [row["loss"] for row in rows_of(out)]
    assert losses[1] < losses[0]


# Settings


def test_the_defaults_are_those_of_r1v():
    config = SFTConfig(model="tiny", out="unused", data=DataConfig(task="counting"))
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.lr_schedule) == (2e-5, "cosine")
    assert optimizer.warmup_fraction == 0.1
    assert (config.epochs, config.prompts_per_step, config.seed) == (1, 16, 42)
    assert config.data.max_prompt_tokens + config.max_completion_tokens == 4096


def test_steps_are_counted_in_one_epoch():
    config = config_for("unused", epochs=1.0, prompts_per_step=16)
    assert loop.total_steps(config, 100) == 7


@pytest.mark.parametrize("name", ["max_completion_tokens", "logp_chunk", "micro_batches"])
def test_a_setting_of_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name} must be >= 1, got 0"):
        config_for("unused", **{name: 0})


def test_a_run_is_evaluated_with_its_prompt_and_the_length_of_its_answers(finished):
    words = with_preset("evaluate", ["--model", str(finished)])
    given = dict(word.split("=", 1) for word in words if "=" in word)
    assert given["--template"] == TINY_TEMPLATE
    assert (given["--min-pixels"], given["--max-new-tokens"]) == ("None", "40")


# What is refused


def test_solutions_that_are_too_long_are_skipped_and_counted(tmp_path):
    config = config_for(tmp_path / "run", data=dataclasses.replace(DATA, limit=8), epochs=1.0)
    base = load(shallow())
    lengths = [
        len(base.processor.encode_answer(x.solution))
        for x in map(open_source(config.data).__getitem__, range(8))
    ]
    config = dataclasses.replace(config, max_completion_tokens=sorted(lengths)[3])
    trainer = SFTTrainer(config, base)
    _, encoded = next(trainer.loader)
    assert sorted(len(prompt.completion) for prompt in encoded) == sorted(lengths)[:4]
    assert trainer.loader.skipped.total() > 0


def test_data_of_which_nothing_can_be_learned_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="over max_completion_tokens = 3"):
        train(config_for(tmp_path / "long", max_completion_tokens=3))
    row = {"question": "How many?", "ground_truth": "", "image_path": []}
    file = write_jsonl(tmp_path / "data.jsonl", [row] * 3)
    data = DataConfig(dataset=str(file), template=TINY_TEMPLATE)
    with pytest.raises(
        UserError, match=r"3 examples in a row cannot be used; .*ground_truth is em"
    ):
        train(config_for(tmp_path / "empty", data=data))
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_run_of_another_method_is_refused_with_the_command_that_continues_it(finished, tmp_path):
    with pytest.raises(
        UserError, match="is no run of grpo; it continues with: othink-jax sft --re"
    ):
        grpo.resume(finished)
    (tmp_path / "reference").mkdir()
    config = GRPOConfig(model="tiny", out=tmp_path, data=DataConfig(task="counting"))
    RunDirectory(tmp_path).begin(config, 1, grpo.GRPOTrainer)
    with pytest.raises(
        UserError, match="is no run of sft; it continues with: othink-jax grpo --re"
    ):
        resume(tmp_path)


def test_what_a_run_was_made_with_can_be_read(finished):
    record = read_run(finished)
    assert (record.kind, record.total_steps) == ("sft", 4)
    assert record.config == config_for(finished)
    assert json.loads((finished / "config.json").read_text())["kind"] == "sft"
