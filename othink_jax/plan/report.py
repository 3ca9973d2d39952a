"""A plan: memory of a run and of each program, whether it fits, and a lower bound in seconds."""

import dataclasses
import math
from typing import Any

from othink_jax.config import GRPOConfig
from othink_jax.config.record import to_dict
from othink_jax.plan.compiled import Report
from othink_jax.plan.targets import Target
from othink_jax.training.shapes import MOST_PROMPT_SHAPES, MOST_SHAPES

_PREALLOCATED = 0.75  # share of a GPU's memory that JAX preallocates by default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory and least time of a run; bytes are per device."""

    config: GRPOConfig
    target: Target | None  # None: simulated on this machine's CPU
    devices: int  # number that the run uses
    device_memory: int
    staying: dict[str, int]  # bytes that stay between steps, by part
    programs: tuple[Report, ...]
    versions: dict[str, str]

    @property
    def micro_batches(self) -> int:
        """Micro-batches per device and update."""
        return self.config.micro_batches

    @property
    def code(self) -> int:
        """Bytes of the code of all programs, which stay loaded."""
        return sum(each.memory.code for each in self.programs if each.memory)

    def needed(self, program: Report) -> int:
        """Bytes while a program runs: its own, those that stay beside them, and all code."""
        own = program.memory.running if program.memory else program.refused_bytes
        return sum(self.staying.values()) - program.held + own + self.code

    @property
    def peak(self) -> int:
        """Peak bytes. The start of a run takes no more than `staying`."""
        return max(map(self.needed, self.programs))

    @property
    def fits(self) -> bool:
        """Whether every program fits into the memory of a device."""
        return self.peak <= self.device_memory and not any(each.refused for each in self.programs)

    def seconds(self, program: Report) -> float | None:
        """Lower bound of one run of a program; None without a target, or if it was refused."""
        return program.work.bound(self.target.chip) if program.work and self.target else None

    @property
    def step_seconds(self) -> float | None:
        """Lower bound of a step: the sum over its programs, with no array kept in a cache."""
        bounds = [(each.times, self.seconds(each)) for each in self.programs]
        if any(bound is None for _, bound in bounds):
            return None
        return math.fsum(times * bound for times, bound in bounds if bound is not None)

    @property
    def notes(self) -> list[str]:
        """Caveats of the numbers."""
        notes = []
        if self.target is None:
            notes.append(
                "simulated on the CPU, which computes bfloat16 in float32: a machine's own compiler"
                " (--target) takes less"
            )
        elif self.devices < self.target.count:
            notes.append(
                f"--strategy {self.config.parallel.strategy} uses {self.devices} of the"
                f" {self.target.count} devices of {self.target.name}"
            )
        share = self.peak / self.device_memory
        if self.fits and self.target and self.target.chip.gpu and share > _PREALLOCATED:
            notes.append(
                f"JAX takes {_PREALLOCATED:.0%} of a GPU unless told otherwise: set"
                f" XLA_PYTHON_CLIENT_MEM_FRACTION={math.ceil(share * 100 + 1) / 100:.2f}"
            )
        for each in self.programs:
            if each.without_triton:
                notes.append(f"{each.name}: compiled without Triton, whose tiles need a GPU to try")
            if each.work and (unknown := each.work.unknown_loops + each.work.uncounted_kernels):
                notes.append(
                    f"{each.name}: work is counted too low, of {', '.join(unknown)} it is not known"
                )
        return notes

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON. Bytes are per device; seconds are bounds, except those of compiling."""
        return {
            "fits": self.fits,
            "target": self.target.name if self.target else "cpu",
            "devices": self.devices,
            "micro_batches": self.micro_batches,
            "memory": self.device_memory,
            "peak": self.peak,
            "staying": self.staying,
            "bound_seconds": self.step_seconds,
            "programs": {each.name: self._program_json(each) for each in self.programs},
            # Number of shapes that a run compiles for, at most; these programs have the largest.
            "shapes": {"rollout": MOST_PROMPT_SHAPES, "update": MOST_SHAPES},
            "notes": self.notes,
            "settings": to_dict(self.config),
            "versions": self.versions,
        }

    def _program_json(self, program: Report) -> dict[str, Any]:
        found = dataclasses.asdict(program)
        del found["name"]
        return found | {"needed": self.needed(program), "bound_seconds": self.seconds(program)}


def summary(plan: Plan) -> str:
    """One line: the micro-batches that were tried, the peak, and whether it fits."""
    verdict = "fits" if plan.fits else "does not fit"
    return f"--micro-batches {plan.micro_batches}: {_size(plan.peak)} per device, {verdict}"


def table(plan: Plan) -> str:
    """The plan as text."""
    where = f"{plan.devices} devices of {plan.target.name}" if plan.target else "simulated devices"
    lines = [f"--micro-batches {plan.micro_batches} on {where}; per device"]
    lines += [_row(name, size) for name, size in plan.staying.items()]
    lines.append(_row("code of all programs", plan.code))
    for each in plan.programs:
        lines += ["", *_program_lines(plan, each)]
    lines += ["", _row("most at one time", plan.peak), _row("memory", plan.device_memory)]
    if plan.step_seconds is not None:
        lines.append(
            f"  a step takes at least {plan.step_seconds:.2f} s on the devices: a bound from their"
            " peaks, not an estimate"
        )
    lines.append(
        f"  a run compiles up to {MOST_PROMPT_SHAPES} rollouts, and {MOST_SHAPES} references and"
        " updates, for as many shapes; these are of the largest"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in plan.notes)])


def _row(name: str, size: float) -> str:
    return f"  {name:<26}{_size(size):>12}"


def _size(nbytes: float) -> str:
    """A size in powers of ten: `15.75G` of a compiler is 16.91 GB."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"


def _program_lines(plan: Plan, program: Report) -> list[str]:
    head = f"{program.name} (compiled in {program.compile_seconds:.0f} s"
    if program.times != 1:
        head += f", {program.times} times a step" if program.times else ", between steps"
    head += ")"
    if program.memory is None or program.work is None:
        lines = [f"{head}: the compiler refuses it", f"  {program.refused}"]
    else:
        memory, work = program.memory, program.work
        lines = [
            head,
            *(_row(name, size) for name, size in dataclasses.asdict(memory).items()),
            _row("with all that stays", plan.needed(program)),
            f"  {'FLOPs':<26}{work.flops / 1e12:>10.4g} T",
            _row("read and written", work.traffic),
            *(_row(f"moved: {kind}", size) for kind, size in work.moved.items()),
        ]
        if (bound := plan.seconds(program)) is not None:
            lines.append(f"  {'time, at least':<26}{bound:>10.3f} s")
    lines += [
        f"  {_size(each.nbytes):>12}  {each.array}{f' x {each.count}' if each.count > 1 else ''}"
        f"  {' < '.join(each.lines)}"
        for each in program.buffers[:5]
    ]
    return lines
