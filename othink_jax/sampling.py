"""Sampling of completions: one prefill per prompt, then decoding of all G of them together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from othink_jax.config import SamplingConfig
from othink_jax.data.processing import SpecialTokens
from othink_jax.model.vlm import VLM, init_cache, merge
from othink_jax.rows import concat_rows, split_rows
from othink_jax.types import Cache, Prefix, Prompts, Rollout, pytree

_BLOCK = 128  # numbers per block of a row, whose maximum is looked at first, see `kth_largest`
_SHORT = 128  # tokens; up to this length, a cache is allocated at once


@pytree
class _Decoding:
    """Carry of the decoding loop."""

    step: Int[Array, ""]  # tokens drawn so far
    seen: Bool[Array, "B G V"] | None  # tokens of prompt and completion, if they are penalised
    cache: Cache  # all tokens drawn so far except the last
    rollout: Rollout  # filled up to `step`; `finished` also stops a row


def prompt_keys(seed: int, step: int, count: int, *, attempt: int = 0) -> UInt32[np.ndarray, "B 2"]:
    """One random key per prompt for the rollout of `step`, as raw key data on the host.

    Each prompt has its own key, so the tokens drawn for it do not depend on how the batch is
    sharded. Further attempts of a step, counted from 1, have keys of their own.
    """
    root = jax.random.fold_in(jax.random.key(seed), step)
    if attempt:
        root = jax.random.fold_in(root, attempt)
    return np.asarray(jax.random.key_data(jax.random.split(root, count)))


def processed_logits(
    logits: Float[Array, "*b V"],
    config: SamplingConfig,
    never_sampled: Sequence[int] = (),
    *,
    seen: Bool[Array, "*b V"] | None = None,
) -> Float[Array, "*b V"]:
    """Logits of the sampling distribution, processed as by transformers' logits processors.

    In this order: forbidden tokens, repetition penalty, temperature, top-k, top-p. Removed tokens
    get -inf. Tokens that tie at the border of top-k or top-p all stay. At temperature 0, the last
    three are skipped: the likeliest token is the same.

    Args:
      logits: logits of the model.
      config: temperature, top_k, top_p and repetition_penalty are used.
      never_sampled: forbidden tokens.
      seen: true at tokens that occur in the prompt or the completion; None without a penalty.
    """
    if len(never_sampled):
        logits = _without(never_sampled, logits)
    if seen is not None:
        penalty = config.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if config.temperature == 0:
        return logits
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        logits = jnp.where(logits < kth_largest(logits, config.top_k), -jnp.inf, logits)
    if config.top_p < 1.0:
        # Sum the tail from its small end: near top_p = 1 the head's sum lacks the precision.
        ordered = jnp.sort(logits, axis=-1)
        tail = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        kept = (tail > 1.0 - config.top_p).at[..., -1].set(True)
        border = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < border, -jnp.inf, logits)
    return logits


def _without(tokens: Sequence[int], logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
    """Set these tokens to -inf, by a mask: a scatter would write all logits once more."""
    out = np.zeros(logits.shape[-1], bool)
    out[np.asarray(tokens)] = True
    return jnp.where(out, -jnp.inf, logits)


def kth_largest(values: Float[Array, "*b V"], k: int) -> Float[Array, "*b 1"]:
    """The k-th largest of each row of float32 numbers, exactly.

    The k blocks with the largest maxima hold the k largest numbers. One pass over a long row finds
    those blocks; the rest works on them alone. `jax.lax.top_k` would sort the row.
    """
    blocks = -(-values.shape[-1] // _BLOCK)
    if blocks > k:
        padding = [(0, 0)] * (values.ndim - 1) + [(0, blocks * _BLOCK - values.shape[-1])]
        cut = jnp.pad(values, padding, constant_values=-jnp.inf)
        cut = cut.reshape(*values.shape[:-1], blocks, _BLOCK)
        _, best = jax.lax.top_k(cut.max(axis=-1), k)
        values = jnp.take_along_axis(cut, best[..., None], axis=-2)
        values = values.reshape(*values.shape[:-2], k * _BLOCK)
    return _kth_by_bits(values, k)


def _kth_by_bits(values: Float[Array, "*b n"], k: int) -> Float[Array, "*b 1"]:
    """The k-th largest of each row, found bit by bit.

    On a CPU, `jax.lax.top_k` takes 9 times as long for 513 numbers.
    """
    sign = jnp.uint32(1 << 31)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # Integers in the order of the floats: negative ones with all bits flipped, others above them.
    ordered = jnp.where(bits & sign, ~bits, bits | sign)

    def add_bit(turn: Int[Array, ""], found: UInt32[Array, "*b 1"]) -> UInt32[Array, "*b 1"]:
        probe = found | (sign >> turn.astype(jnp.uint32))
        reached = (ordered >= probe).sum(axis=-1, keepdims=True) >= k
        return jnp.where(reached, probe, found)

    found = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros_like(ordered[..., :1]))
    bits = jnp.where(found & sign, found ^ sign, ~found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _draw(
    key_data: UInt32[Array, "B 2"],
    step: Int[Array, ""],
    logits: Float[Array, "B G V"],
    temperature: float,
) -> Int[Array, "B G"]:
    """Draw one token per completion from processed logits."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda data: jax.random.fold_in(jax.random.wrap_key_data(data), step))(key_data)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _tokens_of(prompts: Prompts, group_size: int, vocabulary: int) -> Bool[Array, "B G V"]:
    """Tokens that occur in each prompt."""
    rows = jnp.arange(len(prompts.tokens))[:, None]
    seen = jnp.zeros((len(prompts.tokens), vocabulary), bool)
    seen = seen.at[rows, prompts.tokens].max(jnp.asarray(prompts.mask))
    return jnp.broadcast_to(seen[:, None], (len(seen), group_size, vocabulary))


