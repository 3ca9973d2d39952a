"""Compiling a program and reporting its memory, FLOPs and traffic, or why it is refused."""

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
    aliased: int  # results that reuse the buffers of donated arguments
    temporaries: int
    code: int

    @property
    def running(self) -> int:
        """All except the code, which is loaded before and after as well."""
        return self.arguments + self.results - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one run of a program, on each device."""

    flops: int  # of matrix products
    traffic: int  # bytes from and to the device's memory
    moved: dict[str, int]  # bytes of the results of collectives, by kind
    sent: int  # least bytes that a device sends, or receives, for these
    unknown_loops: tuple[str, ...]  # loops of unknown trip count, counted as one trip
    uncounted_kernels: tuple[str, ...]  # kernels whose FLOPs are unknown

    def bound(self, chip: Chip) -> float:
        """Lower bound of a run in seconds, from the peaks of the device."""
        return max(self.flops / chip.flops, self.traffic / chip.bandwidth, self.sent / chip.link)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One program; memory and work are None if the compiler refuses it."""

    name: str
    times: int  # runs per step; 0 for a program that runs between steps
    held: int  # bytes of its arguments that stay between steps
    compile_seconds: float
    memory: Memory | None
    work: Work | None
    buffers: tuple[Buffer, ...]  # the largest first
    refused: str | None = None  # the compiler's message
    refused_bytes: int = 0  # bytes that the program needs, from this message
    without_triton: bool = False  # matrix products by cuBLAS alone


def compiled(program: RunProgram) -> Report:
    """Compile a program and report on it."""
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
    """The compiled program, and whether matrix products in Triton had to be disabled.

    Their tiles are autotuned on a GPU; without one, the default tiles do not fit all products.
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
    """Bytes that a program needs, from the compiler's out-of-memory message; 0 if it gives none."""
    found = re.search(r"(?:Used|temporaries \()\s*([\d.]+)([KMGT]?)", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _named_buffers(message: str) -> tuple[Buffer, ...]:
    """The largest allocations, if the compiler lists them."""
    found = re.findall(r"Size: [\d.]+[KMGT]?\n(?:.*\n)*?\s*Shape: (\S+)", message)
    made = [array for text in found for array in arrays(text)[:1]]
    return tuple(Buffer(str(array), array.nbytes, 1, ()) for array in made)
