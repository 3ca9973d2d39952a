"""The largest arrays that a compiled program allocates, and the lines of our code behind them."""

import dataclasses
import re
from collections.abc import Iterator

from othink_jax.plan.costs import results
from othink_jax.plan.hlo import Program
from othink_jax.plan.text import ArrayType, Computation, Instruction

_OURS = "othink_jax"  # the package's directory in a file's path
_FRAMES = 3
# Ops that allocate nothing: they return arrays of other instructions, or the program's arguments.
_NOT_MADE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "dynamic-update-slice", "async-start", "async-update", "opt-barrier"),
}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Arrays of one type that one place of our code allocates."""

    array: str  # such as f32[8,1024]
    nbytes: int  # of one of them
    count: int  # instructions that make one
    lines: tuple[str, ...]  # of our code, the innermost call first; empty if the compiler's own


def largest(program: Program, count: int = 8) -> tuple[Buffer, ...]:
    """The largest arrays in the device's memory, except the program's arguments.

    They do not all exist at the same time.
    """
    sources = Sources(program.text)
    found: dict[tuple[ArrayType, tuple[str, ...]], int] = {}
    for name, computation in program.computations.items():
        if name in program.fused or not program.runs[name]:
            continue
        for each in computation:
            for array in _made(program, each):
                key = array, sources.of(_origin(program, each))
                found[key] = found.get(key, 0) + 1
    made = [
        Buffer(str(array), array.nbytes, times, lines)
        for (array, lines), times in found.items()
        if array.nbytes
    ]
    return tuple(sorted(made, key=lambda each: -each.nbytes)[:count])


def _made(program: Program, each: Instruction) -> Iterator[ArrayType]:
    if each.op in _NOT_MADE or each.op.endswith("-done"):
        return
    given: Iterator[tuple[ArrayType, int]] = ((array, array.nbytes) for array in each.results)
    if each.op == "fusion":
        given = results(program, program.computations[each.called[0]], each)
    elif each.op.endswith("-start"):  # its results begin with its operands
        given = ((array, array.nbytes) for array in each.results[-1:])
    yield from (array for array, new in given if array.in_memory and new == array.nbytes)


def _origin(program: Program, each: Instruction) -> Instruction:
    """The instruction that names the source line; for a fusion that names none, one inside it."""
    while "stack_frame_id" not in each.attributes and each.op == "fusion":
        inside = program.computations.get(each.called[0], Computation())
        said = [one for one in inside if "stack_frame_id" in one.attributes]
        each = inside.root if not said else said[-1]
        if not said and each.op != "fusion":
            break
    return each


class Sources:
    """The lines of our code behind instructions, from the tables at the head of the HLO text."""

    def __init__(self, text: str) -> None:
        self._files = {key: name.strip('"') for key, name in _table(text, "FileNames").items()}
        self._locations = {key: _numbers(row) for key, row in _table(text, "FileLocations").items()}
        self._frames = {key: _numbers(row) for key, row in _table(text, "StackFrames").items()}

    def of(self, instruction: Instruction) -> tuple[str, ...]:
        """Lines such as `model/attention.py:26`, the innermost call first, at most `_FRAMES`."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if found:
            return self._stack(int(found[1]))
        direct = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
        line = _ours(direct[1], int(direct[2])) if direct else None
        return (line,) if line else ()

    def _stack(self, frame: int) -> tuple[str, ...]:
        lines: list[str] = []
        seen: set[int] = set()
        while frame in self._frames.keys() - seen and len(lines) < _FRAMES:
            seen.add(frame)
            place, above = self._frames[frame][:2]
            location = self._locations[place]
            line = _ours(self._files[location[0]], location[2])
            if line is not None and line not in lines:
                lines.append(line)
            frame = above - 1  # the parent's number is stored plus one; 1 means none
        return tuple(lines)


def _table(text: str, name: str) -> dict[int, str]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
    rows = found[1].splitlines() if found else []
    return {int(number): row for number, _, row in (row.partition(" ") for row in rows)}


def _numbers(row: str) -> list[int]:
    return [int(number) for number in re.findall(r"=(\d+)", row)]


def _ours(file: str, line: int) -> str | None:
    """`PATH:LINE` within the package; None for a file outside of it."""
    inside = file.rpartition(f"/{_OURS}/")
    return f"{inside[2]}:{line}" if inside[1] else None
