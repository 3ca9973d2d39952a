"""Curves over training steps, drawn as inline SVG of a page."""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_BLUE, _ORANGE, _GREY = "#2b5c8a", "#c2661f", "#6b7280"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#c9ced6",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlecolor": "#374151",
    "xtick.color": "#c9ced6",
    "ytick.color": "#c9ced6",
    "xtick.labelcolor": _GREY,
    "ytick.labelcolor": _GREY,
    "axes.labelcolor": _GREY,
    "grid.color": "#eceef1",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of a panel."""

    metric: str  # its name in metrics.jsonl
    label: str = ""  # for the legend, if a panel has several
    exact: bool = False  # a setting, or measured seldom: drawn without smoothing
    bounds: tuple[str, str] | None = None  # metrics that are the ends of its interval


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str  # the quantity and its unit
    series: tuple[Series, ...]
    share: bool = False  # a share, shown from 0 to 1


@dataclasses.dataclass(frozen=True)
class Curve:
    """One figure: panels under one another over the same steps."""

    name: str  # unique in a page; part of ids
    title: str
    caption: str
    panels: tuple[Panel, ...]


_SPEED = Curve(
    "speed",
    "Learning rate and speed",
    "Learning rate of the update, and completion tokens per second of a whole step.",
    (
        Panel("learning rate", (Series("learning_rate", exact=True),)),
        Panel("tokens per second", (Series("tokens_per_second"),)),
    ),
)
SFT_CURVES = (
    Curve(
        "loss",
        "Loss and gradient",
        "Negative log-likelihood of the solutions' tokens, and the global gradient norm before the"
        " clip.",
        (
            Panel("loss, nats per token", (Series("loss"),)),
            Panel("gradient norm", (Series("grad_norm"),)),
        ),
    ),
    _SPEED,
)
GRPO_CURVES = (
    Curve(
        "reward",
        "Reward",
        "Mean over the completions of a step, and the two parts it is made of (Eq. 1).",
        (
            Panel("reward", (Series("reward"),)),
            Panel(
                "parts",
                (Series("reward_accuracy", "accuracy"), Series("reward_format", "format")),
                share=True,
            ),
        ),
    ),
    Curve(
        "kl",
        "KL divergence and its weight",
        "KL to the reference, as the loss estimates it, above the weight β that the update used.",
        (
            Panel(
                "KL, nats per token",
                (Series("kl", "measured"), Series("kl_target", "target", exact=True)),
            ),
            Panel("weight β", (Series("beta", exact=True),)),
        ),
    ),
    Curve(
        "length",
        "Completion length",
        "Mean length, and the share of completions that the length limit cut.",
        (
            Panel("length, tokens", (Series("completion_length"),)),
            Panel("truncated share", (Series("truncated_share"),), share=True),
        ),
    ),
    Curve(
        "groups",
        "Signal within groups",
        "Standard deviation of rewards within a group, and the share of groups whose rewards are"
        " all equal: they teach nothing.",
        (
            Panel("standard deviation of reward", (Series("group_std"),)),
            Panel("share of groups without signal", (Series("no_signal_share"),), share=True),
        ),
    ),
    Curve(
        "entropy",
        "Entropy and gradient",
        "Mean entropy of the next-token distribution, and the global gradient norm before the"
        " clip.",
        (
            Panel("entropy, nats per token", (Series("entropy"),)),
            Panel("gradient norm", (Series("grad_norm"),)),
        ),
    ),
    _SPEED,
)
ENTROPY_BONUS = Curve(
    "entropy-bonus",
    "Entropy bonus",
    "Entropy that the update measured, above the coefficient of the bonus that it used.",
    (
        Panel("entropy of the policy, nats per token", (Series("policy_entropy"),)),
        Panel("coefficient", (Series("entropy_coef", exact=True),)),
    ),
)


VALIDATION = Curve(
    "validation",
    "Validation",
    "Greedy answers to questions that are not trained on: share that is right, with its interval"
    " (95%, Wilson), and share in the right form.",
    (
        Panel(
            "accuracy",
            (
                Series(
                    "validation_accuracy",
                    exact=True,
                    bounds=("validation_low", "validation_high"),
                ),
            ),
            share=True,
        ),
        Panel("right form", (Series("validation_format", exact=True),), share=True),
    ),
)


def grpo_curves(*, own_reward: bool) -> tuple[Curve, ...]:
    """Curves of every GRPO run; `own_reward`: its reward is not that of Eq. 1."""
    if not own_reward:
        return GRPO_CURVES
    first, *others = GRPO_CURVES
    caption = (
        "Mean over the completions of a step. Accuracy and format are measured in any case; the"
        " settings say what the reward is made of."
    )
    return (dataclasses.replace(first, caption=caption), *others)


def reward_curve(name: str, number: int) -> Curve:
    """Curve of a reward function; `number` tells the functions of a run apart."""
    return Curve(
        f"reward-{number}",
        f"Reward {name}",
        "Mean over the completions of a step, and the share of them with the full value.",
        (
            Panel("mean", (Series(f"reward_{name}"),)),
            Panel("share with the full value", (Series(f"reward_{name}_full_share"),), share=True),
        ),
    )


def smoothing_window(steps: int) -> int:
    """Width of the moving average, in steps: odd, about a tenth of the run; 1: no smoothing."""
    return 1 if steps < 10 else steps // 20 * 2 + 1


def smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centred moving average over `window` values (odd), fewer at the ends; nan is ignored."""
    known = np.isfinite(values)
    # full, then cut: mode "same" returns as many values as the longer of the two has.
    half = window // 2
    cut = slice(half, half + len(values))
    sums = np.convolve(np.where(known, values, 0.0), np.ones(window))[cut]
    counts = np.convolve(known.astype(float), np.ones(window))[cut]
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def _values(rows: Sequence[Mapping[str, Any]], metric: str) -> Float[np.ndarray, " n"]:
    found = [row.get(metric) for row in rows]
    numbers = [value if isinstance(value, int | float) else np.nan for value in found]
    return np.array(numbers, dtype=np.float64)


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(panel.title, loc="left")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    steps = _values(rows, "step")
    marker = "o" if len(rows) == 1 else None
    drawn: list[Series] = []
    lowest = 0.0
    for series, colour in zip(panel.series, (_BLUE, _ORANGE), strict=False):
        values = _values(rows, series.metric)
        if not np.isfinite(values).any():
            continue
        drawn.append(series)
        lowest = min(lowest, np.nanmin(values))
        if not series.exact:
            axes.plot(steps, values, ".", color=colour, alpha=0.35, markersize=4.5, mew=0)
            values = smooth(values, smoothing_window(len(rows)))
        known = np.isfinite(values)
        axes.plot(
            steps[known] if series.bounds else steps,
            values[known] if series.bounds else values,
            color=colour,
            linewidth=1.6,
            marker="o" if series.bounds else marker,
            markersize=4 if series.bounds else None,
            label=series.label,
        )
        if series.bounds:
            low, high = (_values(rows, name)[known] for name in series.bounds)
            axes.vlines(steps[known], low, high, color=colour, linewidth=1.0)
    if not drawn:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_yticks([])
        return
    if panel.share:
        axes.set_ylim(-0.04, 1.04)
        axes.set_yticks([0.0, 0.5, 1.0])
    else:
        if lowest == 0 and any(series.exact for series in drawn):
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        # One common factor above the axis ("1e-5") is easily overlooked.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    if len(drawn) > 1:
        axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderpad=0)


def draw(curve: Curve, rows: Sequence[Mapping[str, Any]]) -> str:
    """One figure as an `<svg>` element, whose ids differ from those of every other curve.

    Args:
      curve: what to draw.
      rows: rows of metrics.jsonl, at least one; a metric that no row has is marked as not recorded.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": curve.name}):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        for axes, panel in zip(
            figure.subplots(len(curve.panels), 1, sharex=True), curve.panels, strict=True
        ):
            _draw_panel(axes, panel, rows)
            axes.tick_params(length=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlim(0, max(row["step"] for row in rows) + 1)
        axes.set_xlabel("step")
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    # An HTML page must have neither the XML declaration nor the same id twice.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{curve.name}-", svg[svg.index("<svg") :])
    return svg.replace("<svg", f'<svg role="img" aria-label="{curve.title}"', 1)
