"""Functions that settings name: an entry of a table, and its numbers as keyword arguments."""

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
    """A function of a table with its numbers: those `given`, and those `shared` that it takes.

    Args:
      table: functions by name.
      option: of the command line, without its dashes, for errors.
      name: of the function.
      given: numbers that it must take.
      shared: numbers that others of the table take too; None stands for one that is not known.

    Raises:
      UserError: the name is not known, or a number, or one is missing, or one of `shared` is among
        those `given`: it would contradict its own setting.
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
    """Refuse a number among those `given` that has an option of its own: they could contradict.

    Raises:
      UserError: there is one.
    """
    if doubled := [number for number in given if number in own]:
        raise UserError(
            f"--{option} {name}: {', '.join(doubled)} has an option of its own: give it there alone"
        )


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The numbers of a function, by name."""
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def defaults(function: Callable[..., Any]) -> dict[str, float]:
    """Those that have one."""
    return {
        name: each.default
        for name, each in keywords(function).items()
        if each.default is not each.empty
    }


def tried(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct | None) -> None:
    """Trace a function: what it says of its numbers, it says to the user."""
    try:
        jax.eval_shape(function, *shapes)
    except ValueError as error:
        raise UserError(str(error)) from error


def _typed(parameter: inspect.Parameter, value: float, option: str) -> float:
    """A number as its function takes it: whole ones are given as floats."""
    if parameter.annotation not in (int, "int"):
        return value
    if not float(value).is_integer():  # nor are nan and inf
        raise UserError(f"--{option}: {parameter.name} must be a whole number, got {value:g}")
    return int(value)
