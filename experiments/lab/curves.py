"""Figure panels that show several seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from othink_jax.report.curves import smooth, smoothing_window


def draw_seeds(
    panel: Axes, x: Sequence[float], curves: Sequence[Sequence[float]], color: str, label: str = ""
) -> None:
    """Draw a pale line per seed and a strong one for their mean; shares are shown in percent.

    Args:
      panel: to draw in.
      x: coordinates of a curve's values.
      curves: one per seed.
      color: of all lines.
      label: of the mean, for a legend.
    """
    for curve in curves:
        panel.plot(x, [100 * value for value in curve], color=color, alpha=0.25)
    mean = [100 * sum(column) / len(column) for column in zip(*curves, strict=True)]
    panel.plot(x, mean, color=color, marker="o", label=label)


def draw_metric(
    panel: Axes, runs: Sequence[Sequence[Mapping[str, Any]]], name: str, color: str, label: str
) -> None:
    """Draw a metric over the steps, smoothed: a pale line per seed, a strong one for their mean.

    Args:
      panel: to draw in.
      runs: metric rows of each seed, see `scores.metrics_of`.
      name: of the metric.
      color: of all lines.
      label: of the mean, for a legend.
    """
    values = np.array([[row[name] for row in run] for run in runs])
    window = smoothing_window(values.shape[1])
    steps = np.arange(1, values.shape[1] + 1)
    for value in values:
        panel.plot(steps, smooth(value, window), color=color, alpha=0.2)
    panel.plot(steps, smooth(values.mean(axis=0), window), color=color, label=label)
    panel.set_xlabel("step")


def draw_dots(panel: Axes, scores: Mapping[str, Sequence[float]]) -> None:
    """Draw a column per method: a dot per seed, a line at the mean; shares are shown in percent."""
    for place, values in enumerate(scores.values()):
        points = [100 * value for value in values]
        panel.plot([place] * len(points), points, "o", alpha=0.6)
        panel.hlines(fmean(points), place - 0.25, place + 0.25, color="black")
    panel.set_xticks(range(len(scores)), list(scores))
    panel.spines[["top", "right"]].set_visible(False)
