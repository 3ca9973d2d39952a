"""Parser of a compiled program's text (HLO): computations and their instructions."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128} | {
    f"{kind}{bits}": bits for kind in "fsu" for bits in (2, 4, 8, 16, 32, 64)
}
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)\w*\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:called|branch)_computations=\{([^}]*)\}")
_ELSEWHERE = re.compile(r"S\([1-9]\d*\)")  # another memory, such as a TPU's VMEM


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Type of an array on one device."""

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool = True  # the device's main memory, and not a faster one beside its cores

    @property
    def nbytes(self) -> int:
        """Bytes of one array."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    results: tuple[ArrayType, ...]
    op: str
    operands: tuple[str, ...]  # names of instructions of the same computation
    attributes: str
    is_root: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all results."""
        return sum(each.nbytes for each in self.results)

    @property
    def source(self) -> str:
        """JAX's name of the op in our code (`op_name`); empty if there is none."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        names = _CALLED.findall(self.attributes)
        for several in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in several.split(",")]
        return tuple(names)


class Computation:
    """Instructions by name, in the order of the text."""

    def __init__(self) -> None:
        self.instructions: dict[str, Instruction] = {}

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results one takes."""
        return [self.instructions[name] for name in instruction.operands]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Users of each instruction, by its name: those that have it as an operand."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self:
            for name in dict.fromkeys(each.operands):
                found[name].append(each)
        return found

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(each for each in self if each.is_root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Parameter instructions, by their number."""
        numbered = {int(each.attributes.split(")")[0]): each for each in self
                    if each.op == "parameter"}  # fmt: skip
        return [numbered[number] for number in sorted(numbered)]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of its entry computation."""
    computations: dict[str, Computation] = {}
    entry, computation = "", Computation()
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            computation = computations[heading[2]] = Computation()
            if heading[1]:
                entry = heading[2]
        elif found := _INSTRUCTION.match(line):
            made = _instruction(*found.groups(), known=computation.instructions)
            computation.instructions[made.name] = made
    return computations, entry


def _instruction(
    root: str | None, name: str, result: str, op: str, rest: str, *, known: dict[str, Any]
) -> Instruction:
    depths = itertools.accumulate((c == "(") - (c == ")") for c in "(" + rest)
    end = next((at for at, depth in enumerate(depths) if at and not depth), len(rest)) - 1
    operands = (word.lstrip("%") for word in re.findall(r"%?[\w.\-]+", rest[:end]))
    attributes = rest if op in ("parameter", "constant") else rest[end + 1 :]
    given = tuple(word for word in operands if word in known)
    return Instruction(name, arrays(result), op, given, attributes, root is not None)


def arrays(text: str) -> tuple[ArrayType, ...]:
    """Array types in the text of a type: one, or the parts of a tuple."""
    return tuple(
        ArrayType(
            dtype,
            tuple(int(side.lstrip("<=")) for side in sides.split(",") if side),
            not _ELSEWHERE.search(layout),
        )
        for dtype, sides, layout in _ARRAY.findall(text)
    )
