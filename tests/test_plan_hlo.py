"""What a compiled program is read to compute, to move and to hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax.plan import costs
from othink_jax.plan.buffers import largest
from othink_jax.plan.hlo import Program

LOOP = """HloModule loop

%less (i: s32[], end: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %end = s32[] parameter(1)
  ROOT %compared = pred[] compare(%i, %end), direction=LT
}

%condition (state: (s32[], f32[4,6])) -> pred[] {
  %state = (s32[], f32[4,6]{1,0}) parameter(0)
  %one = s32[] constant(1)
  %end = s32[] constant(7)
  %i = s32[] get-tuple-element(%state), index=0
  %back = s32[] subtract(%i, %one)
  ROOT %goes_on = pred[] fusion(%back, %end), kind=kLoop, calls=%less
}

%body (state: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %state = (s32[], f32[4,6]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,6]{1,0} get-tuple-element(%state), index=1
  %square = f32[6,6]{1,0} dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %next = f32[4,6]{1,0} dot(%x, %square), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %made = (s32[], f32[4,6]{1,0}) tuple(%i, %next)
}

ENTRY %main (x: f32[4,6]) -> f32[4,6] {
  %x = f32[4,6]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,6]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,6]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4,6]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_products_in_a_loop_count_with_its_trips_which_only_its_condition_says():
    program = Program(LOOP)
    assert program.unknown_loops == ()
    assert costs.flops(program) == 7 * (2 * 6 * 6 * 4 + 2 * 4 * 6 * 6)


def test_a_loop_that_does_not_say_its_trips_is_named():
    program = Program(LOOP.replace("compare(%i, %end)", "compare(%i, %i)"))
    assert program.unknown_loops == ("loop",)
    assert costs.flops(program) == 2 * 6 * 6 * 4 + 2 * 4 * 6 * 6


def test_what_a_loop_reads_and_writes_counts_with_its_trips():
    square, next_ = 4 * (24 + 24 + 36), 4 * (24 + 36 + 24)
    condition = 4 * 3 + 4 + 4 + 1
    assert costs.traffic(Program(LOOP)) == 7 * (square + next_ + condition)


# As the TPU's compiler writes it: one all-gather in three fusions, each with work of its own.
ASYNC = """HloModule async

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%first (w: f32[2,8], x: f32[3,4]) -> f32[3,3] {
  %w = f32[2,8]{1,0} parameter(0)
  %gathered = f32[8,8]{1,0} all-gather(%w), channel_id=5, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="3"}
  %x = f32[3,4]{1,0} parameter(1)
  ROOT %product = f32[3,3]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%second (w: f32[2,8]) -> f32[8,8] {
  %w = f32[2,8]{1,0} parameter(0)
  ROOT %gathered.1 = f32[8,8]{1,0} all-gather(%w), channel_id=5, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="3"}
}

ENTRY %main (w: f32[2,8], x: f32[3,4]) -> f32[8,8] {
  %w = f32[2,8]{1,0} parameter(0)
  %x = f32[3,4]{1,0} parameter(1)
  %begin = f32[3,3]{1,0} fusion(%w, %x), kind=kCustom, calls=%first
  %end = f32[8,8]{1,0} fusion(%w), kind=kCustom, calls=%second
  %sum = f32[8,8]{1,0} all-reduce(%end), channel_id=6, replica_groups={{0,1},{2,3}}, to_apply=%add
  %part = f32[4,8]{1,0} reduce-scatter(%sum), channel_id=7, replica_groups={{0,1},{2,3}}, \
dimensions={0}, to_apply=%add
  ROOT %done = f32[8,8]{1,0} copy(%sum)
}
"""


def test_copies_of_an_asynchronous_collective_count_once():
    program = Program(ASYNC)
    assert costs.moved_by_kind(program) == {
        "all-gather": 256,
        "all-reduce": 256,
        "reduce-scatter": 128,
    }
    assert costs.flops(program) == 2 * 3 * 3 * 4


def test_collectives_that_share_a_channel_are_several():
    """As in the backward pass of a TPU's program."""
    program = Program(ASYNC.replace('chain_id="3"', 'chain_id="4"', 1))
    assert costs.moved_by_kind(program)["all-gather"] == 2 * 256


