"""Presets of the command line: settings that go together, under one name."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from othink_jax.config import (
    TINY_TEMPLATE,
    GRPOConfig,
    SFTConfig,
    is_run,
    read_run,
    run_and_checkpoint,
)
from othink_jax.errors import UserError
from othink_jax.files import as_path, read_json

# Options of a preset, by name. The user's own options override them.
Preset = Mapping[str, str]
_TINY_DATA: Preset = {
    "--template": TINY_TEMPLATE,
    "--min-pixels": "None",
    "--max-pixels": "None",
}
_TINY_SAMPLING: Preset = {"--max-new-tokens": "40", "--top-k": "0"}
_TINY_TRAINING: Preset = {
    **_TINY_DATA,
    "--steps": "150",
    "--prompts-per-step": "8",
    "--learning-rate": "1e-4",
    "--lr-schedule": "constant",
    "--checkpoint-every": "50",
    "--remat": "none",
}
# R1-V evaluates with the image bounds of the model's own processor, and answers every question.
_TEST: Preset = {
    "--split": "test",
    "--min-pixels": "None",
    "--max-pixels": "None",
    "--max-prompt-tokens": "None",
}
_IN_TAGS = (
    "the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
)
PRESETS: Mapping[str, Mapping[str, Preset]] = {
    # The config classes have the paper's settings as defaults.
    "grpo": {
        "paper": {},
        "tiny": {**_TINY_TRAINING, **_TINY_SAMPLING},
    },
    "sft": {
        "paper": {},
        "tiny": {
            **_TINY_TRAINING,
            "--warmup-fraction": "0",
            "--max-completion-tokens": "40",
        },
    },
    "evaluate": {
        "paper": _TEST,
        # Prompts of R1-V on its two test sets.
        "superclevr": {
            **_TEST,
            "--template": "{question} First output " + _IN_TAGS,
            "--max-new-tokens": "256",
            "--grade-as": "counting",
        },
        "geoqa": {
            **_TEST,
            "--template": "{question} Output " + _IN_TAGS,
            "--grade-as": "geometry",
        },
        "tiny": {**_TEST, **_TINY_DATA, **_TINY_SAMPLING, "--batch-size": "64"},
    },
}

# Settings of generation_config.json that are supported, by type: numbers and integers.
_NUMBERS = ("temperature", "top_p", "repetition_penalty")
_WHOLE_NUMBERS = ("top_k", "max_new_tokens", "min_new_tokens")
# Settings that would change what transformers samples and are not supported, each with its neutral
# value; null is neutral for all of them.
_NOT_FOLLOWED: Mapping[str, float | None] = {
    **{"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0, "constraints": None},
    **{"min_p": 0, "top_h": 1, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0},
    **{"encoder_repetition_penalty": 1, "exponential_decay_length_penalty": None},
    **{"bad_words_ids": None, "force_words_ids": None, "sequence_bias": None},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
    **{"forced_bos_token_id": None, "forced_eos_token_id": None, "stop_strings": None},
    **{"guidance_scale": 1, "penalty_alpha": 0, "dola_layers": None, "watermarking_config": None},
    **{"min_length": 0, "max_length": 20, "max_time": None, "token_healing": False},
}


def with_preset(command: str, arguments: Sequence[str]) -> list[str]:
    """A command line with the options of its preset before the user's own, which override them.

    Raises SystemExit(2) if there is no such preset, and UserError for a broken run directory.
    """
    given, rest = without_option(arguments, "--preset")
    options = [argument.partition("=")[0] for argument in rest]
    name, model = "paper", option_value(rest, "--model")
    run, _ = run_and_checkpoint(as_path(model or ""))
    if given is not None:
        name = given
    elif model == "tiny":
        name = "tiny"
    elif command == "evaluate" and model and is_run(run):
        return [*words_of({**_TEST, **_settings_of_run(run)}), *rest]
    presets = PRESETS[command]
    if name not in presets:
        print(f"othink-jax: --preset must be one of {', '.join(presets)}", file=sys.stderr)
        raise SystemExit(2)
    preset = dict(presets[name])
    if "--epochs" in options:
        preset.pop("--steps", None)  # it would take precedence over the user's epochs
    return [*words_of(preset), *rest]


def words_of(preset: Preset) -> list[str]:
    """A preset as command-line words, `option=value` each: a value may begin with a dash."""
    return [f"{option}={value}" for option, value in preset.items()]


def _settings_of_run(directory: Path) -> Preset:
    """Options of a run's prompts, image bounds and answer format, and the length of answers."""
    config = read_run(directory).config
    settings = {
        "--template": config.data.template,
        "--min-pixels": str(config.data.min_pixels),
        "--max-pixels": str(config.data.max_pixels),
    }
    if config.data.system_prompt is not None:
        settings["--system-prompt"] = config.data.system_prompt
    if config.data.answer_tag != "answer":
        settings["--answer-tag"] = config.data.answer_tag
    if config.data.answer_pattern is not None:
        settings["--answer-pattern"] = config.data.answer_pattern
    if isinstance(config, SFTConfig):
        return {**settings, "--max-new-tokens": str(config.max_completion_tokens)}
    if isinstance(config, GRPOConfig):
        settings["--max-new-tokens"] = str(config.sampling.max_new_tokens)
        settings["--top-k"] = str(config.sampling.top_k)
    return settings


