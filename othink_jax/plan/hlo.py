"""Collectives of a compiled program, read from its text in XLA's language (HLO).

XLA has no other way to ask what devices exchange. The text differs from backend to backend: loops
say their trips in their own attribute or in their condition, collectives come in one piece or as
start and done.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "fsu" for bits in (4, 8, 16, 32, 64)
}
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:called|branch)_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)')

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Of an array on one device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Collective:
    """An instruction by which devices exchange arrays."""

    kind: str
    results: tuple[ArrayType, ...]  # on each device, of one execution
    times: int  # executions in one run of the program
    source: str  # of our code, as JAX names it

    @property
    def nbytes(self) -> int:
        """Of the results on each device in one run of the program."""
        return self.times * sum(each.nbytes for each in self.results)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    results: tuple[ArrayType, ...]
    op: str
    rest: str  # operands and attributes

    @property
    def source(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Program:
    """A compiled program: `Program(compiled.as_text())`."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = ""
        instructions: list[_Instruction] = []
        for line in text.splitlines():
            if heading := _COMPUTATION.match(line):
                instructions = self._computations[heading[2]] = []
                if heading[1]:
                    self._entry = heading[2]
            elif found := _INSTRUCTION.match(line):
                name, result, op, rest = found.groups()
                instructions.append(_Instruction(name, _arrays(result), op, rest))

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """All of them, the largest first. A loop that does not say its trips counts as one."""
        found: dict[tuple[str, str], Collective] = {}
        for computation, instructions in self._computations.items():
            for each in instructions:
                kind = each.op.removesuffix("-start")
                times = self._times.get(computation, 0)
                if kind not in _COLLECTIVES or not times:
                    continue
                results = _received(each, kind) if each.op != kind else each.results
                made = Collective(kind, results, times, each.source)
                # Of an asynchronous one, the TPU's compiler puts copies into several fusions.
                channel = re.search(r"channel_id=(\d+)", each.rest)
                copied = channel is not None and computation in self._fused
                key = (kind, channel[1] if copied and channel else each.name)
                if key not in found or found[key].times < times:
                    found[key] = made
        return tuple(sorted(found.values(), key=lambda each: -each.nbytes))

    @functools.cached_property
    def _fused(self) -> set[str]:
        return {
            name
            for instructions in self._computations.values()
            for each in instructions
            if each.op == "fusion"
            for name in _called(each)
        }

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        """How often each computation runs: the trips of the loops around it.

        Called from several places, it counts with the place that runs most often: what is called
        twice, such as the body of an asynchronous collective, runs once.
        """
        times: dict[str, int] = {}
        todo = [(self._entry, 1)]
        while todo:
            name, count = todo.pop()
            if times.get(name, 0) >= count:
                continue
            times[name] = count
            for each in self._computations.get(name, ()):
                trips = self._trips(each) if each.op == "while" else 1
                todo += [(called, count * trips) for called in _called(each)]
        return times

    def _trips(self, loop: _Instruction) -> int:
        if said := _TRIPS.search(loop.rest):
            return int(said[1])
        # A loop that counts up from zero ends at the only whole number in its condition.
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        instructions = self._computations.get(condition[1], ()) if condition else ()
        ends = [
            int(found[1])
            for each in instructions
            if each.op == "constant" and (found := re.match(r"(\d+)\)", each.rest))
        ]
        return ends[0] if len(ends) == 1 else 1


def _arrays(text: str) -> tuple[ArrayType, ...]:
    return tuple(
        ArrayType(dtype, tuple(int(side) for side in sides.split(",") if side))
        for dtype, sides in _ARRAY.findall(text)
    )


def _called(instruction: _Instruction) -> Iterator[str]:
    yield from _CALLED.findall(instruction.rest)
    for names in _BRANCHES.findall(instruction.rest):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _received(start: _Instruction, kind: str) -> tuple[ArrayType, ...]:
    """Of an asynchronous collective: what it gives, without what it was given."""
    if kind in ("all-gather", "collective-permute"):
        arrays = [each for each in start.results if each.shape]  # and two counters
        return tuple(arrays[len(arrays) // 2 :])
    return start.results