def sample(
    model: VLM,
    prompts: Prompts,
    key_data: UInt32[Array, "B 2"],
    *,
    group_size: int,
    config: SamplingConfig,
    eos_token_ids: Sequence[int],
    micro_batches: int = 1,
    prefill_by: VLM | None = None,
    never_sampled: Sequence[int] = (),
    pad_token_id: int = 0,
) -> Rollout:
    """Draw `group_size` completions of each prompt; greedy if `config.temperature` is 0.

    Pure and jittable; everything but `prompts` and `key_data` is static. The loop ends when every
    completion has drawn one of `eos_token_ids` or `config.max_new_tokens` are drawn. Tokens in
    `never_sampled` (image and other vision placeholders) cannot occur. Prompts are prefilled in
    `micro_batches` micro-batches, one at a time in memory. `prefill_by`, if given, does the
    prefill: the same model in another layout.

    `Rollout.logp` and `Rollout.entropy` are those of the model itself, at temperature 1 and without
    truncation. The update computes the same for these tokens, whatever the sampling settings.
    """
    batch, capacity = prompts.tokens.shape[0], config.max_new_tokens
    shape = (batch, group_size, capacity)
    prefix = _prefill(prefill_by or model, prompts, micro_batches)
    first = model.logits(prefix.last_hidden)
    eos = jnp.asarray(np.asarray(eos_token_ids, np.int32))

    def draw_next(now: _Decoding, logits: Float[Array, "B G V"]) -> _Decoding:
        so_far, logprobs = now.rollout, jax.nn.log_softmax(logits, axis=-1)
        allowed = logits
        if config.min_new_tokens:
            early = now.step < config.min_new_tokens
            allowed = jnp.where(early, _without(eos_token_ids, allowed), allowed)
        allowed = processed_logits(allowed, config, never_sampled, seen=now.seen)
        token = _draw(key_data, now.step, allowed, config.temperature)
        token = jnp.where(so_far.finished, pad_token_id, token)
        logp = jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)

        def write(rows: Array, column: Array) -> Array:
            column = jnp.where(so_far.finished, jnp.zeros_like(column), column)[..., None]
            return jax.lax.dynamic_update_slice_in_dim(rows, column, now.step, axis=-1)

        rollout = Rollout(
            tokens=jax.lax.dynamic_update_slice_in_dim(
                so_far.tokens, token[..., None], now.step, axis=-1
            ),
            mask=write(so_far.mask, ~so_far.finished),
            logp=write(so_far.logp, logp),
            entropy=write(so_far.entropy, entropy),
            finished=so_far.finished | jnp.isin(token, eos),
        )
        seen = now.seen
        if seen is not None:
            seen |= jax.nn.one_hot(token, seen.shape[-1], dtype=bool)
        return dataclasses.replace(now, step=now.step + 1, seen=seen, rollout=rollout)

    def decode_step(carry: tuple[Int[Array, ""], _Decoding]) -> tuple[Int[Array, ""], _Decoding]:
        turn, now = carry
        last = jax.lax.dynamic_slice_in_dim(now.rollout.tokens, now.step - 1, 1, axis=-1)
        hidden, cache = model.extend(last, prefix, now.cache)
        assert cache is not None
        now = dataclasses.replace(now, cache=cache)
        return turn + 1, draw_next(now, model.logits(hidden[:, :, 0]))

    start = _Decoding(
        step=jnp.int32(0),
        seen=None
        if config.repetition_penalty == 1
        else _tokens_of(prompts, group_size, first.shape[-1]),
        cache=init_cache(model.config, batch, group_size, 0, model.dtype),
        rollout=Rollout(
            tokens=jnp.full(shape, pad_token_id, jnp.int32),
            mask=jnp.zeros(shape, bool),
            logp=jnp.zeros(shape, jnp.float32),
            entropy=jnp.zeros(shape, jnp.float32),
            finished=jnp.zeros(shape[:2], bool),
        ),
    )
    first = jnp.broadcast_to(first[:, None], (batch, group_size, first.shape[-1]))
    now, drawn = draw_next(start, first), 1
    for length in _cache_lengths(capacity):
        # A turn writes the last token into the cache and draws the next one. Turns count from zero,
        # so that `othink-jax plan` finds their number in the compiled program.
        turns = min(length + 1, capacity) - drawn

        def keep_decoding(carry: tuple[Int[Array, ""], _Decoding], turns: int = turns) -> Array:
            turn, now = carry
            return (turn < turns) & ~jnp.all(now.rollout.finished)

        now = dataclasses.replace(now, cache=_grown(now.cache, length))
        _, now = jax.lax.while_loop(keep_decoding, decode_step, (jnp.int32(0), now))
        drawn += turns
    return now.rollout


