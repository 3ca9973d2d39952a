"""The commands of `othink-jax`.

Subpackages are imported inside the commands, so that `--help`, `grade` and usage errors answer
without the seconds that JAX and the tokenizer library take to import.
"""

import contextlib
import dataclasses
import errno
import inspect
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from othink_jax.config import (
    RUN_CHECKPOINTS,
    Difficulty,
    EvaluateConfig,
    Grader,
    GRPOConfig,
    ProcessConfig,
    ResumeConfig,
    RewardConfig,
    RewardOption,
    SamplingConfig,
    SFTConfig,
    Task,
    is_run,
    read_run,
)
from othink_jax.errors import UserError
from othink_jax.files import as_path
from othink_jax.presets import (
    PRESETS,
    generation_defaults,
    option_value,
    with_preset,
    words_of,
)
from othink_jax.recipes import RECIPES, with_recipe

_TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
_ONE_PROCESS = ProcessConfig()
_GENERATE_SAMPLING = SamplingConfig(max_new_tokens=256)


def grpo(config: GRPOConfig, processes: ProcessConfig = _ONE_PROCESS) -> None:
    """Post-train a model with GRPO or GRPO-D. `--resume RUN`, alone, continues an interrupted run.

    `--preset paper` (the defaults shown here) selects R1-V's settings. `--preset tiny` (the default
    with `--model tiny`) selects settings for the embedded model. `--recipe NAME` selects the loss
    of a paper, see `othink-jax recipes`. Other options override presets and recipes.
    """

    def run() -> Path:
        from othink_jax.training.grpo import train

        return train(config)

    _run_training(run, processes)


def sft(config: SFTConfig, processes: ProcessConfig = _ONE_PROCESS) -> None:
    """Fine-tune a model on the data's own solutions. `--resume RUN`, alone, continues a run.

    The loss covers the answer, up to the end of the assistant's turn, and not the prompt. Presets
    are those of `grpo`.
    """

    def run() -> Path:
        from othink_jax.training.sft import train

        return train(config)

    _run_training(run, processes)


def resume_grpo(config: ResumeConfig, processes: ProcessConfig = _ONE_PROCESS) -> None:
    """Continue a GRPO run from its last checkpoint; options not given keep their values."""

    def run() -> Path:
        from othink_jax.training.grpo import resume

        return resume(config)

    _run_training(run, processes)


def resume_sft(config: ResumeConfig, processes: ProcessConfig = _ONE_PROCESS) -> None:
    """Continue a run of supervised fine-tuning from its last checkpoint.

    Options not given keep their values.
    """

    def run() -> Path:
        from othink_jax.training.sft import resume

        return resume(config)

    _run_training(run, processes)


def _run_training(run: Callable[[], Path], config: ProcessConfig) -> None:
    from othink_jax.training.supervisor import supervise

    if config.several:
        supervise()
    from othink_jax import compilation_cache
    from othink_jax.report import write_report
    from othink_jax.training import processes

    compilation_cache.enable()
    processes.initialize(config)
    with processes.fail_together():
        directory = run()
        if processes.first():
            print(f"report: {write_report(directory)}")


def evaluate(config: EvaluateConfig) -> None:
    """`evaluate MODEL [MODEL ...] ...`: accuracy over a test set, with its 95% interval.

    Decoding is greedy unless a temperature is given. Without `--preset`, a run directory is
    evaluated with the prompt, image bounds and length it was trained with. `--preset superclevr`
    and `--preset geoqa` ask as R1-V does on its test sets, `--preset paper` as in training;
    `--preset tiny` suits the embedded model. All presets use the split `test`. Answers are stored
    as they are generated: the same command continues an interrupted evaluation. Several models
    answer the same questions one after the other, each with its own preset, and are compared
    pairwise; `--out` then gets a subdirectory for each.
    """
    from othink_jax import compilation_cache
    from othink_jax.evaluation import evaluate as run_evaluation

    compilation_cache.enable()
    with _goes_on(config.out):
        result = run_evaluation(config)
    _print_evaluation(result, config.out)


def evaluate_several(models: Sequence[str], options: Sequence[str]) -> None:
    """`evaluate` of at least two models, each with its own preset."""
    configs = [
        tyro.cli(
            EvaluateConfig,
            prog="othink-jax evaluate",
            args=with_preset("evaluate", ["--model", model, *options]),
            config=_TYRO,
        )
        for model in models
    ]
    from othink_jax import compilation_cache
    from othink_jax.evaluation import evaluate_several as run_evaluations

    compilation_cache.enable()
    out = configs[0].out

    def done(name: str, result: Mapping[str, Any]) -> None:
        print(f"{name}:")
        _print_evaluation(result, out / name)

    with _goes_on(out):
        comparison = run_evaluations(configs, done=done)
    from othink_jax.report.evaluation import comparison_tables

    for table in comparison_tables(comparison):
        print("\n" + table.text(), end="")


