"""Sampling: what is drawn, what is masked, and what the sampler says of it."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from othink_jax import sampling
from othink_jax.config import ComputeConfig, SamplingConfig
from othink_jax.model.config import TextConfig, VisionConfig, VLMConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import VLM, cast_matrices, merge, split
from othink_jax.sampling import kth_largest, processed_logits, prompt_keys, sample
from othink_jax.types import Prompts, Rollout

VOCABULARY, IMAGE = 24, 20
CONFIG = VLMConfig(
    model_type="qwen2_vl",
    text=TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=10_000.0,
        mrope_section=(1, 1, 2),
        rms_norm_eps=1e-6,
    ),
    vision=VisionConfig(depth=1, embed_dim=16, num_heads=2, intermediate_size=32, hidden_size=32),
    tie_word_embeddings=False,
    image_token_id=IMAGE,
    video_token_id=21,
    vision_start_token_id=22,
    vision_end_token_id=23,
)
EOS = (1, 2)
LENGTH = 12


@pytest.fixture(scope="module")
def model():
    graphdef, params = split(VLM(CONFIG, rngs=nnx.Rngs(0)))
    # Sharper logits than random weights give, so that a draw is not a coin toss among all tokens.
    params["text"]["head"]["kernel"] = params["text"]["head"]["kernel"] * 3
    return graphdef, params


def prompts_of(*rows: list[int], seed: int = 0) -> Prompts:
    """Text prompts of different lengths; the first also has an image of four patches."""
    rng, size = np.random.default_rng(seed), max(map(len, rows)) + 2
    tokens = np.zeros((len(rows), size), np.int32)
    mask = np.zeros((len(rows), size), bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    image_index = np.full(tokens.shape, -1, np.int32)
    image_index[tokens == IMAGE] = 0
    patch_mask = np.zeros((len(rows), 1, 4), bool)
    patch_mask[(tokens == IMAGE).any(axis=1)] = True
    return Prompts(
        tokens=tokens,
        mask=mask,
        positions=np.broadcast_to(np.arange(size, dtype=np.int32), (len(rows), 3, size)),
        image_index=image_index,
        patches=rng.normal(size=(len(rows), 1, 4, 1176)).astype(np.float32),
        patch_positions=np.zeros((len(rows), 1, 4, 2), np.int32),
        patch_mask=patch_mask,
    )


PROMPTS = prompts_of([3, IMAGE, 4, 5], [6, 7], [8, 9, 10, 11, 12])


def draw(model, prompts: Prompts = PROMPTS, *, seed: int = 0, **settings) -> Rollout:
    graphdef, params = model
    named = {"group_size": 4, "eos_token_ids": EOS, "pad_token_id": 0}
    named |= {
        k: settings.pop(k)
        for k in ("group_size", "never_sampled", "micro_batches")
        if k in settings
    }
    config = SamplingConfig(**{"max_new_tokens": LENGTH, "top_k": 0, **settings})

    @jax.jit
    def run(params, keys):
        return sample(merge(graphdef, params), prompts, keys, config=config, **named)

    return jax.device_get(run(params, prompt_keys(seed, 1, len(prompts.tokens))))


def test_same_key_draws_the_same_tokens_and_another_key_others(model):
    first, again, other = draw(model), draw(model), draw(model, seed=1)
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_completions_of_a_group_differ(model):
    tokens = draw(model).tokens
    assert all(len({tuple(row) for row in group}) > 1 for group in tokens)


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_other_prompts(model):
    together = draw(model)
    graphdef, params = model
    one = jax.tree.map(lambda leaf: leaf[1:2], PROMPTS)
    keys = prompt_keys(0, 1, 3)[1:2]
    config = SamplingConfig(max_new_tokens=LENGTH, top_k=0)
    alone = sample(
        merge(graphdef, params), one, keys, group_size=4, config=config, eos_token_ids=EOS
    )
    real = together.mask[1]
    assert np.array_equal(np.asarray(alone.tokens)[0][real], together.tokens[1][real])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_log_probs_are_those_of_the_update(model, settings):
    graphdef, params = model
    rollout = draw(model, **settings)
    ours = completion_logp(merge(graphdef, params), PROMPTS, rollout.tokens, chunk=7)
    np.testing.assert_allclose(
        rollout.logp[rollout.mask], np.asarray(ours)[rollout.mask], atol=1e-5
    )


def test_weights_cast_once_draw_what_weights_cast_at_each_token_draw(model):
    _, params = model
    graphdef, _ = split(VLM(CONFIG, rngs=nnx.Rngs(0), compute=ComputeConfig(dtype="bfloat16")))
    cast = cast_matrices(params, "bfloat16")
    matrices = [leaf for leaf in jax.tree.leaves(cast) if leaf.ndim > 1]
    assert {leaf.dtype for leaf in matrices} == {jnp.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, draw((graphdef, cast)), draw((graphdef, params)))


def test_one_token_is_drawn_from_the_prompt_alone(model):
    """There is nothing to extend."""
    one, many = draw(model, max_new_tokens=1), draw(model)
    np.testing.assert_array_equal(one.tokens, many.tokens[..., :1])
    np.testing.assert_array_equal(one.finished, np.isin(one.tokens[..., 0], EOS))


def test_mask_ends_with_the_first_end_token_of_the_set(model):
    rollout = draw(model, group_size=64)
    ends = set()
    for tokens, mask, finished in zip(
        rollout.tokens.reshape(-1, LENGTH),
        rollout.mask.reshape(-1, LENGTH),
        rollout.finished.reshape(-1),
        strict=True,
    ):
        length = mask.sum()
        assert mask[:length].all()
        assert not np.isin(tokens[: length - 1], EOS).any()
        assert finished == (tokens[length - 1] in EOS)
        assert finished or length == LENGTH
        if finished:
            ends.add(int(tokens[length - 1]))
    assert ends == set(EOS)  # either end token ends a completion


def test_nothing_is_written_behind_the_end(model):
    rollout = draw(model, group_size=64)
    assert (rollout.tokens[~rollout.mask] == 0).all()
    assert (rollout.logp[~rollout.mask] == 0).all()
    assert (rollout.entropy[~rollout.mask] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_never_occur(model, temperature):
    """Not even where the model wants nothing else."""
    graphdef, params = model
    kernel = params["text"]["head"]["kernel"]
    eager = {**params, "text": {**params["text"], "head": {"kernel": kernel.at[:, 21].set(100.0)}}}
    allowed = draw((graphdef, eager), temperature=temperature, group_size=1)
    assert (allowed.tokens == 21).any()
    rollout = draw(
        (graphdef, eager), temperature=temperature, never_sampled=(IMAGE, 21, 22, 23), group_size=1
    )
    assert not np.isin(rollout.tokens[rollout.mask], (IMAGE, 21, 22, 23)).any()


def test_entropy_is_that_of_the_next_token_distribution(model):
    graphdef, params = model
    rollout = draw(model)
    net = merge(graphdef, params)
    _, prefix = net.prefill(PROMPTS)
    p = np.asarray(jax.nn.softmax(net.logits(prefix.last_hidden)), np.float64)
    np.testing.assert_allclose(rollout.entropy[:, 0, 0], -(p * np.log(p)).sum(axis=-1), rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.6]),
    top_k=st.integers(1, 30),
    top_p=st.floats(0.05, 1.0),
)
def test_processed_logits_equal_those_of_transformers(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=(3, 24)).astype(np.float32) * 2
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    theirs = torch.from_numpy(logits)
    for processor in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
    ):
        theirs = processor(None, theirs)
    ours = np.asarray(processed_logits(jnp.asarray(logits), config))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    rows=arrays(
        np.float32, (3, 17), elements=st.floats(width=32, allow_nan=False, allow_subnormal=False)
    ),
    k=st.integers(1, 17),
)
def test_kth_largest_is_that_of_sorting(rows, k):
    """Of numbers of any size and sign, infinities and ties among them."""
    expected = np.sort(rows, axis=-1)[:, -k, None]
    for block in (2, 128):
        with mock.patch.object(sampling, "_BLOCK", block):
            np.testing.assert_array_equal(kth_largest(jnp.asarray(rows), k), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cache_that_grows_changes_nothing(model, temperature, monkeypatch):
    whole = draw(model, temperature=temperature, min_new_tokens=LENGTH)
    monkeypatch.setattr(sampling, "_SHORT", 2)
    assert sampling._cache_lengths(LENGTH) == (3, 6, 12)
    grown = draw(model, temperature=temperature, min_new_tokens=LENGTH)
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_allclose(grown.logp, whole.logp, rtol=0, atol=1e-5)


def test_prompts_that_are_prefilled_in_pieces_get_the_same_completions(model):
    whole, pieces = draw(model), draw(model, micro_batches=len(PROMPTS.tokens))
    np.testing.assert_array_equal(pieces.tokens, whole.tokens)
    np.testing.assert_allclose(pieces.logp, whole.logp, rtol=0, atol=1e-5)


def test_logits_are_masked_and_never_scattered_into():
    """A scatter would write the logits of a token once more."""
    config = SamplingConfig(top_k=3, min_new_tokens=1)
    made = jax.make_jaxpr(lambda logits: processed_logits(logits, config, [1, 2]))(jnp.ones((2, 9)))
    assert "scatter" not in str(made)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.5, 1.1, 2.0]))
def test_penalised_logits_equal_those_of_transformers(seed, penalty):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 24)).astype(np.float32)
    tokens = rng.integers(0, 24, (3, 6))
    seen = np.zeros((3, 24), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    config = SamplingConfig(repetition_penalty=penalty, top_k=0)
    ours = processed_logits(jnp.asarray(logits), config, seen=jnp.asarray(seen))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(tokens), torch.from_numpy(logits)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_completion_ends_before_it_has_the_least_number_of_tokens(model, temperature):
    free = draw(model, temperature=temperature, max_new_tokens=30)
    bound = draw(model, temperature=temperature, max_new_tokens=30, min_new_tokens=9)
    lengths = bound.mask.sum(axis=-1)
    assert free.mask.sum(axis=-1).min() < 9 <= lengths.min()
    assert not np.isin(bound.tokens[..., :9], EOS).any()


def transformers_probabilities(logits, *, temperature=1.0, top_k=VOCABULARY, top_p=1.0):
    """What transformers draws from."""
    scores = torch.tensor(np.asarray(logits))
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.double().softmax(dim=-1).numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 4},
        {"top_p": 0.7},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8},
    ],
    ids=str,
)
def test_drawn_frequencies_are_those_of_the_distribution(model, settings):
    """Chi-square of the first two tokens of 10,000 completions."""
    count, row = 10_000, 1
    drawn = draw(model, group_size=count, max_new_tokens=2, **settings).tokens[row]
    graphdef, params = model
    net = merge(graphdef, params)
    _, prefix = net.prefill(PROMPTS)
    first = transformers_probabilities(net.logits(prefix.last_hidden)[row, None], **settings)[0]
    every = jnp.broadcast_to(jnp.arange(VOCABULARY)[:, None], (3, VOCABULARY, 1))
    hidden, _ = net.extend(every, prefix)
    second = transformers_probabilities(net.logits(hidden[row, :, 0]), **settings)
    second[list(EOS)] = np.eye(VOCABULARY)[0]  # nothing but padding follows an end token
    expected = count * first[:, None] * second
    counts = np.zeros_like(expected)
    np.add.at(counts, tuple(drawn.T), 1)
    assert not counts[expected == 0].any()
    often = expected >= 5
    rest = [~often & (expected > 0)] if (~often & (expected > 0)).any() else []
    cells = [counts[often], *(counts[few].sum(keepdims=True) for few in rest)]
    wanted = [expected[often], *(expected[few].sum(keepdims=True) for few in rest)]
    assert chisquare(np.concatenate(cells), np.concatenate(wanted)).pvalue > 1e-3