def test_what_an_asynchronous_collective_was_given_is_not_what_it_gives():
    program = Program("""
ENTRY %main (x: f32[8,2]) -> f32[8,2] {
  %x = f32[8,2]{1,0} parameter(0)
  %a = ((f32[8,2]{1,0}), f32[2,2]{1,0}, s32[]) reduce-scatter-start(%x), dimensions={0}
  %a.done = f32[2,2]{1,0} reduce-scatter-done(%a)
  %b = (f32[2,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%a.done), dimensions={0}
  %b.done = f32[8,2]{1,0} all-gather-done(%b)
  %c = f32[8,2]{1,0} all-reduce-start(%b.done)
  ROOT %c.done = f32[8,2]{1,0} all-reduce-done(%c)
}
""")
    moved = {"all-gather": 64, "all-reduce": 64, "reduce-scatter": 16}
    assert costs.moved_by_kind(program) == moved
    assert costs.traffic(program) == (64 + 16) + (16 + 64) + (64 + 64)


def test_a_device_sends_no_more_than_it_must():
    """A gather has a device's own shard already; what is scattered goes out but for its own."""
    sent = {each.kind: (each.devices, each.wire_bytes) for each in Program(ASYNC).collectives}
    assert sent == {
        "all-gather": (4, 256 * 3 / 4),
        "all-reduce": (2, 256),
        "reduce-scatter": (2, 128),
    }


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2}}", 3),
        ("[2,4]<=[2,4]T(1,0)", 4),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2] {'axis_1', 'axis_2'}", 8),
        ("mesh['axis_0'=1,'axis_1'=4] {'axis_1'}", 4),
    ],
)
def test_the_devices_that_exchange_are_counted_however_they_are_written(groups, devices):
    text = ASYNC.replace("channel_id=6, replica_groups={{0,1},{2,3}}", f"replica_groups={groups}")
    (found,) = (each for each in Program(text).collectives if each.kind == "all-reduce")
    assert found.devices == devices


def convolution(window, labels, shapes):
    lhs, rhs, result = shapes
    return Program(f"""
ENTRY %main (a: f32[{lhs}], b: f32[{rhs}]) -> f32[{result}] {{
  %a = f32[{lhs}] parameter(0)
  %b = f32[{rhs}] parameter(1)
  ROOT %made = f32[{result}] convolution(%a, %b), {window}dim_labels={labels}
}}
""")


@pytest.mark.parametrize(
    ("window", "labels", "shapes", "expected"),
    [
        ("", "bf_io->bf", ("5,7", "7,3", "5,3"), 2 * 5 * 7 * 3),
        # A batch of 4 products [5,7] x [7,3], as an axis of the window that meets itself once.
        (
            "window={size=4 stride=3 lhs_dilate=4}, ",
            "0bf_0io->0bf",
            ("4,5,7", "4,7,3", "4,5,3"),
            4 * 2 * 5 * 7 * 3,
        ),
        # Three places of a window of two, the first of which half lies on the padding.
        ("window={size=2 pad=1_0}, ", "b0f_0io->b0f", ("1,3,2", "2,2,4", "1,3,4"), 2 * 5 * 2 * 4),
    ],
)
def test_a_product_written_as_a_convolution_counts_what_meets(window, labels, shapes, expected):
    assert costs.flops(convolution(window, labels, shapes)) == expected


MEMORY = """HloModule memory

FileNames
1 "/home/user/site-packages/othink_jax/model/attention.py"
2 "/home/user/site-packages/flax/nnx.py"
3 "/home/user/site-packages/othink_jax/model/text.py"

FunctionNames
1 "attention"
2 "call"
3 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=26 end_line=26 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=700 end_line=700 column=4 end_column=9}
3 {file_name_id=3 function_name_id=3 line=80 end_line=80 column=4 end_column=9}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=3}

%sliced (all: bf16[9,4,8], at: s32[]) -> bf16[4,8] {
  %all = bf16[9,4,8]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = bf16[1,4,8]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,4,8}
  %flat = bf16[4,8]{1,0} bitcast(%row)
  ROOT %negated = bf16[4,8]{1,0} negate(%flat), metadata={op_name="layer/neg" stack_frame_id=3}
}

%written (all: bf16[9,4,8], at: s32[], row: bf16[4,8]) -> bf16[9,4,8] {
  %all = bf16[9,4,8]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %row = bf16[4,8]{1,0} parameter(2)
  %lifted = bf16[1,4,8]{2,1,0} bitcast(%row)
  %zero = s32[] constant(0)
  ROOT %put = bf16[9,4,8]{2,1,0} dynamic-update-slice(%all, %lifted, %at, %zero, %zero)
}

ENTRY %main (all: bf16[9,4,8], at: s32[]) -> bf16[9,4,8] {
  %all = bf16[9,4,8]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %row = bf16[4,8]{1,0} fusion(%all, %at), kind=kLoop, calls=%sliced
  %near = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} copy(%row)
  %wide = f32[4,8]{1,0} convert(%near), metadata={op_name="layer/wide" stack_frame_id=2}
  ROOT %made = bf16[9,4,8]{2,1,0} fusion(%all, %at, %near), kind=kLoop, calls=%written
}
"""