@contextlib.contextmanager
def _goes_on(out: Path) -> Iterator[None]:
    """Print on interruption that the answers so far are kept, if there are any."""
    from othink_jax.evaluation import PARTIAL

    try:
        yield
    except KeyboardInterrupt:
        if (out / PARTIAL).exists() or any(out.glob(f"*/{PARTIAL}")):
            print(
                f"stopped: the answers so far are kept in {out}; the same command goes on",
                file=sys.stderr,
            )
        raise


def _print_evaluation(result: Mapping[str, Any], out: Path) -> None:
    from othink_jax.report.evaluation import accuracy_lines, group_tables, reward_lines

    print(*accuracy_lines(result), *reward_lines(result), sep="\n")
    for table in group_tables(result):
        print(table.text(), end="")
    for name in ("unreadable", "ungradable"):
        if result[name]:
            print(f"{result[name]} {name}, counted as wrong: see {out / 'predictions.jsonl'}")


def generate(
    model: tyro.conf.Positional[str],
    *,
    prompt: str,
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    greedy: bool = False,
    json: bool = False,
    sampling: SamplingConfig = _GENERATE_SAMPLING,
    seed: int = 0,
) -> None:
    """Answer one prompt.

    The model's generation_config.json gives the sampling defaults; options given here override it.
    The settings in force are printed on stderr.

    Args:
      model: Hugging Face directory or hub id, Orbax checkpoint, run (or checkpoint),
        or `tiny`, the embedded model.
      prompt: text of the user's turn.
      image: an image file; may be given several times.
      greedy: take the most likely token each time (temperature 0).
      json: print one JSON object with text, token_ids and logprobs.
      sampling: sampling settings.
      seed: seed of sampling.
    """
    from othink_jax import compilation_cache
    from othink_jax.checkpoint.load import load
    from othink_jax.data.images import open_image
    from othink_jax.generation import answer

    compilation_cache.enable()
    if greedy:
        sampling = dataclasses.replace(sampling, temperature=0.0)
    images = [open_image(as_path(path)) for path in image]
    in_force = dataclasses.asdict(sampling)
    print("sampling: " + ", ".join(f"{k} {v:g}" for k, v in in_force.items()), file=sys.stderr)
    made = answer(load(model), prompt, images, sampling=sampling, seed=seed)
    print(_json(dataclasses.asdict(made)) if json else made.text)


def convert(
    model: tyro.conf.Positional[str], out: tyro.conf.Positional[Path], *, force: bool = False
) -> None:
    """Hugging Face -> Orbax: write MODEL as Orbax parameters, with its config and tokenizer.

    Args:
      model: Hugging Face directory or hub id, Orbax checkpoint, run (or checkpoint),
        or `tiny`, the embedded model.
      out: output directory, written atomically.
      force: replace an existing model.
    """
    from othink_jax.checkpoint.convert import to_orbax

    to_orbax(model, as_path(out), force=force)


def export(
    model: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    *,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    max_shard_size: str = "5GB",
    adapter: bool = False,
    force: bool = False,
) -> None:
    """-> Hugging Face: write MODEL as a directory that transformers loads.

    A run comes with a model card: its data, settings and scores, and how far it was trained. The
    adapters of a run with `--train lora` are merged into their base model.

    Args:
      model: Hugging Face directory or hub id, Orbax checkpoint, run (or checkpoint),
        or `tiny`, the embedded model.
      out: output directory, written atomically.
      dtype: dtype of the weights; `stored` keeps that of MODEL (float32 for a run).
      max_shard_size: largest weight file; a larger model is split into several, with an index.
      adapter: write only the adapters, as PEFT loads them.
      force: replace an existing model.
    """
    from othink_jax.checkpoint.convert import to_adapter, to_hf
    from othink_jax.checkpoint.orbax_model import last_step
    from othink_jax.report import model_card

    card = None
    run = as_path(model)
    if is_run(run):
        step, total = last_step(run), read_run(run).last_step
        if step is not None:  # by its number: a run in progress may write a later one any moment
            model = str(run / RUN_CHECKPOINTS / str(step))
        if (step or 0) < total:
            print(
                f"{run} is not finished: weights after step {step or 0} of {total}", file=sys.stderr
            )
        card = model_card(run, step=step or 0, library="peft" if adapter else "transformers")
    if adapter:
        to_adapter(model, as_path(out), dtype=dtype, card=card, force=force)
        return
    if not re.fullmatch(r"\d+([KMGT]B)?", max_shard_size):
        raise UserError(f"max-shard-size must be such as 500MB or 5GB, got {max_shard_size}")
    to_hf(
        model,
        as_path(out),
        dtype=dtype,
        max_shard_size=max_shard_size if max_shard_size.endswith("B") else int(max_shard_size),
        card=card,
        force=force,
    )


