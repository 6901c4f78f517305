"""What launch.plan reads from a program that XLA compiled: loops, bytes, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch import plan_buffers, plan_hlo, plan_moved, plan_sent
from tavr_jax.parallel.mesh import MeshConfig, make_mesh


def compiled_text(step, turns):
    """Every device sends 64 float32 in every turn of a loop inside a loop."""
    mesh = make_mesh(MeshConfig(1, 8, 1, 1))
    spec = PartitionSpec("fsdp")

    @partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def f(x):
        def inner(x, _):
            return step(x), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=turns[1])[0] * 2.0, None

        return jax.lax.scan(outer, x, length=turns[0])[0]

    x = jax.ShapeDtypeStruct((512,), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(f).lower(x).compile().as_text()


@pytest.mark.parametrize(
    ("kind", "step", "sent"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp").sum(0), 7 * 256),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * 7 / 8 * 256),
        (
            "reduce-scatter",
            lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), 8),
            7 / 8 * 256,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x.reshape(8, 8), "fsdp", 0, 0).ravel(),
            7 / 8 * 256,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]),
            256,
        ),
    ],
)
def test_a_loop_sends_as_often_as_it_runs(kind, step, sent):
    program = plan_hlo.Program(compiled_text(step, (3, 5)))
    found = [c for c in plan_sent.collectives(program, [0] * 8) if c.kind == kind]
    assert sum(c.times for c in found) == 15
    assert sum(c.times * c.sent for c in found) == pytest.approx(15 * sent)
    assert not program.unbounded
    two = [
        c for c in plan_sent.collectives(program, [0] * 4 + [1] * 4) if c.kind == kind
    ]
    assert all(c.across > 0 for c in two)
    if kind == "all-reduce":  # first inside of each slice, then an eighth... of it
        assert two[0].across == pytest.approx(256 / 4)


HLO = """HloModule jit_step, is_scheduled=true

