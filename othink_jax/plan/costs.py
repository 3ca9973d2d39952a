"""FLOPs and memory traffic of one run of a compiled program on one device, from its HLO text.

FLOPs are those of matrix products, two per multiply-add. Bytes are what instructions read from the
device's memory and write to it, as if each read its operands anew: a cache that holds an array from
one instruction to the next is not modelled.
"""

import math
import re
from collections.abc import Iterator

from othink_jax.plan.hlo import Program, received
from othink_jax.plan.text import ArrayType, Computation, Instruction

# Ops that move nothing: they name arrays, or wait, or call computations that are counted instead.
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "after-all"),
    *("while", "conditional", "call", "opt-barrier", "iota", "partition-id", "replica-id"),
    *("async-start", "async-update", "async-done", "copy-done", "slice-done", "domain"),
}
_PART_READ = ("dynamic-slice", "slice", "gather")  # read as much of the first operand as they give
_PASSED = ("bitcast", "reshape", "copy", "convert", "transpose")  # looked through inside a fusion
_MARKERS = ("AllocateBuffer", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding")


def flops(program: Program) -> int:
    """FLOPs of matrix products."""
    return sum(
        program.runs[name] * _product(computation, each)
        for name, computation in program.computations.items()
        for each in computation
    )


def uncounted_kernels(program: Program) -> tuple[str, ...]:
    """Targets of custom calls that may compute products that `flops` cannot count."""
    return tuple(
        sorted(
            {
                target
                for name, computation in program.computations.items()
                for each in computation
                if each.op == "custom-call" and program.runs[name]
                for target in [_target(each)]
                if re.search(r"tpu_custom_call|cudnn|triton|mosaic|cublas|onednn", target)
                and not _product(computation, each)
            }
        )
    )


def traffic(program: Program) -> int:
    """Bytes that are read from the device's memory and written to it."""
    return sum(
        program.runs[name] * _moved(program, computation, each)
        for name, computation in program.computations.items()
        if name not in program.fused
        for each in computation
    )


def _product(computation: Computation, each: Instruction) -> int:
    if each.op == "dot":
        return _dot(computation, each, r"lhs_contracting_dims=\{([\d,]*)\}")
    if each.op == "convolution":
        return _convolution(computation, each)
    if each.op == "custom-call":
        if found := re.search(r'"flops":"?(\d+)', each.attributes):  # declared by the kernel
            return int(found[1])
        if "$" in _target(each) and "lhs_contracting_dimensions" in each.attributes:
            return _dot(computation, each, r'"lhs_contracting_dimensions":\[([\d",]*)\]')
    return 0


def _target(each: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', each.attributes)
    return found[1] if found else ""


def _dot(computation: Computation, each: Instruction, contracted: str) -> int:
    lhs = computation.operands(each)[0].results[0].shape
    found = re.search(contracted, each.attributes)
    sides = re.findall(r"\d+", found[1]) if found else []
    return 2 * math.prod(each.results[0].shape) * math.prod(lhs[int(side)] for side in sides)


def _convolution(computation: Computation, each: Instruction) -> int:
    """TPUs express every matrix product so: its batch is a window axis, dilated or padded."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    assert labels is not None
    inputs, kernel, output = labels.groups()
    lhs, rhs = (operand.results[0].shape for operand in computation.operands(each)[:2])
    result = each.results[0].shape
    window = re.search(r"window=\{([^}]*)\}", each.attributes)
    words = dict(word.split("=") for word in (window[1].split() if window else []))
    groups = re.search(r"batch_group_count=(\d+)", each.attributes)
    total = result[output.index("b")] * result[output.index("f")] * rhs[kernel.index("i")]
    for axis in range(sum(letter.isdigit() for letter in output)):
        label = str(axis)
        sizes = lhs[inputs.index(label)], rhs[kernel.index(label)], result[output.index(label)]
        total *= _met(*sizes, words, axis)
    return 2 * total // (int(groups[1]) if groups else 1)


def _met(size: int, window: int, places: int, words: dict[str, str], axis: int) -> int:
    """Pairs of a window element and an input element that meet, along one axis of the window."""

    def number(name: str, default: str) -> int:
        found = words.get(name)
        return int((found.split("x")[axis] if found else default).split("_")[0])

    stride, before = number("stride", "1"), number("pad", "0")
    dilation, spread = number("lhs_dilate", "1"), number("rhs_dilate", "1")
    end = (size - 1) * dilation + 1
    return sum(
        0 <= at < end and at % dilation == 0
        for place in range(places)
        for element in range(window)
        for at in [place * stride + element * spread - before]
    )


def _moved(program: Program, computation: Computation, each: Instruction) -> int:
    if each.op in _NOTHING or _target(each) in _MARKERS or each.op.endswith("-done"):
        return 0
    operands = computation.operands(each)
    if each.op == "fusion":
        inside = program.computations[each.called[0]]
        read = sum(
            min(_in_memory(operand), _read(program, inside, parameter))
            for operand, parameter in zip(operands, inside.parameters, strict=True)
        )
        return read + _written(program, inside, each)
    if each.op in _PART_READ:
        return 2 * _in_memory(each) + sum(map(_in_memory, operands[1:]))
    if each.op == "dynamic-update-slice":
        return 2 * _in_memory(operands[1])
    if each.op == "scatter":
        return 2 * _in_memory(operands[-1]) + _in_memory(operands[1])
    if each.op in ("copy-start", "slice-start"):
        return _copied(each, operands)
    made = received(each) if each.op.endswith("-start") else each.results
    return sum(map(_in_memory, operands)) + sum(part.nbytes for part in made if part.in_memory)


def _in_memory(each: Instruction) -> int:
    return sum(part.nbytes for part in each.results if part.in_memory)


def _copied(each: Instruction, operands: list[Instruction]) -> int:
    """Bytes of a copy from main memory to a faster one, or back: it gives both and a context."""
    parts = [part for part in each.results if part.shape]
    size = min((part.nbytes for part in parts), default=0)
    return size * sum(part.in_memory for part in parts[:2]) if operands else 0


def _read(program: Program, inside: Computation, given: Instruction) -> int:
    """Bytes that a fusion reads of one of its parameters; if it slices it, only the slice."""
    if given is inside.root:  # of a nested fusion that passes all of it on
        return given.nbytes
    total = 0
    for user in inside.users[given.name]:
        first = user.operands[0] == given.name
        if user.op in _PART_READ and first:
            total += user.nbytes
        elif user.op == "dynamic-update-slice" and first:
            continue  # overwritten in place
        elif user.op in ("bitcast", "reshape"):
            total += _read(program, inside, user)
        elif user.op == "fusion":
            nested = program.computations[user.called[0]]
            total += sum(
                _read(program, nested, nested.parameters[number])
                for number, name in enumerate(user.operands)
                if name == given.name
            )
        else:
            return given.nbytes
    return min(total, given.nbytes)


def _written(program: Program, inside: Computation, fusion: Instruction) -> int:
    """Bytes that a fusion writes; of a result that is updated in place, only the update."""
    return sum(changed for result, changed in results(program, inside, fusion) if result.in_memory)


def results(
    program: Program, inside: Computation, fusion: Instruction
) -> Iterator[tuple[ArrayType, int]]:
    """Results of a fusion, and the bytes it writes of each: of one updated in place, the update."""
    parts = inside.operands(inside.root) if inside.root.op == "tuple" else [inside.root]
    for result, part in zip(fusion.results, parts, strict=False):
        yield result, min(result.nbytes, _changed(program, inside, part))


def _changed(program: Program, inside: Computation, part: Instruction) -> int:
    while part.op in _PASSED and part.operands:
        part = inside.operands(part)[0]
    if part.op == "dynamic-update-slice":
        return inside.operands(part)[1].nbytes
    if part.op == "fusion":
        nested = program.computations[part.called[0]]
        return _changed(program, nested, nested.root)
    return part.nbytes


def moved_by_kind(program: Program) -> dict[str, int]:
    """Bytes of the results of collectives, by kind, the largest first."""
    kinds: dict[str, int] = {}
    for each in program.collectives:
        kinds[each.kind] = kinds.get(each.kind, 0) + each.nbytes
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def wire_bytes(program: Program) -> int:
    """Least bytes that a device must send, or must receive."""
    return int(sum(each.wire_bytes for each in program.collectives))