def test_slices_in_place_updates_and_faster_memory_are_counted_as_what_they_are():
    row = 2 * 4 * 8
    read_slice, written_back = row + 4 + row, 4 + row
    near, wide = row, 2 * row
    assert costs.traffic(Program(MEMORY)) == read_slice + near + wide + written_back


def test_what_a_fusion_in_a_fusion_passes_on_is_read():
    """As a TPU's program reads a weight from its main memory: laid out anew, then multiplied."""
    program = Program("""
%match_layout (w: bf16[4,8]) -> bf16[4,8,1] {
  %w = bf16[4,8]{1,0} parameter(0)
  ROOT %weight = bf16[4,8,1]{1,0,2} bitcast(%w)
}

%multiplied (x: bf16[2,4], w: bf16[4,8]) -> bf16[2,8,1] {
  %x = bf16[2,4]{1,0} parameter(0)
  %w = bf16[4,8]{1,0} parameter(1)
  %weight = bf16[4,8,1]{1,0,2} fusion(%w), kind=kLoop, calls=%match_layout
  ROOT %product = bf16[2,8,1]{1,0,2} convolution(%x, %weight), dim_labels=bf_io0->bf0
}

ENTRY %main (x: bf16[2,4], w: bf16[4,8]) -> bf16[2,8,1] {
  %x = bf16[2,4]{1,0} parameter(0)
  %w = bf16[4,8]{1,0} parameter(1)
  ROOT %out = bf16[2,8,1]{1,0,2} fusion(%x, %w), kind=kOutput, calls=%multiplied
}
""")
    assert costs.traffic(program) == 2 * (2 * 4 + 4 * 8 + 2 * 8)


def test_the_largest_buffers_are_named_with_the_lines_that_ask_for_them():
    """What is updated in place, or in another memory, is no new buffer."""
    found = largest(Program(MEMORY))
    lines = ("model/attention.py:26", "model/text.py:80")
    assert [(each.array, each.nbytes, each.count, each.lines) for each in found] == [
        ("f32[4,8]", 128, 1, lines),
        ("bf16[4,8]", 64, 1, lines),
    ]


def test_kernels_say_their_work_or_are_named():
    said = """
ENTRY %main (a: f32[2,3]) -> f32[2,3] {
  %a = f32[2,3]{1,0} parameter(0)
  %k = f32[2,3]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"120"}}}
  ROOT %g = f32[2,2]{1,0} custom-call(%k, %k), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
}
"""
    assert costs.flops(Program(said)) == 120 + 2 * 2 * 2 * 3
    assert costs.uncounted_kernels(Program(said)) == ()
    silent = said.replace('"flops"', '"none"')
    assert costs.uncounted_kernels(Program(silent)) == ("tpu_custom_call",)


def test_the_count_of_a_program_that_this_machine_compiles_is_the_one_on_paper():
    N, D, turns = 16, 24, 5

    @jax.jit
    def run(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((N, D), np.float32), jax.ShapeDtypeStruct((turns, D, D), "f4")
    program = Program(run.lower(*shapes).compile().as_text())
    assert costs.flops(program) == turns * 2 * N * D * D
    weights = turns * D * D * 4
    assert weights < costs.traffic(program) < 6 * weights


def test_an_array_type_is_written_as_xla_does():
    (array,) = Program(MEMORY).computations["main"].instructions["wide"].results
    assert str(array) == "f32[4,8]"
    assert dataclasses.replace(array, shape=()).nbytes == 4
