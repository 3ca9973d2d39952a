"""How the cost of reference and update grows with completions, prompts, tokens and devices.

Claim: with a prompt computed once, a further completion costs only its own tokens, and a further
    device takes its share of the total memory.
Command: python -m experiments.bench.scaling --json runs/scaling.json --plot runs/scaling.png
Cost: about ten minutes on two CPU cores, 4 GB.
Shows: seconds of the three modes of `model.log_probs` against completions per prompt, prompt tokens
    and completion tokens; seconds and bytes per device of a mesh against the number of devices.
    Simulated devices share the cores, so their seconds stay constant at best.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.bench import update
from experiments.bench.shapes import Shapes, make_batch, make_model, presets
from experiments.bench.timing import environment, interleave, make_parser, write_json
from othink_jax import rl
from othink_jax.config import LossConfig, OptimizerConfig, ParallelConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.update import grpo_update
from othink_jax.types import GRPOBatch

_DEVICES = (1, 2, 4, 8)
_LABELS = {
    "group": "completions a prompt",
    "prompt_tokens": "prompt tokens, 22 of them text",
    "length": "completion tokens",
}


def sweeps(base: Shapes) -> dict[str, list[Shapes]]:
    """Shapes that differ from `base` in one field, by its name."""
    change = functools.partial(dataclasses.replace, base)
    text = base.prompt_tokens - base.image[0] * base.image[1]
    images = ((4, 8), (8, 8), base.image, (16, 16))
    return {
        "group": [change(group=group) for group in (1, 2, 4, 8, 16)],
        "prompt_tokens": [
            change(prompt_tokens=text + rows * columns, image=(rows, columns))
            for rows, columns in images
        ],
        "length": [change(length=length) for length in (16, 32, 64, 128, 256)],
    }


def over_devices(shapes: Shapes, counts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of an update on meshes of `counts` devices, and the bytes on each device."""
    graphdef, params = make_model(shapes)
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(rl.constant_kl(0.04)), 10**6)

    def logp(params: Any, batch: GRPOBatch) -> jax.Array:
        model = merge(graphdef, params)
        return completion_logp(model, batch.prompts, batch.completions, chunk=shapes.chunk)

    states, ways, rows = {}, {}, []
    for count in counts:
        parallel = make_parallel(ParallelConfig(strategy="mesh", devices=count))
        batch = parallel.shard(make_batch(shapes))
        states[count] = parallel.create_state(params, tx)
        step = functools.partial(grpo_update, logp_fn=logp, tx=tx, config=LossConfig())
        compiled: Any = parallel.compile_update(step)
        program = compiled.lower(states[count], batch).compile()
        memory = program.memory_analysis()
        rows.append(
            {
                "devices": count,
                "state_bytes": memory.alias_size_in_bytes,
                "temp_bytes": memory.temp_size_in_bytes,
            }
        )

        def run(count: int = count, program: Any = program, batch: Any = batch) -> Any:
            states[count], metrics = program(states[count], batch)
            return metrics

        ways[str(count)] = run
    losses = [float(run()["loss"]) for run in ways.values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4, atol=1e-6)
    times = interleave(ways, repeats)
    return [row | times[str(row["devices"])] for row in rows]


def measure(base: Shapes, repeats: int) -> dict[str, Any]:
    """The record of the run."""
    seen: dict[Shapes, dict[str, Any]] = {}

    def of(shapes: Shapes) -> dict[str, Any]:
        if shapes not in seen:
            seen[shapes] = update.measure(shapes, repeats)
        return {name: seen[shapes][name] for name in ("modes", "max_rel_grad_diff")}

    by_axis = {
        axis: [{axis: getattr(shapes, axis), **of(shapes)} for shapes in found]
        for axis, found in sweeps(base).items()
    }
    spread = dataclasses.replace(base, prompts=max(_DEVICES))
    counts = [count for count in _DEVICES if count <= jax.device_count()]
    return {
        "shapes": base.record(),
        "repeats": repeats,
        **environment(),
        **by_axis,
        "devices": over_devices(spread, counts, repeats),
    }


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the record in four panels."""
    figure, panels = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for panel, (axis, label) in zip(panels, _LABELS.items(), strict=False):
        values = [row[axis] for row in result[axis]]
        for mode, marker in zip(update.MODES, "so^", strict=True):
            seconds = [row["modes"][mode]["min_s"] for row in result[axis]]
            panel.plot(values, seconds, marker=marker, label=mode)
        panel.set(xlabel=label, ylabel="seconds", xticks=values, ylim=(0, None))
    panels[0].legend(frameon=False)
    names = [str(row["devices"]) for row in result["devices"]]
    bottom = np.zeros(len(names))
    for part, label in (("state_bytes", "state"), ("temp_bytes", "temporary")):
        megabytes = np.array([row[part] / 1e6 for row in result["devices"]])
        panels[3].bar(names, megabytes, bottom=bottom, label=label)
        bottom += megabytes
    panels[3].set(xlabel="devices (FSDP)", ylabel="MB on each")
    panels[3].legend(frameon=False)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def table(result: Mapping[str, Any]) -> str:
    """The record as text."""
    lines = [f"{result['device']}, {result['repeats']} repeats, seconds (fastest)"]
    for axis, label in _LABELS.items():
        lines.append(f"{label:<32}" + "".join(f"{row[axis]:>9}" for row in result[axis]))
        for mode in update.MODES:
            seconds = (row["modes"][mode]["min_s"] for row in result[axis])
            lines.append(f"  {mode:<30}" + "".join(f"{value:>9.3f}" for value in seconds))
    rows = result["devices"]
    lines.append(f"{'devices (FSDP)':<32}" + "".join(f"{row['devices']:>9}" for row in rows))
    for name, unit, scale in (("min_s", "seconds", 1), ("state_bytes", "MB of state", 1e6)):
        values = (row[name] / scale for row in rows)
        lines.append(f"  {unit:<30}" + "".join(f"{value:>9.3f}" for value in values))
    temporary = (row["temp_bytes"] / 1e6 for row in rows)
    lines.append(f"  {'MB of temporary memory':<30}" + "".join(f"{x:>9.1f}" for x in temporary))
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--plot", type=Path, help="draw it to this PNG")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(_DEVICES))
    base = dataclasses.replace(presets()["cpu"], prompts=2)
    result = measure(base, arguments.repeats)
    print(table(result))
    if arguments.json is not None:
        write_json(arguments.json, result)
    if arguments.plot is not None:
        draw(result, arguments.plot)


if __name__ == "__main__":
    main()
