"""What a compiler says of a program: bytes by kind, work, exchange; or why it refuses it."""

import dataclasses
import re
import time
from typing import Any

import jax

from othink_jax.errors import first_line
from othink_jax.plan import costs
from othink_jax.plan.buffers import Buffer, largest
from othink_jax.plan.hlo import Program
from othink_jax.plan.lowering import RunProgram
from othink_jax.plan.targets import Chip
from othink_jax.plan.text import arrays

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device while a program runs."""

    arguments: int
    results: int
    aliased: int  # results that take the place of arguments
    temporaries: int
    code: int

    @property
    def running(self) -> int:
        """All but the code, which is there before and after."""
        return self.arguments + self.results - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Of one run of a program, on each device."""

    flops: int  # of products of matrices
    traffic: int  # bytes from and to the device's memory
    moved: dict[str, int]  # bytes of the results of collectives, by kind
    sent: int  # the least bytes that these make a device send, or receive
    unknown_loops: tuple[str, ...]  # counted as if they ran once
    uncounted_kernels: tuple[str, ...]  # whose FLOPs are not known

    def bound(self, chip: Chip) -> float:
        """Seconds that a run takes at least, at the peaks of the device."""
        return max(self.flops / chip.flops, self.traffic / chip.bandwidth, self.sent / chip.link)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One program. Of one that the compiler refuses, memory and work are not known."""

    name: str
    times: int  # runs of it in a step; 0 for one that runs between steps
    held: int  # bytes of its arguments that stay between steps
    compile_seconds: float
    memory: Memory | None
    work: Work | None
    buffers: tuple[Buffer, ...]  # the largest first
    refused: str | None = None  # what the compiler says
    refused_bytes: int = 0  # that it says the program needs
    without_triton: bool = False  # products by cuBLAS alone


def compiled(program: RunProgram) -> Report:
    """Compile a program and read what came of it."""
    lowered = program.lower()
    began = time.perf_counter()
    known: dict[str, Any] = {"name": program.name, "times": program.times, "held": program.held}
    try:
        made, without_triton = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Report(
            **known,
            compile_seconds=time.perf_counter() - began,
            memory=None,
            work=None,
            buffers=_named_buffers(str(error)),
            refused=first_line(error),
            refused_bytes=_needed(str(error)),
        )
    seconds = time.perf_counter() - began
    text = Program(made.as_text() or "")
    return Report(
        **known,
        compile_seconds=seconds,
        memory=_memory(made.memory_analysis()),
        work=_work(text),
        buffers=largest(text),
        without_triton=without_triton,
    )


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """The program, and whether it had to do without products in Triton.

    On a GPU, their tiles are found by trying; without one, the default ones fit not all products.
    """
    try:
        return lowered.compile(), False
    except jax.errors.JaxRuntimeError as error:
        if "Couldn't find output tile sizes" not in str(error):
            raise
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False}), True


def _memory(said: Any) -> Memory:
    return Memory(
        arguments=said.argument_size_in_bytes,
        results=said.output_size_in_bytes,
        aliased=said.alias_size_in_bytes,
        temporaries=said.temp_size_in_bytes,
        code=said.generated_code_size_in_bytes,
    )


def _work(program: Program) -> Work:
    return Work(
        flops=costs.flops(program),
        traffic=costs.traffic(program),
        moved=costs.moved_by_kind(program),
        sent=costs.wire_bytes(program),
        unknown_loops=program.unknown_loops,
        uncounted_kernels=costs.uncounted_kernels(program),
    )


def _needed(message: str) -> int:
    """Bytes that a compiler says a program needs, of which there are fewer."""
    found = re.search(r"(?:Used|temporaries \()\s*([\d.]+)([KMGT]?)", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _named_buffers(message: str) -> tuple[Buffer, ...]:
    """The largest allocations, where the compiler lists them."""
    found = re.findall(r"Size: [\d.]+[KMGT]?\n(?:.*\n)*?\s*Shape: (\S+)", message)
    made = [array for text in found for array in arrays(text)[:1]]
    return tuple(Buffer(str(array), array.nbytes, 1, ()) for array in made)