def grade(
    predictions: tyro.conf.Positional[Path],
    *,
    task: Task,
    grader: Grader = "strict",
    rewards: RewardOption = (),
    answer_tag: str | None = None,
    answer_pattern: str | None = None,
    json: bool = False,
) -> None:
    """Grade stored predictions again.

    Args:
      predictions: JSONL with question, ground_truth and model_output in each row.
      task: task of the questions.
      grader: `strict`, or `r1v` for R1-V's published verdicts.
      rewards: a reward function, as in `grpo`; may be given several times.
      answer_tag: the answer is in `<ANSWER_TAG>...</ANSWER_TAG>`; by default the tag that the rows
        name, or `answer`.
      answer_pattern: a regular expression with one group, the answer, instead of tags.
      json: print {"accuracy": ..., "n": ...} instead of sentences.
    """
    from othink_jax.report.evaluation import reward_lines
    from othink_jax.rewards import ANSWER_TAGS, AnswerFormat, regrade
    from othink_jax.statistics import summaries

    weights = RewardConfig(functions=rewards).weights if rewards else None
    try:
        answers = None
        if answer_tag is not None or answer_pattern is not None:
            answers = AnswerFormat(answer_tag or ANSWER_TAGS.tag, answer_pattern)
        result = regrade(
            as_path(predictions), task=task, grader=grader, weights=weights, answers=answers
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if rewards:
        result["rewards"] = summaries(result["rewards"])
    if json:
        print(_json(result))
    else:
        print(f"accuracy {result['accuracy']:.1%} (n = {result['n']}, {grader} grader)")
        if lines := result["ungradable_lines"]:
            named = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
            print(f"{len(lines)} ungradable, counted as wrong: lines {named}")
        for line in reward_lines(result):
            print(line)


def report(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Write the HTML page of each run directory, or of each folder of experiment results."""
    from othink_jax.report import experiments_in, write_experiment_report, write_report

    if not runs:
        print("othink-jax: give at least one run directory", file=sys.stderr)
        raise SystemExit(2)
    for run in map(as_path, runs):
        print(write_experiment_report(run) if experiments_in(run) else write_report(run))


def data(
    action: tyro.conf.Positional[Literal["preview"]],
    *,
    task: Task,
    split: str = "train",
    difficulty: Difficulty = "default",
    count: int = 12,
    seed: int = 0,
    out: Path = Path("preview.png"),
) -> None:
    """Look at data: `data preview` writes a sheet of samples of a synthetic task as a PNG.

    Args:
      action: what to do.
      task: the task.
      split: train, validation, test, or test-ood (counting only).
      difficulty: how hard the samples are.
      count: number of samples on the sheet.
      seed: seed of the samples.
      out: the file to write.
    """
    from othink_jax.data.synthetic import LEVELS, preview

    preview(task, split, count, out, seed=seed, difficulty=LEVELS[task][difficulty])
    print(out)


def plan(
    config: GRPOConfig,
    *,
    target: str | None = None,
    device_memory: float | None = None,
    json: bool = False,
) -> None:
    """`plan MODEL ...`: memory and least time of a run with these options, and whether it fits.

    Takes the options of `grpo`; those that do not affect memory may be omitted. No weights are
    read, and no accelerator is needed. With a target, the programs of the run are compiled by that
    machine's own compiler (extras `aot-tpu`, `aot-cuda`); without one, for simulated devices.

    Args:
      target: machine to compile for, such as v5e:2x4 or h100:8.
      device_memory: memory of one device, GB (10^9 bytes); the target's, or 80 without one.
      json: print one JSON object with `fits` and `programs`.
    """
    from othink_jax.plan.targets import parse_target

    machine = None if target is None else parse_target(target)
    import jax

    if machine is None and config.parallel.devices is not None:
        jax.config.update("jax_num_cpu_devices", config.parallel.devices)
    jax.config.update("jax_platforms", "cpu")
    from othink_jax.plan import report
    from othink_jax.plan.search import plan as make_plan

    if device_memory is None and machine is None:
        device_memory = 80.0
    made = make_plan(
        config,
        target=machine,
        device_memory=None if device_memory is None else int(device_memory * 1e9),
        tried=lambda tried: print(report.summary(tried), file=sys.stderr),
    )
    if json:
        print(_json(made.as_json()))
        return
    print(report.table(made))
    memory = made.device_memory / 1e9
    if not made.fits:
        raise UserError(f"no number of micro-batches makes it fit into {memory:.4g} GB")
    print(f"fits into {memory:.4g} GB with --micro-batches {made.micro_batches}")


def recipes() -> None:
    """List the recipes of `grpo --recipe NAME`, and the names that its options accept."""
    from othink_jax.rewards import REWARDS
    from othink_jax.training.losses import known_names

    for name, recipe in RECIPES.items():
        print(f"{name}: {recipe.source}")
        print(f"    {recipe.options or 'the defaults'}")
        if recipe.missing:
            print(f"    without {recipe.missing}")
    for option, functions in known_names().items():
        print(f"--{option}")
        for name, (explained, numbers) in functions.items():
            print(f"    {name}: {explained}{f' ({numbers})' if numbers else ''}")
    print("--reward")
    print("    accuracy: 1.0 where the answer is right by --grader, else 0.0")
    print("    format: 1.0 where reasoning and answer stand in their tags, else 0.0")
    for name, function in REWARDS.items():
        print(f"    {name}: {(inspect.getdoc(function) or '').partition(chr(10))[0]}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "grpo": grpo,
    "sft": sft,
    "evaluate": evaluate,
    "generate": generate,
    "convert": convert,
    "export": export,
    "grade": grade,
    "report": report,
    "plan": plan,
    "recipes": recipes,
    "data": data,
}
# Commands that replace these when --resume is given.
_RESUMING: dict[str, Callable[..., Any]] = {"grpo": resume_grpo, "sft": resume_sft}


# Levels that hide library messages of no use to a user of the commands: retries, files that may be
# absent, and (absl and asyncio, for Orbax) errors that are also raised.
_LOG_LEVELS = {
    "absl": logging.CRITICAL,
    "asyncio": logging.CRITICAL,
    "huggingface_hub": logging.ERROR,
}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check_resume_options(arguments: Sequence[str]) -> None:
    """Exit with one line if an option cannot change when a run is resumed."""
    fields = [*dataclasses.fields(ResumeConfig), *dataclasses.fields(ProcessConfig)]
    known = ["--" + field.name.replace("_", "-") for field in fields]
    given = [word.partition("=")[0].replace("_", "-") for word in arguments if word[:2] == "--"]
    others = [option for option in given if option not in (*known, "--help", "--no-wandb")]
    if others:
        print(
            f"othink-jax: {', '.join(others)} cannot change where a run goes on; what can:"
            f" {', '.join(known[1:])}",
            file=sys.stderr,
        )
        raise SystemExit(2)


def run(arguments: Sequence[str]) -> None:
    """Run one command line; raises what the command raises, and SystemExit(2) on wrong usage."""
    for library, level in _LOG_LEVELS.items():
        logging.getLogger(library).setLevel(level)
    commands, arguments = dict(COMMANDS), list(arguments)
    command = arguments[0] if arguments else ""
    if command == "evaluate":
        models = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments[1:]))
        if len(models) > 1:
            evaluate_several(models, arguments[1 + len(models) :])
            return
    if command in ("evaluate", "plan") and arguments[1:] and not arguments[1].startswith("-"):
        arguments.insert(1, "--model")  # `evaluate MODEL` is `evaluate --model MODEL`
    if command in ("grpo", "plan"):
        arguments[1:] = with_recipe(arguments[1:])
    if command == "plan":  # neither data nor --out is used; options that are given override these
        nothing = ["--out", "unused"]
        if option_value(arguments, "--dataset") is None:
            nothing += ["--task", "counting"]
        arguments[1:1] = nothing
    if command in _RESUMING and option_value(arguments, "--resume") is not None:
        _check_resume_options(arguments[1:])
        commands[command] = _RESUMING[command]
    elif command == "generate" and len(arguments) > 1 and not arguments[1].startswith("-"):
        model, *rest = arguments[1:]
        arguments = [command, model, *words_of(generation_defaults(model)), *rest]
    elif command in PRESETS:
        arguments = [command, *with_preset(command, arguments[1:])]
    tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="othink-jax",
        description="Vision-language reinforcement learning in JAX.",
        args=arguments,
        config=_TYRO,
    )


def _os_error(error: OSError | ValueError) -> str | None:
    """`FILE: REASON` if the operating system failed on a file or the disk is full, else None."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC or error.filename is not None:
            return f"{error.filename or 'writing'}: {error.strerror}"
        return None
    # Orbax writes through TensorStore, which raises ValueError.
    found = re.search(r'"([^"]*)": [^"]*: ([^":]*) \[os_error_code=', str(error))
    return f"{found[1]}: {found[2]}" if found else None


def _hear(unraisable: Any) -> None:
    """Ignore errors of TensorStore's threads after a failed save has closed Orbax's event loop.

    The failure itself is raised at the run's next save.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Entry point: exit code 0 done, 1 failed (one clear line), 2 wrong usage, 130 interrupted."""
    sys.unraisablehook = _hear
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"othink-jax: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (OSError, ValueError) as error:
        # A full disk, a missing permission, a directory in the place of a file.
        reason = _os_error(error)
        if reason is None:
            raise
        print(f"othink-jax: {reason}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
