"""Functions selected by settings: a name in a table, and numbers as keyword arguments."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from othink_jax.errors import UserError


def bound(
    table: Mapping[str, Callable[..., Any]],
    option: str,
    name: str,
    given: Mapping[str, float],
    shared: Mapping[str, Any] | None = None,
) -> Any:
    """Look up a function and bind all `given` numbers, and the `shared` ones that it takes.

    Args:
      table: functions by name.
      option: command-line option without its dashes, for error messages.
      name: name of the function.
      given: numbers that the function must take.
      shared: numbers that other functions of the table take too; None means unknown, not bound.

    Raises:
      UserError: the name or a number is unknown, or a required number is missing, or `given` holds
        a number of `shared`, which could contradict that number's own option.
    """
    if name not in table:
        raise UserError(f"--{option} {name} is not known; what is known: {', '.join(table)}")
    known = keywords(table[name])
    unknown = [number for number in given if number not in known]
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"--{option} {name} has no number {', '.join(unknown)}: {has}")
    shared = shared or {}
    refuse_own(option, name, given, shared)
    taken = {
        number: value for number, value in shared.items() if number in known and value is not None
    }
    typed = {number: _typed(known[number], value, option) for number, value in given.items()}
    numbers = {**taken, **typed}
    required = [number for number, each in known.items() if each.default is each.empty]
    if missing := [number for number in required if number not in numbers]:
        options = [f"--{each.replace('_', '-')}" if each in shared else each for each in missing]
        raise UserError(f"--{option} {name} needs {', '.join(options)}")
    return functools.partial(table[name], **numbers) if numbers else table[name]


def refuse_own(option: str, name: str, given: Mapping[str, float], own: Collection[str]) -> None:
    """Refuse a `given` number that has an option of its own: the two could contradict.

    Raises:
      UserError: there is such a number.
    """
    if doubled := [number for number in given if number in own]:
        raise UserError(
            f"--{option} {name}: {', '.join(doubled)} has an option of its own: give it there alone"
        )


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Keyword-only parameters of a function (its numbers), by name."""
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def defaults(function: Callable[..., Any]) -> dict[str, float]:
    """Default values of a function's numbers; numbers without a default are left out."""
    return {
        name: each.default
        for name, each in keywords(function).items()
        if each.default is not each.empty
    }


def tried(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct | None) -> None:
    """Trace a function on these shapes; its ValueError about a number becomes a UserError."""
    try:
        jax.eval_shape(function, *shapes)
    except ValueError as error:
        raise UserError(str(error)) from error


def _typed(parameter: inspect.Parameter, value: float, option: str) -> float:
    """Convert a number to the type that its function takes: settings give integers as floats."""
    if parameter.annotation not in (int, "int"):
        return value
    if not float(value).is_integer():  # also false for nan and inf
        raise UserError(f"--{option}: {parameter.name} must be a whole number, got {value:g}")
    return int(value)
