"""Curves of a run as SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = ("#1f5fa8", "#c8552b", "#3a8a4d", "#7a4ba0")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#888888",
    "legend.frameon": False,
}


def smoothed(values: Sequence[float]) -> Float[np.ndarray, " steps"]:
    """Mean over a window of a tenth of the run, centred, cut at its ends."""
    array = np.asarray(values, float)
    half = max(1, len(array) // 20)
    return np.array(
        [array[max(0, i - half) : i + half + 1].mean() for i in range(len(array))], float
    )


def _draw(axes: Axes, metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    for colour, (name, label) in zip(_COLOURS, names.items(), strict=False):
        rows = [(row["step"], row[name]) for row in metrics if name in row]
        if rows:
            steps, values = zip(*rows, strict=True)
            axes.plot(steps, values, ".", color=colour, alpha=0.25, markersize=3)
            axes.plot(steps, smoothed(values), color=colour, label=label, linewidth=1.6)
    if len(names) > 1:
        axes.legend(loc="best", fontsize=8)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def curve(metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str], unit: str) -> str:
    """One panel: raw points light, smoothed lines over them.

    Args:
      metrics: rows with `step` and the named entries.
      names: entry -> label.
      unit: of the vertical axis.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.7))
        axes = figure.add_subplot()
        _draw(axes, metrics, names)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        return _svg(figure)


def kl_and_beta(metrics: Sequence[Mapping[str, Any]]) -> str:
    """KL above, its weight below, on one time axis."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.6))
        upper, lower = figure.subplots(2, 1, sharex=True)
        _draw(upper, metrics, {"kl": "KL"})
        upper.set_ylabel("KL (nats per token)")
        lower.plot(
            [row["step"] for row in metrics], [row["beta"] for row in metrics], color=_COLOURS[1]
        )
        lower.set_ylabel("beta")
        lower.set_xlabel("step")
        return _svg(figure)


def intervals(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of each evaluation as a dot with its 95% interval."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 0.5 + 0.42 * len(evaluations)))
        axes = figure.add_subplot()
        for row, result in enumerate(reversed(evaluations)):
            colour = _COLOURS[0] if result["stage"] == "after" else "#888888"
            axes.plot(result["interval"], [row, row], color=colour, linewidth=2)
            axes.plot(result["accuracy"], row, "o", color=colour)
        labels = [f"{r['task'] or r['dataset']}, {r['stage'] or r['split']}" for r in evaluations]
        axes.set_yticks(range(len(evaluations)), labels[::-1])
        axes.set_xlim(0, 1)
        axes.set_xlabel("accuracy")
        return _svg(figure)