def _prefill(model: VLM, prompts: Prompts, pieces: int) -> Prefix:
    """Prefill one micro-batch of prompts at a time, which bounds the memory of intermediates."""
    if pieces == 1:
        return model.prefill(prompts)[1]
    cut = split_rows(prompts, pieces)
    return concat_rows(jax.lax.map(lambda piece: model.prefill(piece)[1], cut))


def _cache_lengths(capacity: int) -> tuple[int, ...]:
    """Successive lengths of the cache: decoding a token reads all of it, full or not."""
    lengths = (capacity // 4, capacity // 2, capacity)
    return tuple(length for length in lengths if length > _SHORT) or (capacity,)


def _grown(cache: Cache, length: int) -> Cache:
    def grow(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0), (0, 0)))

    keys, values = (tuple(map(grow, kept)) for kept in (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values)


def make_sampler(
    graphdef: Any,
    processor: SpecialTokens,
    config: SamplingConfig,
    *,
    group_size: int = 1,
    micro_batches: int = 1,
    prefill_graphdef: Any = None,
) -> Callable[..., Rollout]:
    """`sample` for one model and tokenizer, as a pure function.

    It takes weights, params, prompts and key_data. `params` belong to `prefill_graphdef`, the same
    model in another layout, which then does the prefill. If None, the weights do that too.
    """

    def sampler(
        weights: Any, params: Any, prompts: Prompts, key_data: UInt32[Array, "B 2"]
    ) -> Rollout:
        return sample(
            merge(graphdef, weights),
            prompts,
            key_data,
            group_size=group_size,
            config=config,
            micro_batches=micro_batches,
            prefill_by=None if params is None else merge(prefill_graphdef, params),
            eos_token_ids=processor.eos_token_ids,
            never_sampled=processor.never_sampled,
            pad_token_id=processor.pad_token_id,
        )

    return sampler
