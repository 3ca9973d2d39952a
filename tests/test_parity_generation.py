"""Greedy tokens and processed logits are those of transformers' `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import load
from othink_jax.config import SamplingConfig
from othink_jax.data.synthetic import generate
from othink_jax.model.vlm import merge
from othink_jax.sampling import processed_logits, prompt_keys, sample
from tests.parity_cases import CHATS, save_peer, turn, write_random_model
from tests.peers import PeerProcessor, load_peer, pad_left, scale_weights

NEW_TOKENS = 64


def sharp_model(directory, family):
    """Random weights whose greedy tokens do not run in short circles.

    They would if the last token alone decided; here attention outweighs it and is sharp.
    """
    write_random_model(directory, family=family, tied=False, seed=1)
    peer = load_peer(directory)
    normed = family == "qwen3_vl"  # then a matrix before the norm sharpens nothing
    sharp = ("q_norm.weight", "k_norm.weight") if normed else ("q_proj.weight", "k_proj.weight")
    scale_weights(peer, dict.fromkeys(sharp, 4) | {"o_proj.weight": 8})
    save_peer(peer, directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return sharp_model(tmp_path_factory.mktemp("model"), "qwen2_vl")


def embedded_chats():
    counting, geometry = (generate(task, "test", 7) for task in ("counting", "geometry"))
    question = "Describe the image."
    return [
        [turn(*counting.images, counting.question)],
        [turn(*geometry.images, f"{geometry.question} Think, then answer.")],
        [turn(question)],
        [turn(*counting.images, *geometry.images, question)],
        [turn(*counting.images, question), turn("3", role="assistant"), turn("Which?")],
    ]


def their_tokens(directory, chats):
    """Greedy tokens of a batch, padded on the left, and the margin of each over its runner-up."""
    processor = PeerProcessor(directory)
    batch = pad_left([processor(chat) for chat in chats], processor.tokenizer.pad_token_id)
    peer = load_peer(directory)
    made = peer.generate(
        **batch,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(made.logits, dim=1).topk(2).values
    return made.sequences[:, batch["input_ids"].shape[1] :].numpy(), best[..., 0] - best[..., 1]


def our_tokens(directory, chats):
    ours = load(directory)
    prompts = ours.processor.batch([ours.processor.encode_chat(chat) for chat in chats])
    assert len(set(prompts.mask.sum(axis=1).tolist())) >= 5  # different lengths

    @jax.jit
    def greedy(params, prompts, keys):
        return sample(
            merge(ours.graphdef, params),
            prompts,
            keys,
            group_size=1,
            config=SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS),
            eos_token_ids=(),
        )

    return greedy(ours.params, prompts, prompt_keys(0, 0, len(chats))).tokens[:, 0]


@pytest.mark.parametrize("model", ["random", "qwen3_vl", "embedded"])
def test_greedy_tokens_of_a_mixed_batch_are_those_of_generate(model, directory, tmp_path):
    chats = list(CHATS.values())
    if model == "embedded":
        directory, chats = hf.resolve("tiny"), embedded_chats()
    elif model == "qwen3_vl":
        directory = sharp_model(tmp_path, model)
    expected, margin = their_tokens(directory, chats)
    assert margin.min() > 1e-4  # ten times what the logits differ by: no tie decides
    if model != "embedded":
        assert all(len(set(row)) >= 8 for row in expected.tolist())
    np.testing.assert_array_equal(our_tokens(directory, chats), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5},
        {"top_k": 5, "repetition_penalty": 1.7},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "repetition_penalty": 0.6},
    ],
    ids=str,
)
def test_distributions_before_sampling_are_those_of_generate(directory, settings):
    """With end tokens forbidden for the first tokens, and others for all of them."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | settings
    least, ends, forbidden = 6, [5, 9], [11, 12, 13]
    prompt = PeerProcessor(directory)(CHATS["several images"])
    peer = load_peer(directory)
    torch.manual_seed(0)
    made = peer.generate(
        **prompt,
        **settings,
        do_sample=True,
        num_return_sequences=4,
        max_new_tokens=12,
        min_new_tokens=least,
        eos_token_id=ends,
        pad_token_id=0,
        suppress_tokens=forbidden,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    length = prompt["input_ids"].shape[1]
    config = SamplingConfig(**settings, min_new_tokens=least)
    for step, (logits, scores) in enumerate(zip(made.logits, made.scores, strict=True)):
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, made.sequences[:, : length + step].numpy(), True, axis=1)
        ours = processed_logits(
            jnp.asarray(logits.numpy()),
            config,
            forbidden + (ends if step < least else []),
            seen=None if config.repetition_penalty == 1 else jnp.asarray(seen),
        )
        np.testing.assert_allclose(
            jax.nn.softmax(ours), scores.softmax(dim=-1).numpy(), rtol=0, atol=1e-6
        )
