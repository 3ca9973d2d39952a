"""The model card of a trained run: what it is, how it was made, what it scored."""

from pathlib import Path
from typing import Any, Literal

from othink_jax.report.comparison import compare
from othink_jax.report.page import method_name, percent, trained_part, weight_in_words
from othink_jax.report.run_data import RunData, read_run


def model_card(path: Path, *, library: Literal["transformers", "peft"] = "transformers") -> str:
    """README.md, with the metadata that the hub reads, for an export of a run.

    `library` is the one that loads what is exported: the model, or its adapters alone.

    Raises:
      UserError: `path` is no run directory, or its config.json cannot be used.
    """
    run = read_run(path)
    config, method = run.config, method_name(run.config.kl)
    optimizer = config.optimizer
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: image-text-to-text",
        "tags: [grpo, qwen2_vl, othink_jax]",
        "---",
        "",
        f"# {config.model}, post-trained with {method} on {config.data.name}",
        "",
        f"Trained with othink_jax by {method}, with {weight_in_words(config.kl)}"
        " (OThink-MR1, arXiv 2503.16081).",
        "",
        "| setting | value |",
        "|---|---|",
        f"| base model | {config.model} |",
        f"| data | {config.data.name}"
        + (f", {config.data.limit} examples |" if config.data.limit else " |"),
        f"| trained part | {trained_part(config)} |",
        f"| prompt | `{config.data.template}` |",
        f"| steps | {run.metrics[-1]['step'] if run.metrics else 0} of"
        f" {run.record['total_steps']} |",
        f"| completions a step | {config.prompts_per_step} prompts x {config.group_size} |",
        f"| learning rate | {optimizer.learning_rate:g}, {optimizer.lr_schedule} |",
        f"| sampling | temperature {config.sampling.temperature:g}, top-k"
        f" {config.sampling.top_k}, top-p {config.sampling.top_p:g}, at most"
        f" {config.sampling.max_new_tokens} tokens |",
        f"| reward | accuracy ({config.reward.grader}) + {config.reward.format_weight:g} format |",
        f"| seed | {config.seed} |",
        "",
        *_scores(run),
    ]
    return "\n".join(lines) + "\n"


def _scores(run: RunData) -> list[str]:
    rows = [
        f"| {one.test} ({one.relation}) | {_score(one.before)} | {_score(one.after)} |"
        f" {one.shown['n']} | {one.shown['grader']}, {one.shown['decoding']} |"
        for one in compare(run.evaluations, run.config.data)
    ]
    if not rows:
        return ["It has not been evaluated."]
    head = [
        "| accuracy on | before | after | questions | graded, decoded |",
        "|---|---|---|---|---|",
    ]
    return [*head, *rows, "", "In brackets: 95% intervals (Wilson)."]


def _score(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not measured"
    low, high = result["interval"]
    return f"{percent(result['accuracy'])} ({percent(low)} to {percent(high)})"
