"""The page of a run: everything in one HTML file, nothing fetched and nothing executed."""

import datetime
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from othink_jax.config import GRPOConfig, KLConfig
from othink_jax.report.comparison import compare
from othink_jax.report.curves import CURVES, draw, smoothing_window
from othink_jax.report.run_data import RunData, read_run


def _duration(seconds: float) -> str:
    """Seconds in the two units that matter: `48 s`, `4 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _moment(iso: str) -> str:
    """A time of config.json as a reader writes it; as it stands if it is no ISO time."""
    try:
        moment = datetime.datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def percent(share: float) -> str:
    """A share, such as `43.1%`."""
    return f"{100 * share:.1f}%"


def _points(change: float) -> str:
    """A difference of two shares in percentage points, with a typographic minus."""
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _number(value: Any) -> str:
    """A number in as few digits as say something; anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def method_name(kl: KLConfig) -> str:
    """What the paper calls training with this KL weight."""
    return "GRPO-D" if kl.kl_schedule == "dynamic" else "GRPO"


def weight_in_words(kl: KLConfig) -> str:
    """The KL weight over the run, in words (Eq. 3)."""
    if kl.kl_schedule == "constant":
        return f"a constant KL weight β = {kl.kl_value:g}"
    middle = (kl.kl_min + kl.kl_max) / 2
    return (
        f"a dynamic KL weight: β falls from {middle:g} to {kl.kl_min:g} over the first"
        f" {kl.exploration_fraction:.0%} of the updates and then climbs to {kl.kl_max:g}"
    )


def trained_part(config: GRPOConfig) -> str:
    """What of the model a run trains, for people."""
    if config.train == "lora":
        lora = config.lora
        return f"adapters of the text tower (rank {lora.lora_rank}, alpha {lora.lora_alpha:g})"
    return {"all": "the whole model", "text": "the text tower"}[config.train]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The figures of a run that are asked for first."""
    config, rows = run.config, run.metrics
    facts = [
        ("model", config.model),
        ("trained on", config.data.task or str(config.data.dataset)),
        ("method", method_name(config.kl)),
        ("trained part", trained_part(config)),
        ("steps", f"{rows[-1]['step'] if rows else 0} of {run.record['total_steps']}"),
        ("completions a step", f"{config.prompts_per_step} prompts × {config.group_size}"),
        ("seed", str(config.seed)),
        ("wall time", _duration(run.seconds)),
        ("device", str(run.record["device"])),
    ]
    if rows:
        # `skipped` counts from the start of the run, `ungradable` a step.
        facts += [
            ("prompts skipped", str(rows[-1].get("skipped", "not recorded"))),
            ("ungradable completions", str(sum(row.get("ungradable", 0) for row in rows))),
        ]
    return facts


def _context(run: RunData) -> dict[str, Any]:
    config: GRPOConfig = run.config
    comparisons = compare(run.evaluations, config.data)
    return {
        "run": run,
        "config": config,
        "method": method_name(config.kl),
        "weight": weight_in_words(config.kl),
        "facts": _facts(run),
        "comparisons": comparisons,
        # What the run was made for: the first task is the one it was trained on.
        "headline": next(
            (one for one in comparisons if one.change and one.relation.startswith("same")), None
        ),
        # Ours from the first byte to the last, so it is not to be escaped.
        "curves": [(curve, Markup(draw(curve, run.metrics))) for curve in CURVES]
        if run.metrics
        else [],
        "window": smoothing_window(len(run.metrics)),
        "settings": list(_flatten(run.record["config"])),
    }


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run directory and return where it lies.

    What the run lacks (evaluations, samples, steps) is said on the page.

    Args:
      run: a directory that `othink-jax grpo` made, finished or not.
      out: the file to write; report.html in the run directory if not given.

    Raises:
      UserError: `run` is no run directory, or its config.json cannot be used.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("othink_jax", "report"),
        # Questions, completions and file names come from outside; everything is escaped.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": _moment,
        "number": _number,
        "percent": percent,
        "points": _points,
    }
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html.jinja")
    page = template.render(_context(read_run(run)), style=Markup(style))
    out = out or run / "report.html"
    out.write_text(page, encoding="utf-8")
    return out
