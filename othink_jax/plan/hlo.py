"""A compiled program, read from its text in XLA's language (HLO).

XLA has no other way to report collectives, and its cost analysis counts the body of a loop once.
The text differs between backends: the trip count of a loop is in its own attribute or in its
condition, and a collective is one instruction or a start and a done.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from othink_jax.plan.text import ArrayType, Computation, Instruction, parse

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
# Ops whose called computations run instruction by instruction, unlike those of a fusion.
_RUNNING = ("while", "conditional", "call", "async-start", "async-done", "async-update")


@dataclasses.dataclass(frozen=True)
class Collective:
    """An instruction by which devices exchange arrays."""

    kind: str
    results: tuple[ArrayType, ...]  # on each device, of one execution
    times: int  # executions in one run of the program
    source: str  # JAX's name of the op, see `Instruction.source`
    devices: int = 1  # number that exchange with one another

    @property
    def nbytes(self) -> int:
        """Bytes of the results on each device in one run of the program."""
        return self.times * sum(each.nbytes for each in self.results)

    @property
    def wire_bytes(self) -> float:
        """Least bytes that a device must send, or must receive, in one run of the program."""
        if self.kind == "reduce-scatter":
            return self.nbytes * (self.devices - 1)
        if self.kind in ("all-gather", "all-to-all", "ragged-all-to-all"):
            return self.nbytes * (self.devices - 1) / self.devices
        return self.nbytes


class Program:
    """A compiled program: `Program(compiled.as_text())`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.computations, self._entry = parse(text)

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """All collectives, the largest first. A loop of unknown trip count counts as one trip."""
        found: dict[tuple[str, str], Collective] = {}  # by kind, and chain id or name
        for name, computation in self.computations.items():
            for each in computation:
                kind = each.op.removesuffix("-start")
                times = self._times.get(name, 0)
                if kind not in _COLLECTIVES or not times:
                    continue
                results = received(each)
                made = Collective(kind, results, times, each.source, _group(each))
                # The TPU compiler puts copies of one asynchronous collective into several fusions.
                # The channel does not identify it: collectives of a backward pass may share one.
                chain = re.search(r'chain_id="(\d+)"', each.attributes)
                key = (kind, chain[1] if chain and name in self.fused else each.name)
                if key not in found or found[key].times < times:
                    found[key] = made
        return tuple(sorted(found.values(), key=lambda each: -each.nbytes))

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations inside of one instruction (a fusion): their arrays are in no memory."""
        inside = {
            name
            for computation in self.computations.values()
            for each in computation
            if each.op not in _RUNNING
            for name in each.called
        }
        todo = list(inside)
        while todo:
            for each in self.computations.get(todo.pop(), Computation()):
                todo += set(each.called) - inside
                inside |= set(each.called)
        return inside

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        """Runs of each computation: the product of the trip counts of the loops around it.

        If it has several callers, the one that runs most often counts: the body of an asynchronous
        collective is called twice, but runs once.
        """
        times: dict[str, int] = {}
        todo = [(self._entry, 1)]
        while todo:
            name, count = todo.pop()
            if times.get(name, 0) >= count:
                continue
            times[name] = count
            for each in self.computations.get(name, Computation()):
                todo += [(called, count * self._trips(each)) for called in each.called]
        return times

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """Runs of each computation, summed over its callers.

        The two halves of an asynchronous instruction name the same computation, which runs once.
        """
        runs = dict.fromkeys(self.computations, 0)
        runs[self._entry] = 1
        for name in self._callers_first():
            for each in self.computations[name]:
                if not each.op.endswith(("-done", "-update")):
                    for called in each.called:
                        runs[called] += runs[name] * self._trips(each)
        return runs

    def _callers_first(self) -> list[str]:
        finished: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in finished or name not in self.computations:
                return
            for each in self.computations[name]:
                for called in each.called:
                    visit(called)
            finished[name] = None

        visit(self._entry)
        return list(reversed(finished))

    @functools.cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """Names of loops of unknown trip count."""
        return tuple(
            each.name
            for computation in self.computations.values()
            for each in computation
            if each.op == "while" and self._said_trips(each) is None
        )

    def _trips(self, caller: Instruction) -> int:
        return (self._said_trips(caller) or 1) if caller.op == "while" else 1

    def _said_trips(self, loop: Instruction) -> int | None:
        if said := _TRIPS.search(loop.attributes):
            return int(said[1])
        # A loop that counts up from zero ends at the only integer that its condition compares with.
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        ends = set(self._compared(condition[1], ())) if condition else set()
        return ends.pop() if len(ends) == 1 else None

    def _compared(self, name: str, given: Sequence[int | None]) -> Iterator[int]:
        """Constants that a computation, or one that it calls, compares something with.

        Args:
          name: name of the computation.
          given: values of its parameters; None for those that are not constant.
        """
        computation = self.computations.get(name, Computation())
        values: dict[str, int | None] = {}
        for each in computation:
            first = re.match(r"\d+(?=\))", each.attributes)
            operands = [values[operand] for operand in each.operands]
            if each.op == "constant":
                values[each.name] = int(first[0]) if first else None
            elif each.op == "parameter" and first and int(first[0]) < len(given):
                values[each.name] = given[int(first[0])]
            else:
                values[each.name] = operands[0] if each.op in ("copy", "bitcast") else None
            if each.op == "compare":
                yield from (value for value in operands if value is not None)
            for called in each.called:
                yield from self._compared(called, operands)


def _group(collective: Instruction) -> int:
    """Size of a replica group, from `{{0,1},{2,3}}`, `[2,2]<=[4]`, or axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", collective.attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", collective.attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", collective.attributes):
        sizes = dict(axis.split("=") for axis in named[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in named[2].split(","))
    return 1


def received(collective: Instruction) -> tuple[ArrayType, ...]:
    """Results of a collective; the start of an asynchronous one lists its operands as well."""
    if not collective.op.endswith("-start") or collective.op == "all-reduce-start":
        return collective.results
    made = [each for each in collective.results if each.shape]  # drops counters
    return tuple(made[len(made) // 2 :])
