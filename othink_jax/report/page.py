"""The page of a run: everything in one HTML file, nothing fetched and nothing executed."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from othink_jax.config import to_dict
from othink_jax.files import write_atomically
from othink_jax.markup import shown
from othink_jax.report.comparison import compare
from othink_jax.report.curves import draw, smoothing_window
from othink_jax.report.method import Method, describe, trained_part
from othink_jax.report.run_data import RunData, read_run_data
from othink_jax.report.standing import moment
from othink_jax.report.validated import best_validation


def _duration(seconds: float) -> str:
    """Seconds in the two units that matter: `48 s`, `4 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(share: float) -> str:
    """A share, such as `43.1%`."""
    return f"{100 * share:.1f}%"


def _points(change: float) -> str:
    """A difference of two shares in percentage points, with a typographic minus."""
    return f"{100 * change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _number(value: Any) -> str:
    """A finite float with three significant digits; anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _early(run: RunData) -> str:
    planned = run.record.total_steps
    return "" if run.record.ended is None else f" ({planned} were planned; it ended early)"


def _facts(run: RunData, method: Method) -> list[tuple[str, str]]:
    """Key facts of a run."""
    config, rows = run.record.config, run.metrics
    facts = [
        ("model", config.model),
        ("trained on", config.data.task or str(config.data.dataset_name)),
        ("method", method.name),
        ("trained part", trained_part(config)),
        ("steps", f"{run.standing.step} of {run.standing.total}{_early(run)}"),
        method.a_step,
        ("seed", str(config.seed)),
        ("wall time", _duration(run.seconds)),
        ("device", run.record.device),
    ]
    if best := best_validation(config, rows):
        facts.append(("best validation", best))
    if rows:
        # `skipped` counts from the start of the run, `ungradable` per step.
        facts.append(("examples skipped", str(rows[-1].get("skipped", "not recorded"))))
    if rows and method.samples:
        ungradable = sum(row.get("ungradable", 0) for row in rows)
        facts.append(("ungradable completions", str(ungradable)))
    if rows and method.rewards:
        failed = sum(row.get("reward_failed", 0) for row in rows)
        facts.append(("failed values of rewards", str(failed)))
    if config.tags:
        facts.append(("tags", ", ".join(config.tags)))
    return facts


def _context(run: RunData) -> dict[str, Any]:
    config = run.record.config
    method = describe(config)
    comparisons = compare(run.evaluations, config.data)
    return {
        "run": run,
        "config": config,
        "method": method,
        "facts": _facts(run, method),
        "comparisons": comparisons,
        # The change on the task or data that the run was trained on.
        "headline": next(
            (one for one in comparisons if one.change and one.relation.startswith("same")), None
        ),
        # Generated here, from first byte to last, so it is not escaped.
        "curves": [(curve, Markup(draw(curve, run.metrics))) for curve in method.curves]
        if run.metrics
        else [],
        "window": smoothing_window(len(run.metrics)),
        "settings": list(_flatten(to_dict(config))),
    }


def make_environment() -> jinja2.Environment:
    """Jinja environment of the templates in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("othink_jax", "report"),
        # Questions, completions and file names come from outside; everything is escaped.
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment,
        "number": _number,
        "percent": percent,
        "points": _points,
    }
    return environment


def style() -> Markup:
    """The style sheet of every page."""
    return Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run directory and return its path.

    The page names what the run lacks (evaluations, samples, steps). Its head says whether the run
    is in progress, or where it stopped.

    Args:
      run: a directory that `othink-jax grpo` or `othink-jax sft` made, finished or not.
      out: the file to write; report.html in the run directory if not given.

    Raises:
      UserError: `run` is no run directory, or its config.json cannot be used.
    """
    template = make_environment().get_template("page.html.jinja")
    page = template.render(_context(read_run_data(run)), style=style())
    out = out or run / "report.html"
    write_atomically(out, page)  # a browser may load it at any moment
    return out
