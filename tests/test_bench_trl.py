"""The comparison with TRL, at shapes that take seconds: what is compared, not how fast it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

import othink_jax
from experiments.bench import trl, trl_work
from experiments.bench.shapes import presets
from experiments.bench.trl_ours import Ours
from othink_jax.checkpoint import hf
from othink_jax.checkpoint.keymap import plain_name
from tests.peers import PeerProcessor
from tests.shallow import shallow

TINY = dataclasses.replace(presets()["cpu"], prompts=2, group=2, image=(2, 3), length=4)
COMPLETIONS = np.array([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20]])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hf.EMBEDDED, "tiny", Path(shallow()))  # the same work, of fewer layers
        return trl_work.make_work(TINY, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def ours(work):
    return Ours(work)


@pytest.fixture(scope="module")
def update(ours):
    return ours.update_with(COMPLETIONS)


def test_prompts_have_the_lengths_that_the_preset_says(tmp_path):
    shapes = presets()["cpu"]
    work = trl_work.make_work(shapes, tmp_path)
    processor = othink_jax.load(work.model, abstract=True).processor
    for image in work.images:
        prompt = processor.encode(trl_work.QUESTION, [Image.open(image)])
        assert len(prompt.tokens) == shapes.prompt_tokens
        assert (prompt.tokens == processor.image_token_id).sum() == shapes.image[0] * shapes.image[
            1
        ]


def test_a_step_of_ours_draws_whole_completions_whose_rewards_differ(ours):
    ours.steps(1)
    (row,) = ours.metrics
    assert row["completion_length"] == TINY.length
    assert row["truncated_share"] == 1
    assert row["no_signal_share"] == 0
    assert row["kl"] > 0


def chat(image):
    shown = [{"type": "image", "image": Image.open(image)}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": trl_work.QUESTION}]}]


def completion_logp(peer, inputs, completion):
    """Of each token of a completion, by transformers' model."""
    count = len(completion)
    types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, count))
    tokens = torch.cat([inputs["input_ids"], torch.tensor(completion)[None]], dim=1)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    logits = peer(input_ids=tokens, mm_token_type_ids=types, **images).logits
    logp = torch.log_softmax(logits[0, -count - 1 : -1], dim=-1)
    return logp[torch.arange(count), completion]


def torch_loss(logp, ref_logp, rewards):
    """Advantages, and the loss of Eq. 2, 4 and 5 where the ratio is one."""
    groups = rewards.reshape(-1, TINY.group)
    centred = groups - groups.mean(dim=1, keepdim=True)
    advantages = (centred / (groups.std(dim=1, keepdim=True) + 1e-4)).reshape(-1)
    gap = ref_logp - logp
    surrogate = torch.exp(logp - logp.detach()) * advantages[:, None]
    kl = torch.exp(gap) - gap - 1
    return advantages, (trl_work.KL_WEIGHT * kl - surrogate).mean()


def torch_update(work):
    """The same update by transformers' model and PyTorch's autograd."""
    process, decode = PeerProcessor(work.model), othink_jax.load("tiny").processor.decode
    inputs = [process(chat(image)) for image in work.images for _ in range(TINY.group)]
    policy, reference = (
        Qwen2VLForConditionalGeneration.from_pretrained(work.model, dtype=torch.float32)
        for _ in range(2)
    )
    for parameter in reference.requires_grad_(False).parameters():
        parameter *= trl_work.REFERENCE_SCALE
    logp, ref_logp = (
        torch.stack([completion_logp(peer, *row) for row in zip(inputs, COMPLETIONS, strict=True)])
        for peer in (policy, reference)
    )
    rewards = torch.tensor([trl_work.reward(decode(row)) for row in COMPLETIONS])
    advantages, loss = torch_loss(logp, ref_logp, rewards)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), trl_work.MAX_GRAD_NORM)
    return trl_work.Update(
        prompts=np.concatenate([row["input_ids"] for row in inputs[:: TINY.group]]),
        completions=COMPLETIONS,
        advantages=advantages.numpy(),
        logp=logp.detach().numpy(),
        ref_logp=ref_logp.numpy(),
        loss=loss.item(),
        adam_mean={  # 1 - b1 of the gradient
            plain_name(name): 0.1 * parameter.grad.numpy()
            for name, parameter in policy.named_parameters()
        },
    )


def test_the_update_that_is_compared_is_that_of_pytorch(work, update):
    found = trl.differences(update, torch_update(work))
    assert set(found) == {"advantages", "logp", "ref_logp", "loss", "adam_mean"}


def test_updates_that_differ_are_refused(update):
    def refuse(message, **changes):
        with pytest.raises(AssertionError, match=message):
            trl.differences(update, dataclasses.replace(update, **changes))

    norm = update.adam_mean["model.norm.weight"]
    refuse("Arrays are not equal", prompts=update.prompts + 1)
    refuse("Arrays are not equal", completions=COMPLETIONS + 1)
    refuse("^advantages differs", advantages=update.advantages + 2e-4)
    refuse("^logp differs", logp=update.logp + 2e-4)
    refuse("^ref_logp differs", ref_logp=update.ref_logp + 2e-4)
    refuse("^loss differs", loss=update.loss * 1.0002)
    refuse("^adam_mean differs", adam_mean={**update.adam_mean, "model.norm.weight": 1.001 * norm})
    refuse(None, adam_mean={"model.norm.weight": norm})


def test_the_table_says_how_many_times_more_trl_takes():
    sides = {
        "ours": {"min_s": 0.5, "median_s": 0.8, "peak_bytes": 100e6},
        "trl": {"min_s": 2.0, "median_s": 2.4, "peak_bytes": 150e6},
    }
    assert trl.ratios(sides) == pytest.approx(
        {"trl_over_ours": 4.0, "trl_over_ours_median": 3.0, "trl_over_ours_memory": 1.5}
    )
    table = trl.table(
        {
            "device": "1 x cpu",
            "repeats": 2,
            "sides": sides,
            "ours_alone": {"step": 0.5, "rollout": 0.2},
            "differences": {"loss": 2e-8},
        }
    )
    assert "4.00x      150 MB" in table
    assert "rollout 200 ms" in table
    assert "loss 2.0e-08" in table
