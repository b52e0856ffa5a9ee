"""What programs compute and move, counted from traces and from compiled text, against numbers worked out by hand."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from motus_jax.training import absent, flops, program

DEVICES, LAYERS, WIDTH, BATCH = 8, 5, 256, 64
SCANNED = f"""
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from motus_jax.training.program import Program, by_kind
mesh = jax.make_mesh(({DEVICES},), ("fsdp",), axis_types=(AxisType.Auto,))
split, rows = NamedSharding(mesh, P(None, "fsdp", None)), NamedSharding(mesh, P("fsdp", None))
def loss(weights, x):
    def layer(x, w):
        gathered = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ gathered), rows), None
    return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)[0] ** 2)
weights = jax.ShapeDtypeStruct(({LAYERS}, {WIDTH}, {WIDTH}), jnp.float32, sharding=split)
x = jax.ShapeDtypeStruct(({BATCH}, {WIDTH}), jnp.float32, sharding=rows)
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss), out_shardings=split).lower(weights, x).compile()
read = Program(compiled.as_text())
print(json.dumps({{"moved": by_kind(read.collectives()), "traffic": read.memory_traffic()}}))
"""


@pytest.fixture(scope="module")
def scanned():
    """A stack of scanned layers whose weights are split over eight devices, compiled."""
    variables = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCANNED], env=os.environ | variables, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_collectives_of_a_scan_count_as_often_as_it_runs(scanned):
    """Each layer's weights are gathered forward and backward, and its gradient summed over the devices."""
    layer, share = 4 * WIDTH * WIDTH, (DEVICES - 1) / DEVICES
    gathered = scanned["moved"]["all-gather"]
    assert gathered["count"] == 2 * LAYERS
    assert gathered["slice_bytes"] == pytest.approx(2 * LAYERS * layer * share)
    summed = [scanned["moved"].get(name, {"slice_bytes": 0}) for name in ("all-reduce", "reduce-scatter")]
    # A sum of which every device keeps a part; on CPU all of them get all of it first.
    whole, part = (row["slice_bytes"] for row in summed)
    assert whole + 2 * part == pytest.approx(2 * LAYERS * layer * share, rel=0.01)
    assert all(row["network_bytes"] == 0 for row in scanned["moved"].values())


def test_memory_traffic_of_a_scan_grows_with_its_length(scanned):
    """At least the gathered weights written and read, forward and backward; not the whole stack for each layer."""
    layer = 4 * WIDTH * WIDTH
    assert 4 * LAYERS * layer < scanned["traffic"] < 25 * LAYERS * layer


def test_operations_of_a_trace():
    """2 M N K for a product; a gradient has three of them, one forward and two back, and rematerialisation adds one."""
    x, w = jnp.zeros((7, 16)), jnp.zeros((3, 16, 16))

    def loss(w, remat):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0] ** 2)

    once = 2 * 7 * 16 * 16 * 3
    assert flops.count(lambda w: loss(w, False), w) == once
    # The gradient by x of the first layer is not needed, but a scan computes it as that of every layer.
    assert flops.count(jax.grad(lambda w: loss(w, False)), w) == 3 * once
    assert flops.count(jax.grad(lambda w: loss(w, True)), w) == 4 * once


def test_operations_of_convolutions_and_branches():
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 3, 10))

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    once = 2 * (2 * 8 * 8 * 10) * 3 * 3 * 3
    assert flops.count(grouped, x, kernel) == once

    def either(flag):
        return jax.lax.cond(flag, lambda: grouped(x, kernel), lambda: jnp.zeros((2, 8, 8, 10)))

    assert flops.count(either, True) == once


def test_the_compiler_counts_the_same():
    """Where nothing is scanned, XLA's own count is within what is left out here (sums, tanh)."""

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    shapes = jnp.zeros((128, 256)), jnp.zeros((64, 128))
    theirs = jax.jit(jax.grad(loss)).lower(*shapes).compile().cost_analysis()["flops"]
    assert theirs == pytest.approx(flops.count(jax.grad(loss), *shapes), rel=0.03)


