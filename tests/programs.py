"""Residuals, products and shapes of a program, read from its jaxpr."""

import contextlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.ad_checkpoint import print_saved_residuals

Shape = tuple[int, ...]
Kept = Counter[tuple[str, Shape]]  # arrays by dtype and shape


def saved(fn: Callable[..., Any], *args: Any) -> Kept:
    """Residuals that `fn` keeps for its backward pass, beside its arguments; no scalars."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_saved_residuals(fn, *args)
    found: Kept = Counter()
    for line in printed.getvalue().splitlines():
        array, origin = line.split(" ", 1)
        dtype, sides = re.fullmatch(r"(\w+)\[([\d,]*)\]", array).groups()
        if sides and "argument" not in origin and "constant" not in origin:
            found[dtype, tuple(map(int, sides.split(",")))] += 1
    return found


def numbers(kept: Kept) -> int:
    """How many numbers stand in all of these arrays."""
    return sum(count * math.prod(shape) for (_, shape), count in kept.items())


def equations(fn: Callable[..., Any], *args: Any) -> list[Any]:
    """All equations of the traced function, those inside of others too."""
    return list(_equations(jax.make_jaxpr(fn)(*args).jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        yield from inside(equation)


def inside(equation: Any) -> Iterator[Any]:
    """The equations of what this one calls, such as the body of a loop."""
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else [value]:
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def shapes_in(fn: Callable[..., Any], *args: Any) -> set[Shape]:
    """The shapes of all arrays that the traced function makes."""
    return {out.aval.shape for each in equations(fn, *args) for out in each.outvars}


def products_with(kernel: Shape, found: list[Any]) -> list[int]:
    """The rows of each product of a matrix with a kernel of this shape."""
    pairs = [
        [variable.aval.shape for variable in each.invars]
        for each in found
        if each.primitive.name == "dot_general"
    ]
    return [left[0] for left, right in pairs if right == kernel and left[1:] == kernel[:1]]
