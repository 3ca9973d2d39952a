"""Cost of computing logits in chunks, and again in the backward pass.

Claim: at most 5% more time than with all logits held at once, where those fit; memory divided by
    the number of chunks.
Command: python -m experiments.bench.logits --json runs/logits.json
Cost: about two minutes on two CPU cores, 2 GB.
Shows: seconds and temporary memory of log-probs and their gradient with respect to hidden states
    and weights, of the head alone. In a whole update the difference weighs less.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.shapes import make_model, presets
from experiments.bench.timing import environment, interleave, make_parser, write_json
from othink_jax.model.log_probs import token_logp
from othink_jax.model.vlm import VLM, merge

# Vocabulary size, tokens, and the chunk sizes that are tried.
CASES = (
    (513, 2048, (2048, 1024, 512, 256)),
    (32_000, 2048, (2048, 1024, 512, 256)),
    (151_936, 512, (512, 256, 128, 64)),
)


def held_whole(model: VLM, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probabilities with the logits of all tokens at once, kept for the backward pass."""
    logp = jax.nn.log_softmax(model.logits(hidden))
    return jnp.take_along_axis(logp, targets[:, None], axis=-1)[:, 0]


def measure(
    vocabulary: int, tokens: int, chunks: tuple[int, ...], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds and memory without chunks and with each chunk size; compares the gradients first.

    Raises:
      AssertionError: the gradients differ by more than rounding.
    """
    shapes = presets()["cpu"]
    text = dataclasses.replace(shapes.model.text, vocab_size=vocabulary)
    shapes = dataclasses.replace(shapes, model=dataclasses.replace(shapes.model, text=text))
    graphdef, params = make_model(shapes)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(tokens, text.hidden_size)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, tokens), jnp.int32)

    def compile_gradient(logp: Callable[..., jax.Array]) -> Any:
        def loss(params: Any, hidden: jax.Array) -> jax.Array:
            return logp(merge(graphdef, params), hidden, targets).mean()

        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, hidden).compile()

    programs = {"whole": compile_gradient(held_whole)}
    for chunk in chunks:
        programs[str(chunk)] = compile_gradient(functools.partial(token_logp, chunk=chunk))
    expected = jax.tree.leaves(programs["whole"](params, hidden))
    for name, program in programs.items():
        for x, y in zip(jax.tree.leaves(program(params, hidden)), expected, strict=True):
            assert jnp.abs(x - y).max() <= 1e-4 * jnp.abs(y).max(), f"chunk {name} differs"
    times = interleave(
        {name: functools.partial(run, params, hidden) for name, run in programs.items()}, repeats
    )
    return {
        name: {
            **times[name],
            "over_whole": times[name]["min_s"] / times["whole"]["min_s"],
            "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        for name, program in programs.items()
    }


def main() -> None:
    parser = make_parser(__doc__)
    arguments = parser.parse_args()
    cases = []
    for vocabulary, tokens, chunks in CASES:
        found = measure(vocabulary, tokens, chunks, arguments.repeats)
        cases.append({"vocabulary": vocabulary, "tokens": tokens, "chunks": found})
        print(f"{vocabulary} words, {tokens} tokens")
        for name, row in found.items():
            print(
                f"  {name:>6}{row['min_s']:>9.4f}s{row['median_s']:>9.4f}s"
                f"{row['over_whole']:>8.3f}x{row['temp_bytes'] / 1e6:>8.0f} MB"
            )
    if arguments.json is not None:
        write_json(arguments.json, {"repeats": arguments.repeats, **environment(), "cases": cases})


if __name__ == "__main__":
    main()
