"""Savings in a rollout from one prefill and one stored prompt for all completions of a group.

Claim: sampling a group of completions costs one prefill and one copy of the prompt's keys and
    values. A token costs the time to read weights, prompts and completions from memory.
Command: python -m experiments.bench.rollout --preset cpu --json runs/rollout.json
Cost: about two minutes on two CPU cores.
Shows: seconds of a rollout, of its prefill and of a token; seconds with the prompt's keys and
    values copied for each completion, with the whole prompt computed for each, and of transformers'
    `generate` if torch is installed; the share of the memory bandwidth that decoding reaches.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.shapes import Shapes, make_batch, make_model, presets, special_tokens
from experiments.bench.timing import environment, interleave, make_parser, write_json
from othink_jax.config import SamplingConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import VLM, merge
from othink_jax.sampling import prompt_keys, sample
from othink_jax.types import Array, Prefix, Prompts, Rollout

# Largest difference of a token's log-probability from that of the update, nats.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}


@dataclasses.dataclass(frozen=True)
class CopiedPrefix:
    """A model that computes a prompt once and copies its keys and values for each completion."""

    model: VLM
    prompts: Prompts  # B prompts, although `prefill` is given B * G
    group: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prefill(self, _: Prompts) -> tuple[None, Prefix]:
        return None, repeated(self.model.prefill(self.prompts)[1], self.group)


def repeated(tree: Any, group: int) -> Any:
    """Repeat every row `group` times, side by side."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), tree)


def make_samplers(shapes: Shapes, graphdef: Any) -> dict[str, Callable[..., Rollout]]:
    """Jitted functions of (params, prompts, keys) that sample G completions of each prompt.

    None of them ends a completion early. `prefill` samples one token, the others T.
    """

    def draw(model: Any, prompts: Prompts, keys: Array, group: int, tokens: int) -> Rollout:
        return sample(
            model,
            prompts,
            keys,
            group_size=group,
            config=SamplingConfig(max_new_tokens=tokens, top_k=0),
            eos_token_ids=(),
            never_sampled=special_tokens(shapes.model),
        )

    def shared(params: Any, prompts: Prompts, keys: Array, tokens: int = shapes.length) -> Rollout:
        return draw(merge(graphdef, params), prompts, keys, shapes.group, tokens)

    def each(params: Any, prompts: Prompts, keys: Array, *, copied: bool) -> Rollout:
        model: Any = merge(graphdef, params)
        if copied:
            model = CopiedPrefix(model, prompts, shapes.group)
        rows, row_keys = repeated((prompts, keys), shapes.group)
        rollout = draw(model, rows, row_keys, 1, shapes.length)
        grouped = (shapes.prompts, shapes.group)
        return jax.tree.map(lambda leaf: leaf.reshape(*grouped, *leaf.shape[2:]), rollout)

    return {
        "shared": jax.jit(shared),
        "prefill": jax.jit(functools.partial(shared, tokens=1)),
        "copied_prefix": jax.jit(functools.partial(each, copied=True)),
        "repeated_prompt": jax.jit(functools.partial(each, copied=False)),
    }


def max_logp_diff(
    shapes: Shapes, graphdef: Any, params: Any, prompts: Prompts, tokens: Array, logp: Array
) -> float:
    """Largest difference of a sampler's log-probabilities from those of the update, nats.

    Raises:
      AssertionError: it is larger than `TOLERANCE`.
    """

    @jax.jit
    def of_update(params: Any, prompts: Prompts, tokens: Array) -> Array:
        return completion_logp(merge(graphdef, params), prompts, tokens, chunk=shapes.chunk)

    difference = float(jnp.abs(of_update(params, prompts, tokens) - logp).max())
    assert difference < TOLERANCE[shapes.dtype], f"log-probabilities differ by {difference}"
    return difference


def bytes_of_a_token(shapes: Shapes) -> float:
    """Least number of bytes that a decode step reads, for all completions together.

    The text tower's weights and head once, keys and values of each prompt once, and those of each
    completion at half its final length, the average.
    """
    text = shapes.model.text
    width, kv_width = text.hidden_size, text.num_key_value_heads * text.head_dim
    weights = 2 * width * (width + kv_width) + 3 * width * text.intermediate_size
    tokens = shapes.prompts * (shapes.prompt_tokens + shapes.group * shapes.length / 2)
    numbers = text.num_hidden_layers * (weights + 2 * kv_width * tokens) + width * text.vocab_size
    return numbers * jnp.dtype(shapes.dtype).itemsize


