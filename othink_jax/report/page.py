"""The page: data and curves through one template."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from othink_jax.report.curves import curve, intervals, kl_and_beta
from othink_jax.report.run_data import RunData, read_run

_PANELS: tuple[tuple[str, dict[str, str], str], ...] = (
    (
        "Reward and its parts",
        {"reward": "reward", "reward_accuracy": "accuracy", "reward_format": "format"},
        "mean reward",
    ),
    ("Completion length", {"completion_length": "length"}, "tokens"),
    ("Entropy", {"entropy": "entropy"}, "nats per token"),
    (
        "Groups",
        {"group_std": "std of rewards", "no_signal_share": "share without signal"},
        "",
    ),
    ("Gradient norm", {"grad_norm": "before the clip"}, ""),
    ("Cut completions", {"truncated_share": "share at the length limit"}, "share"),
)


def _settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as flat rows."""
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, json.dumps(value, ensure_ascii=False)))
    return rows


def _curves(run: RunData) -> list[tuple[str, Markup]]:
    if not run.metrics:
        return []
    made = [(title, curve(run.metrics, names, unit)) for title, names, unit in _PANELS]
    made.insert(1, ("KL and its weight", kl_and_beta(run.metrics)))
    # Drawn by us from numbers alone: no text of a model or a user is in them.
    return [(title, Markup(svg)) for title, svg in made]


def _evaluations(run: RunData) -> list[dict[str, Any]]:
    """Results with their change against the one before training, in points."""
    before = {r["task"]: r["accuracy"] for r in run.evaluations if r["stage"] == "before"}
    trained = run.config["data"]["task"]
    return [
        {
            **result,
            "change": 100 * (result["accuracy"] - before[result["task"]])
            if result["stage"] == "after" and result["task"] in before
            else None,
            "relation": "trained on" if result["task"] == trained else "cross task",
        }
        for result in run.evaluations
    ]


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write a run as one HTML page without anything outside it; returns its path.

    Args:
      run: the run directory.
      out: the page; RUN/report.html if not given.

    Raises:
      UserError: `run` is not a run directory.
    """
    data = read_run(run)
    environment = Environment(
        loader=PackageLoader("othink_jax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        run=data,
        config=data.config,
        method="GRPO-D" if data.config["kl"]["kl_schedule"] == "dynamic" else "GRPO",
        evaluations=_evaluations(data),
        intervals=Markup(intervals(data.evaluations)) if data.evaluations else None,
        curves=_curves(data),
        settings=_settings(data.config),
    )
    target = out or run / "report.html"
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, target)
    return target