%cond (p: (s32[], f32[64]{0})) -> pred[] {
  %c = s32[]{:T(128)} constant(6)
  %p = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%body (p.1: (s32[], f32[64]{0})) -> (s32[], f32[64]) {
  %p.1 = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = f32[64]{0:T(64)} get-tuple-element(%p.1), index=1
  %y = bf16[32]{0:T(128)(2,1)S(1)} custom-call(%x), custom_call_target="convert"
  %ag = ((f32[64]{0}, bf16[32]{0}), (f32[256]{0}, bf16[128]{0})) all-gather-start(%x, \
%y), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
metadata={op_name="jit(step)/gather"}
  %agd = (f32[256]{0}, bf16[128]{0}) all-gather-done(%ag)
  ROOT %t = (s32[]{:T(128)}, f32[64]{0:T(64)}) tuple(%i.1, %x)
}

ENTRY %main (a: (s32[], f32[64])) -> (s32[], f32[64]) {
  %a = (s32[]{:T(128)}, f32[64]{0:T(64)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[64]{0:T(64)}) while(%a), condition=%cond, body=%body
}
"""


def test_starts_tuples_and_memory_spaces():
    program = plan_hlo.Program(HLO)
    (one,) = plan_sent.collectives(program, [0] * 8)
    assert (one.kind, one.times, one.name) == ("all-gather", 6, "jit(step)/gather")
    assert one.sent == 3 * (64 * 4 + 32 * 2)
    # the call reads 256 bytes and writes fast memory; the gather moves its operands,
    # and the condition compares two numbers
    assert plan_moved.traffic(program) == 6 * (256 + 2 * 256 + 9)


def test_loops_count_with_any_integer_by_any_step():
    counts = HLO.replace("s32[]{:T(128)} constant(6)", "u32[]{:T(128)} constant(7)")
    by_two = counts.replace(
        "  ROOT %t = (s32[]{:T(128)}, f32[64]{0:T(64)}) tuple(%i.1, %x)",
        "  %two = u32[] constant(2)\n  %n = u32[] add(%i.1, %two)\n"
        "  ROOT %t = (u32[], f32[64]{0}) tuple(%n, %x)",
    )
    for text, turns in ((counts, 7), (by_two, 4)):
        program = plan_hlo.Program(text)
        assert program.times["body"] == turns and not program.unbounded
    unknown = plan_hlo.Program(HLO.replace("direction=LT", "direction=NE"))
    assert unknown.times["body"] == unknown.unbounded == 1


SLICED = """
%sum-scatter (p: f32[64,32]) -> f32[16,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %ar = (f32[64,32]{1,0}) all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %g = f32[64,32]{1,0} get-tuple-element(%ar), index=0
  ROOT %part = f32[16,32]{1,0} dynamic-slice(%g, %i, %z), dynamic_slice_sizes={16,32}
}

%aside (q: f32[64,32]) -> f32[16,32] {
  %q = f32[64,32]{1,0} parameter(0)
  %k = f32[64,32]{1,0:S(1)} custom-call(%q), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="splash"}
  ROOT %f = f32[16,32]{1,0} fusion(%k), kind=kCustom, calls=%sum-scatter
}, execution_thread="other"

ENTRY %main (a: f32[64,32]) -> f32[16,32] {
  %a = f32[64,32]{1,0} parameter(0)
  %s = ((f32[64,32]), f32[16,32], u32[]) async-start(%a), calls=%aside
  ROOT %d = f32[16,32]{1,0} async-done(%s), calls=%aside
}
"""


def test_a_sum_of_which_a_part_is_taken_is_a_reduce_scatter_and_done_once():
    program = plan_hlo.Program(SLICED)
    (one,) = plan_sent.collectives(program, [0] * 4)
    assert (one.kind, one.times) == ("reduce-scatter", 1)
    assert one.sent == 3 / 4 * 64 * 32 * 4
    assert plan_hlo.op_name(program.find("k")) == "splash"
    whole = SLICED.replace("dynamic-slice(", "negate(")
    (one,) = plan_sent.collectives(plan_hlo.Program(whole), [0] * 4)
    assert one.kind == "all-reduce"


def test_a_slice_that_is_fetched_ahead_is_read_from_memory():
    text = """
%ahead (p: s8[64]) -> s8[16] {
  %p = s8[64]{0} parameter(0)
  ROOT %part = s8[16]{0:S(1)} slice(%p), slice={[0:16]}
}

ENTRY %main (a: s8[64]) -> s8[16] {
  %a = s8[64]{0} parameter(0)
  %s = ((s8[64]{0}), s8[16]{0:S(1)}, s32[]{:S(2)}) async-start(%a), calls=%ahead
  ROOT %d = s8[16]{0:S(1)} async-done(%s)
}
"""
    assert plan_moved.traffic(plan_hlo.Program(text)) == 16
    within = text.replace("%p = s8[64]{0}", "%p = s8[64]{0:S(1)}")
    assert plan_moved.traffic(plan_hlo.Program(within)) == 0


def test_bytes_of_every_kind_of_number():
    sizes = {"pred": 1, "s4": 0.5, "f8e4m3fn": 1, "bf16": 2, "f32": 4, "c64": 8}
    for kind, size in (sizes | {"c128": 16, "token": 0}).items():
        assert plan_hlo.shape_bytes(f"{kind}[4,2]{{1,0}}") == 8 * size
    assert plan_hlo.shape_bytes("(f32[], (s32[2]{0}, u8[<=3]))") == 4 + 8 + 3


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("{{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("{}, x", [[0, 1, 2, 3]]),
    ],
)
def test_every_way_to_write_groups(text, rows):
    found = plan_sent.groups(f"channel_id=1, replica_groups={text}", 4)
    assert sorted(sorted(row) for row in found.tolist()) == rows


def test_a_loop_over_a_stack_reads_a_slice_in_each_turn():
    def moved(layers):
        def f(stack, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

        stack = jax.ShapeDtypeStruct((layers, 128, 128), jnp.float32)
        x = jax.ShapeDtypeStruct((128, 128), jnp.float32)
        text = jax.jit(f).lower(stack, x).compile().as_text()
        return plan_moved.traffic(plan_hlo.Program(text))

    assert moved(64) / moved(16) == pytest.approx(4, rel=0.1)


ASSIGNED = """BufferAssignment:
allocation 0: size 1000, parameter 0, shape |f32[250]| at ShapeIndex {}:
 value: <1 a @0> (size=1000,offset=0): f32[250]{0}
allocation 1: size 400, output shape is |f32[100]|, maybe-live-out:
 value: <2 out @0> (size=400,offset=0): f32[100]{0}
allocation 2: size 900, color 1, preallocated-temp:
 value: <3 fast @1> (size=900,offset=0): f32[225]{0:S(1)}
allocation 3: size 3000, preallocated-temp:
 value: <4 w{1} (phi) @0> (size=2000,offset=0): f32[500]{0}
 value: <5 big{} @0> (size=2000,offset=0): f32[500]{0}
 value: <6 later @0> (size=1500,offset=500): f32[375]{0}
 value: <7 beside @0> (size=800,offset=2000): bf16[400]{0}

Total bytes used: 4400
 value: <8 stray @0> (size=9000,offset=0): f32[1]{0}
"""


def test_memory_is_told_by_who_takes_it():
    found = plan_buffers.read(ASSIGNED, plan_hlo.Program(""))
    assert (found.arguments, found.outputs, found.temporaries) == (1000, 400, 3000)
    assert found.total == 4400
    # `later` lies where `big` was, and a loop's variable is called by what fills it
    assert [(b.name, b.bytes) for b in found.largest] == [
        ("big", 2000),
        ("beside", 800),
    ]
