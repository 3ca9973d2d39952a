"""The model card of a trained run: what it is, how it was made, what it scored."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from othink_jax.config import RUN_REFERENCE, DataConfig
from othink_jax.files import as_path, read_json
from othink_jax.markup import as_code, cell_in_markdown, in_markdown
from othink_jax.report.comparison import compare
from othink_jax.report.method import describe, trained_part
from othink_jax.report.page import percent
from othink_jax.report.run_data import RunData, read_run_data
from othink_jax.report.standing import moment
from othink_jax.report.validated import best_validation


def model_card(
    path: Path,
    *,
    step: int | None = None,
    library: Literal["transformers", "peft"] = "transformers",
) -> str:
    """README.md, with the metadata that the hub reads, for an export of a run.

    Args:
      path: the run directory.
      step: training step of the exported weights; the last one if not given.
      library: library that loads the export: the model, or its adapters alone.

    Raises:
      UserError: `path` is no run directory, or its config.json cannot be used.
    """
    run = read_run_data(path)
    config, optimizer = run.record.config, run.record.config.optimizer
    method = describe(config)
    step = run.standing.step if step is None else step
    tags = [config.kind, *_model_type(as_path(path)), "othink_jax"]
    # In quotes: `yes` and `1.5` are no strings in YAML.
    tags += [json.dumps(tag, ensure_ascii=False) for tag in config.tags if tag not in tags]
    model, data = in_markdown(_public(config.model)), in_markdown(config.data.name)
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-text-to-text",
        f"tags: [{', '.join(tags)}]",
        "---",
        "",
        f"# {model}, post-trained with {method.name} on {data}",
        "",
        "Trained with othink_jax, a reimplementation of OThink-MR1 (arXiv 2503.16081), by"
        f" {method.name}: {method.explained}.",
        "",
        *_unfinished(run, step),
        "| setting | value |",
        "|---|---|",
        f"| base model | {model} |",
        f"| data | {data}{_limit(config.data)} |",
        f"| trained part | {trained_part(config)} |",
        *(f"| {name} | {as_code(text)} |" for name, text in _asked(config.data)),
        f"| steps | {step} of {run.standing.total} |",
        _row(*method.a_step),
        f"| learning rate | {optimizer.learning_rate:g}, {optimizer.lr_schedule} |",
        *(_row(name, value) for name, value in method.settings),
        *(_row(f"reward {name} at the end", _at_the_end(run, name)) for name in method.rewards),
        *(_row("best validation", best) for best in [best_validation(config, run.metrics)] if best),
        f"| seed | {config.seed} |",
        *([_row("notes", cell_in_markdown(config.notes))] if config.notes else []),
        "",
        *_scores(run),
    ]
    return "\n".join(lines) + "\n"


def _unfinished(run: RunData, step: int) -> list[str]:
    """A warning that the training is not finished; empty if it is."""
    standing = run.standing
    if step >= standing.total:
        return []
    doing = "in progress" if standing.is_running else "stopped"
    if standing.is_running is None:
        doing = "unfinished"
    return [
        f"**The training is not finished:** these are the weights after step {step} of"
        f" {standing.total}, exported while it was {doing} ({moment(standing.read)}).",
        "",
    ]


def _public(model: str) -> str:
    """Public name of a model: only the last part of a local path, which readers do not have."""
    directory = Path(model)
    return directory.name if directory.is_absolute() or directory.is_dir() else model


def _limit(data: DataConfig) -> str:
    if data.limit is None:
        return ""
    return f", {data.limit} examples" + (" of each" if len(data.dataset_names) > 1 else "")


def _asked(data: DataConfig) -> list[tuple[str, str]]:
    """Prompts of the model, and its answer format if that is not the default tag."""
    tag = None if data.answer_tag == "answer" else data.answer_tag
    said = {
        "system prompt": data.system_prompt,
        "prompt": data.template,
        "answer tag": tag,
        "answer pattern": data.answer_pattern,
    }
    return [(name, text) for name, text in said.items() if text is not None]


def _row(name: str, value: str) -> str:
    return f"| {name} | {value} |"


def _at_the_end(run: RunData, name: str) -> str:
    """Mean and full share of a reward function, over the last tenth of the recorded steps."""
    last = run.metrics[-max(1, len(run.metrics) // 10) :]
    keys = (f"reward_{name}", f"reward_{name}_full_share")
    rows = [[row[key] for key in keys] for row in last if all(key in row for key in keys)]
    if not rows:
        return "not measured"
    mean, full = map(fmean, zip(*rows, strict=True))
    return f"mean {mean:.3g} in training, full in {percent(full)}"


def _scores(run: RunData) -> list[str]:
    rows = [
        f"| {in_markdown(one.test)} ({one.relation}) | {_score(one.before)} | {_score(one.after)} |"
        f" {one.shown['n']} | {in_markdown(one.shown['grader'])},"
        f" {in_markdown(one.shown['decoding'])} |"
        for one in compare(run.evaluations, run.record.config.data)
    ]
    if not rows:
        return ["It has not been evaluated."]
    head = [
        "| accuracy on | before | after | questions | graded, decoded |",
        "|---|---|---|---|---|",
    ]
    intervals = "95% intervals (Wilson; of several samples a question, Student's t)"
    return [*head, *rows, "", f"In brackets: {intervals}."]


def _score(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not measured"
    low, high = result["interval"]
    return f"{percent(result['accuracy'])} ({percent(low)} to {percent(high)})"


def _model_type(run: Path) -> list[str]:
    """The hub's `model_type` of the model; empty if the run holds no model."""
    file = run / RUN_REFERENCE / "config.json"
    return [str(read_json(file).get("model_type"))] if file.is_file() else []