def option_value(arguments: Sequence[str], option: str) -> str | None:
    """Value of an option, given as `--option value` or `--option=value`; None if it is absent."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == option:
            return following
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
    return None


def without_option(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Value of an option (None if it is absent), and the arguments without option and value."""
    rest = list(arguments)
    words = [argument.partition("=") for argument in rest]
    at = next((i for i, (name, _, _) in enumerate(words) if name == option), None)
    if at is None:
        return None, rest
    _, equals, value = words[at]
    if not equals:
        value = rest[at + 1] if at + 1 < len(rest) else ""
        del rest[at + 1 : at + 2]
    del rest[at]
    return value, rest


def generation_defaults(model: str) -> Preset:
    """The sampling settings of a model's own generation_config.json, as options.

    As in transformers, decoding is greedy unless the file says `do_sample`. Without such a file
    there are no options. Settings that are not supported are named on stderr.

    Raises:
      UserError: there is no such model, the file is no JSON object, or a setting has a wrong type.
    """
    from othink_jax.checkpoint.load import locate

    directory, _ = locate(model)
    file = directory / "generation_config.json"
    if not file.is_file():
        return {}
    given = {name: value for name, value in read_json(file).items() if value is not None}
    _check_generation(file, given)
    ignored = [
        f"{name} {given[name]}"
        for name, neutral in _NOT_FOLLOWED.items()
        if given.get(name, neutral) != neutral
    ]
    if ignored:
        print(f"{file} asks for more, which is not followed: {', '.join(ignored)}", file=sys.stderr)
    settings = {
        "--" + name.replace("_", "-"): str(given[name])
        for name in (*_NUMBERS, *_WHOLE_NUMBERS)
        if name in given
    }
    return settings if given.get("do_sample") else {**settings, "--temperature": "0"}


def _check_generation(file: Path, given: Mapping[str, Any]) -> None:
    """Raise UserError for a value that cannot be an option; the options check its range."""
    kinds: Mapping[str, tuple[tuple[str, ...], tuple[type[float], ...]]] = {
        "number": (_NUMBERS, (int, float)),
        "whole number": (_WHOLE_NUMBERS, (int,)),
        "truth value": (("do_sample",), (bool,)),
    }
    for kind, (names, types) in kinds.items():
        for name in names:
            value = given.get(name, types[0]())
            if type(value) not in types or not math.isfinite(value):
                raise UserError(f"{file}: {name} is {value!r}, not a {kind}")
