"""Cost of attention of completions over their prompt by each kernel, forward and backward.

Claim: no kernel but the reference holds the scores of all queries. For one prompt of 1024 tokens
    and eight completions of 2048, temporaries stay below 0.6 GB, with the same gradients.
Command: python -m experiments.bench.attention --preset cpu --json runs/attention.json
Cost: a minute on two CPU cores.
Shows: seconds and temporary memory of each kernel that the platform has, and the largest difference
    of a gradient from the reference's, relative to its largest number.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.timing import environment, interleave, make_parser, write_json
from othink_jax.model.attention import chunked, cudnn, reference, splash

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes of one attention layer."""

    prompts: int
    group: int
    prompt_tokens: int
    length: int
    kv_heads: int
    shared: int  # query heads per key-value head
    head_dim: int
    dtype: str


PRESETS = {
    "cpu": Shapes(
        prompts=1,
        group=8,
        prompt_tokens=512,
        length=512,
        kv_heads=2,
        shared=1,
        head_dim=64,
        dtype="float32",
    ),
    # Heads of Qwen2-VL-2B.
    "gpu_2b": Shapes(
        prompts=2,
        group=8,
        prompt_tokens=1024,
        length=2048,
        kv_heads=2,
        shared=6,
        head_dim=128,
        dtype="bfloat16",
    ),
}
PRESETS["gpu_smoke"] = dataclasses.replace(
    PRESETS["gpu_2b"], prompts=1, group=2, prompt_tokens=64, length=64, kv_heads=1, shared=2
)


def kernels(dtype: str) -> dict[str, ModuleType]:
    """The kernels that this platform has, the reference first."""
    found = {"reference": reference, "chunked": chunked}
    platform = jax.default_backend()
    if platform == "tpu":
        found["splash"] = splash
    if platform == "gpu" and dtype == "bfloat16":
        found["cudnn"] = cudnn
    return found


def make_inputs(shapes: Shapes) -> tuple[jax.Array, ...]:
    """Query, keys and values of prompts, keys and values of completions."""
    rng = np.random.default_rng(0)
    B, G, P, T = shapes.prompts, shapes.group, shapes.prompt_tokens, shapes.length
    heads = (shapes.kv_heads, shapes.head_dim)
    query = (B, G, T, shapes.kv_heads, shapes.shared, shapes.head_dim)
    sizes = (query, (B, P, *heads), (B, P, *heads), (B, G, T, *heads), (B, G, T, *heads))
    return tuple(jnp.asarray(rng.normal(size=size), shapes.dtype) for size in sizes)


def compile_gradient(kernel: ModuleType, inputs: tuple[jax.Array, ...]) -> Any:
    """Compiled gradient with respect to all inputs; the last eighth of each prompt is padding."""
    batch, length = inputs[1].shape[:2]
    real = jnp.broadcast_to(jnp.arange(length) < length - length // 8, (batch, length))

    def total(query: Any, prefix_key: Any, prefix_value: Any, key: Any, value: Any) -> jax.Array:
        made = kernel.shared_prefix_attention(query, prefix_key, prefix_value, real, key, value)
        return jnp.square(made.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(total, argnums=range(5))).lower(*inputs).compile()


def measure(shapes: Shapes, repeats: int) -> dict[str, Any]:
    """Compare the kernels, then time them; returns the record of the run.

    Raises:
      AssertionError: the gradients of two kernels differ by more than rounding.
    """
    inputs = make_inputs(shapes)
    programs = {
        name: compile_gradient(kernel, inputs) for name, kernel in kernels(shapes.dtype).items()
    }
    expected = jax.device_get(programs["reference"](*inputs))
    rows: dict[str, dict[str, float]] = {}
    for name, program in programs.items():
        found = jax.device_get(program(*inputs))
        largest = max(
            float(np.abs(np.float32(x) - np.float32(y)).max() / np.abs(np.float32(y)).max())
            for x, y in zip(found, expected, strict=True)
        )
        assert largest < TOLERANCE[shapes.dtype], f"gradients of {name} differ by {largest}"
        temporary = program.memory_analysis().temp_size_in_bytes
        rows[name] = {"max_rel_grad_diff": largest, "temp_bytes": temporary}
    runs = {name: functools.partial(program, *inputs) for name, program in programs.items()}
    times = interleave(runs, repeats)
    return {
        "shapes": dataclasses.asdict(shapes),
        "repeats": repeats,
        **environment(),
        "kernels": {name: rows[name] | times[name] for name in rows},
    }


def table(result: Mapping[str, Any]) -> str:
    """The record as text."""
    lines = [f"{result['device']}, {result['repeats']} repeats"]
    lines.append(f"{'kernel':<12}{'min':>10}{'median':>10}{'memory':>12}{'difference':>13}")
    lines += [
        f"{name:<12}{row['min_s']:>9.4f}s{row['median_s']:>9.4f}s"
        f"{row['temp_bytes'] / 1e6:>9.1f} MB{row['max_rel_grad_diff']:>13.1e}"
        for name, row in result["kernels"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    arguments = parser.parse_args()
    result = measure(PRESETS[arguments.preset], arguments.repeats)
    print(table(result))
    if arguments.json is not None:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