LINES = """
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[64,32]) -> f32[8,32] {
  %input = f32[64,32]{1,0:T(8,128)} parameter(0)
  %sum = f32[64,32]{1,0:T(8,128)} all-reduce(%input), replica_groups=[2,8]<=[16], to_apply=%add
  %zero = u32[] constant(0)
  ROOT %mine = f32[8,32]{1,0:T(8,128)} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={8,32}
}

%body (p: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %p = (s32[], f32[64,32]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %x = f32[64,32]{1,0} get-tuple-element(%p), index=1
  %part = f32[8,32]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[8,32]{1,0}, f32[64,32]{1,0}) all-gather-start(%part), replica_groups=mesh['a'=2,'b'=8] {'b'}
  %whole = f32[64,32]{1,0} all-gather-done(%start)
  %far = f32[64,32]{1,0} all-reduce(%whole), replica_groups=mesh['a'=2,'b'=8], device_ids=([2,8]T(0,1)) {'a'}
  ROOT %next = (s32[], f32[64,32]{1,0}) tuple(%n, %far)
}

%until (p.1: (s32[], f32[64,32])) -> pred[] {
  %p.1 = (s32[], f32[64,32]{1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%p.1), index=0
  %trips = s32[]{:T(128)} constant(7), metadata={op_name="while (i < 12)"}
  ROOT %go = pred[] compare(%n.1, %trips), direction=LT
}

ENTRY %main (x0: f32[64,32]) -> f32[64,32] {
  %x0 = f32[64,32]{1,0} parameter(0)
  %n0 = s32[] constant(0)
  %in = (s32[], f32[64,32]{1,0}) tuple(%n0, %x0)
  %loop = (s32[], f32[64,32]{1,0}) while(%in), condition=%until, body=%body
  %step = (f32[64,32], f32[64,32]{1,0:S(1)}, u32[], u32[]) collective-permute-start(%x0), source_target_pairs={{0,1}}
  %stepped = f32[64,32]{1,0:S(1)} collective-permute-done(%step)
  ROOT %out = f32[64,32]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_the_text_of_a_tpu_program():
    """Fused sums of which a part is kept, starts and ends, groups in each notation, groups across two slices of 8."""
    found = {(one.operation, one.times): one for one in program.Program(LINES, 8).collectives()}
    array = 64 * 32 * 4
    scattered, gathered, summed = found["reduce-scatter", 7], found["all-gather", 7], found["all-reduce", 7]
    permuted = found["collective-permute", 1]
    assert (scattered.group, gathered.group, summed.group, permuted.received) == (8, 8, 2, array)
    assert scattered.received == gathered.received == array * 7 / 8 and summed.received == array
    assert summed.crosses and not scattered.crosses and not gathered.crosses and not permuted.crosses
    kinds = program.by_kind(list(found.values()))
    assert kinds["all-reduce"] == {"count": 7, "slice_bytes": 0.0, "network_bytes": 7 * array}
    assert len(found) == 4


TWO_SLICES = """
HloModule step

ENTRY %main (x0: f32[64,32]) -> f32[64,32] {
  %x0 = f32[64,32]{1,0} parameter(0)
  %token = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (f32[64,32]{1,0}, u32[], token[]) send(%x0, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="TARGET",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[64,32]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="TARGET",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %received = (f32[64,32]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %out = f32[64,32]{1,0} get-tuple-element(%received), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(("target", "slices"), [("{1,2}x{0:3}", 2), ("{1:4}x{0:3}", 4)])
def test_what_slices_exchange_goes_over_the_network(target, slices):
    """As libtpu writes it: no collective, but a pair of transfers through the hosts."""
    found = program.by_kind(program.Program(TWO_SLICES.replace("TARGET", target), 4).collectives())
    received = 2 * 64 * 32 * 4 * (slices - 1) / slices
    assert found == {"all-reduce": {"count": 1, "slice_bytes": 0.0, "network_bytes": received}}


STARTED = """
HloModule step, is_scheduled=true

%inner (q: f32[64,32]) -> f32[64,16] {
  %q = f32[64,32]{1,0} parameter(0)
  ROOT %cut = f32[64,16]{1,0} slice(%q), slice={[0:64],[0:16]}
}

ENTRY %main (x: f32[64,32]) -> f32[64,32] {
  %x = f32[64,32]{1,0} parameter(0)
  %near = (f32[64,32]{1,0:S(1)}, f32[64,32]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %at_hand = f32[64,32]{1,0:S(1)} copy-done(%near)
  %whole = (f32[64,32]{1,0}, f32[512,32]{1,0}) all-gather-start(%x), replica_groups=[2,8]<=[16]
  %gathered = f32[512,32]{1,0} all-gather-done(%whole)
  %aside = ((f32[64,32]{1,0}), f32[64,16]{1,0}, s32[]) async-start(%x), calls=%inner
  %done = f32[64,16]{1,0} async-done(%aside)
  %ahead = ((f32[64,32]{1,0}), f32[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:16], [0:32]}
  %quarter = f32[16,32]{1,0:S(1)} slice-done(%ahead)
  ROOT %sum = f32[64,32]{1,0} all-reduce-start(%x), replica_groups=[2,8]<=[16]
}
"""


def test_a_start_reads_its_operand_once():
    """To fast memory: read alone. A gather reads one part and writes eight, a sum reads and writes, half is cut
    off, a quarter goes to fast memory and is all that is read."""
    array = 64 * 32 * 4
    assert program.Program(STARTED, 8).memory_traffic() == (1 + 1 + 8 + 1 + 1 + 2 * 0.5 + 0.25) * array


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm. Used 19.50G of 15.75G "
         "hbm. Exceeded hbm capacity by 3.75G.", (19.5, 15.75)),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (33.88G) exceeds "
         "available HBM (30.75G).", (33.88, 30.75)),
        ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (1.5T) exceeds available HBM (512.00M).",
         (1536, 0.5)),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)  # fmt: skip
def test_a_compiler_that_has_no_room_says_how_much_it_lacks(message, expected):
    found = absent.missing_room(message)
    assert found == (expected and tuple(round(size * 2**30) for size in expected))