def bandwidth(megabytes: int) -> float:
    """Bytes per second at which a large array is read, the best of ten times."""
    x = jnp.ones(megabytes * 2**18, jnp.float32)
    total = jax.jit(jnp.sum)
    return x.nbytes / interleave({"read": lambda: total(x)}, 10)["read"]["min_s"]


def measure(
    shapes: Shapes, repeats: int, names: tuple[str, ...], megabytes: int = 1024
) -> dict[str, Any]:
    """Compare the named ways, then time them; returns the record of the run.

    Args:
      shapes: of the model and the rollout.
      repeats: timed runs of each way.
      names: of `make_samplers`, or `transformers`; `shared` and `prefill` are always measured.
      megabytes: size of the array that the bandwidth is measured with.
    """
    graphdef, params = make_model(shapes)
    params = jax.tree.map(lambda leaf: leaf.astype(shapes.dtype), params)
    prompts = jax.device_put(make_batch(shapes).prompts)
    keys = prompt_keys(0, 0, shapes.prompts)
    difference = functools.partial(max_logp_diff, shapes, graphdef, params, prompts)
    differences, ways = {}, {}
    for name, sampler in make_samplers(shapes, graphdef).items():
        if name in ("shared", "prefill", *names):
            ways[name] = functools.partial(sampler, params, prompts, keys)
            rollout = ways[name]()
            differences[name] = difference(rollout.tokens, rollout.logp)
    if "transformers" in names:
        from experiments.bench.peer import Peer

        peer = Peer(shapes, params, prompts)
        differences["transformers"] = difference(*peer.sample_with_logp(tokens=8))
        ways["transformers"] = functools.partial(peer.sample, shapes.length)
    times = interleave(ways, repeats)
    token_s = (times["shared"]["min_s"] - times["prefill"]["min_s"]) / (shapes.length - 1)
    rate = bandwidth(megabytes)
    return {
        "shapes": shapes.record(),
        "repeats": repeats,
        **environment(),
        "max_logp_diff": differences,
        "ways": times,
        **{
            f"{name}_over_shared": times[name]["min_s"] / times["shared"]["min_s"] for name in names
        },
        "token_s": token_s,
        "tokens_per_second": shapes.prompts * shapes.group / token_s,
        "bandwidth_bytes_per_s": rate,
        "share_of_bandwidth": bytes_of_a_token(shapes) / token_s / rate,
    }


def table(result: Mapping[str, Any]) -> str:
    """The record as text."""
    shapes, ways = result["shapes"], result["ways"]
    lines = [
        f"{result['device']}, {result['repeats']} repeats: {shapes['prompts']} prompts,"
        f" {shapes['group']} completions of {shapes['length']} tokens each",
        f"{'way':<18}{'min':>10}{'median':>10}{'over shared':>13}",
    ]
    for name, row in ways.items():
        over = row["min_s"] / ways["shared"]["min_s"]
        lines.append(f"{name:<18}{row['min_s']:>9.3f}s{row['median_s']:>9.3f}s{over:>12.2f}x")
    lines.append(
        f"shared: {1e3 * result['token_s']:.2f} ms for a token of all completions,"
        f" {result['tokens_per_second']:.0f} tokens/s, {result['share_of_bandwidth']:.1%} of"
        f" {result['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s"
    )
    return "\n".join(lines)


def cases(preset: str) -> list[tuple[Shapes, tuple[str, ...]]]:
    """The shapes that are measured, and the ways that are compared at each."""
    # Unrolled layers: with scanned ones, each decode step would copy the whole KV cache.
    shapes = dataclasses.replace(presets()[preset], scan_layers="off")
    ways: tuple[str, ...] = ("copied_prefix", "repeated_prompt")
    if importlib.util.find_spec("torch") is not None:
        ways += ("transformers",)
    if not preset.startswith("gpu"):
        return [(shapes, ways)]
    # With 32 prompts only `shared`: the images of 256 prompts, as in `repeated_prompt`, do not fit.
    return [(shapes, ways), (dataclasses.replace(shapes, prompts=32), ())]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", choices=sorted(presets()), default="cpu")
    arguments = parser.parse_args()
    results = []
    for shapes, ways in cases(arguments.preset):
        results.append(measure(shapes, arguments.repeats, ways))
        print(table(results[-1]))
    if arguments.json is not None:
        write_json(arguments.json, {"cases": results})


if __name__ == "__main__":
    main()
