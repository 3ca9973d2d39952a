"""A policy small enough to write twice: logits from the prompt, its images and the last token."""

import jax
import jax.numpy as jnp
import numpy as np

from othink_jax.types import GRPOBatch, Prompts, TokenStats

VOCABULARY, WIDTH, CHANNELS = 7, 4, 6


def toy_params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"prompt": (VOCABULARY, WIDTH), "token": (VOCABULARY, WIDTH)}
    shapes |= {"image": (CHANNELS, WIDTH), "out": (WIDTH, VOCABULARY)}
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def toy_logp(params, batch):
    """Log-probabilities [B, G, T] of the completions. Every row depends on its own row only."""
    logps = toy_logps(params, batch)
    return jnp.take_along_axis(logps, batch.completions[..., None], axis=-1)[..., 0]


def toy_stats(params, batch):
    """The same with the entropies."""
    logps = toy_logps(params, batch)
    entropy = -(jnp.exp(logps) * logps).sum(axis=-1)
    return TokenStats(logp=toy_logp(params, batch), entropy=entropy)


def toy_logps(params, batch):
    """Log-probabilities [B, G, T, V] of every token in the place of one of the completions."""
    prompts = batch.prompts
    embedded = jnp.where(prompts.mask[..., None], params["prompt"][prompts.tokens], 0.0)
    state = embedded.sum(axis=1) / prompts.mask.sum(axis=1)[:, None]
    if prompts.patches.shape[1]:  # as the model, which leaves out its vision tower
        patches = jnp.where(prompts.patch_mask[..., None], prompts.patches, 0.0)
        state += jnp.einsum("bikc,cw->bw", patches, params["image"])
    previous = jnp.pad(batch.completions[..., :-1], ((0, 0), (0, 0), (1, 0)))
    hidden = jnp.tanh(state[:, None, None] + params["token"][previous])
    return jax.nn.log_softmax(hidden @ params["out"], axis=-1)


def numpy_toy_logp(params, batch):
    """The same, one token after the other."""
    prompts, result = batch.prompts, np.zeros(batch.completions.shape)
    for b, g, t in np.ndindex(result.shape):
        state = np.zeros(WIDTH)
        length = prompts.mask[b].sum()
        for token in prompts.tokens[b, :length]:
            state = state + params["prompt"][token] / length
        for patch, real in zip(
            prompts.patches[b].reshape(-1, CHANNELS), prompts.patch_mask[b].ravel(), strict=True
        ):
            if real:
                state = state + patch @ params["image"]
        previous = batch.completions[b, g, t - 1] if t else 0
        logits = np.tanh(state + params["token"][previous]) @ params["out"]
        chosen = logits[batch.completions[b, g, t]]
        result[b, g, t] = chosen - np.log(np.sum(np.exp(logits)))
    return result


def toy_batch(seed=0, *, prompts=8, group=4, length=5, images=2, on_policy=False):
    """A host batch with ragged prompts, images and completions; one completion is empty."""
    rng = np.random.default_rng(seed)
    tokens, patches = 6, 3
    prompt_lengths = rng.integers(1, tokens + 1, prompts)
    completion_lengths = rng.integers(1, length + 1, (prompts, group))
    completion_lengths[0, 0] = 0
    shape = (prompts, group, length)
    ref_logp = rng.normal(-2, 0.5, shape).astype(np.float32)
    return GRPOBatch(
        prompts=Prompts(
            tokens=rng.integers(0, VOCABULARY, (prompts, tokens)).astype(np.int32),
            mask=np.arange(tokens) < prompt_lengths[:, None],
            positions=np.tile(np.arange(tokens, dtype=np.int32), (prompts, 3, 1)),
            image_index=np.full((prompts, tokens), -1, np.int32),
            patches=rng.normal(0, 0.3, (prompts, images, patches, CHANNELS)).astype(np.float32),
            patch_positions=np.zeros((prompts, images, patches, 2), np.int32),
            patch_mask=rng.random((prompts, images, patches)) < 0.7,
        ),
        completions=rng.integers(0, VOCABULARY, shape).astype(np.int32),
        mask=np.arange(length) < completion_lengths[..., None],
        advantages=rng.normal(0, 1, (prompts, group)).astype(np.float32),
        ref_logp=ref_logp,
        old_logp=None if on_policy else ref_logp + rng.normal(0, 0.2, shape).astype(np.float32),
    )
