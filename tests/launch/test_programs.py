"""What is read from compiled programs, and the programs of chips that are not here."""

import functools
import json
import re
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn_arch.census import census
from experiments import network
from launch import cli
from launch.bench import measure_programs as programs
from launch.bench.chips import Absent, parse
from launch.bench.frame import BenchError
from launch.bench.hlo import Program, shapes

HLO = """\
HloModule jit_step

%gathering (param_0.1: u8[600,3072], param_1.1: s32[16,1]) -> u8[16,3072] {
  %param_0.1 = u8[600,3072]{1,0} parameter(0)
  %param_1.1 = s32[16,1]{1,0} parameter(1)
  ROOT %gather.1 = u8[16,3072]{1,0} gather(%param_0.1, %param_1.1), offset_dims={1}
}

%body (carried: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %carried = (s32[], bf16[8,128]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%carried), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%carried), index=1
  %summed = bf16[8,128]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], bf16[8,128]{1,0}) tuple(%n, %summed)
}

ENTRY %main (rows: u8[600,3072], at: s32[16,1], near: f32[10,130]) -> u8[16,3072] {
  %rows = u8[600,3072]{1,0} parameter(0)
  %at = s32[16,1]{1,0} parameter(1)
  %near = f32[10,130]{1,0:T(8,128)} parameter(2)
  %away = f32[10,130]{1,0:T(8,128)S(1)} copy(%near)
  %start = (f32[4,4]{1,0}, f32[4,4]{1,0}) all-reduce-start(%near), replica_groups={{0,1}}
  %loop = (s32[], bf16[8,128]{1,0}) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = u8[16,3072]{1,0} fusion(%rows, %at), kind=kLoop, calls=%gathering
}
"""


def test_a_layout_is_rounded_up_to_its_tiles_and_other_memory_is_not_main():
    (tiled,) = shapes("f32[10,130]{1,0:T(8,128)}")
    assert (tiled.bytes, tiled.main) == (4 * 16 * 256, True)
    (near,) = shapes("bf16[10,130]{1,0:T(8,128)(2,1)S(1)}")
    assert (near.dtype, near.dims, near.main) == ("bf16", (10, 130), False)


def test_traffic_counts_what_is_read_loops_and_only_the_rows_that_are_gathered():
    program = Program(HLO)
    by_op = {w.instruction.op: w.bytes for w in program.work}
    assert by_op["fusion"] == 2 * 16 * 3072 + 4 * 16
    assert by_op["copy"] == 4 * 16 * 256  # read from main memory, kept elsewhere
    assert by_op["all-reduce"] == 3 * 2 * 2 * 8 * 128


def test_exchanges_are_counted_with_their_size_and_whether_they_run_beside_others():
    found = {e.overlapped: e for e in Program(HLO).exchanges}
    assert (found[False].times, found[False].bytes) == (3, 2 * 8 * 128)
    assert found[False].dtypes == {"bf16"}
    assert found[True].times == 1


@pytest.mark.parametrize(
    ("size", "stride", "padding", "spread"),
    [(3, 1, 1, 1), (7, 2, 3, 1), (5, 4, 0, 1), (3, 1, 2, 2)],
)
def test_operations_of_a_convolution_are_those_inside_the_map(size, stride, padding, spread):
    def convolve(x, kernel):
        sides = [(padding, padding)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            sides,
            lhs_dilation=(spread,) * 2,
            dimension_numbers=numbers,
        )

    x, kernel = jnp.ones((2, 11, 9, 3)), jnp.ones((size, size, 3, 4))
    meetings = float(convolve(x, kernel).sum())  # of ones: one for each that counts
    text = jax.jit(convolve).lower(x, kernel).compiler_ir(dialect="hlo").as_hlo_text()
    assert Program(_named(text)).flops == 2 * meetings


def test_operations_of_a_product_of_matrices():
    def product(a, b):
        return lax.dot_general(a, b, (((0,), (1,)), ((), ())))

    arrays = jnp.ones((5, 7)), jnp.ones((3, 5))
    text = jax.jit(product).lower(*arrays).compiler_ir(dialect="hlo").as_hlo_text()
    assert Program(_named(text)).flops == 2 * 5 * 7 * 3


def _named(text):
    """HLO of before the passes, with the signs that compiled text has."""
    lines = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith("HloModule"):
            mark, _, name = line[:-2].strip().rpartition(" ")
            line = f"{mark + ' ' if mark else ''}%{name} () -> f32[] {{"
        elif " = " in line:
            name, _, rest = line.strip().partition(" = ")
            kind, _, operands = rest.partition("(")
            inside, _, after = operands.partition(")")
            if not kind.endswith(("parameter", "constant")):
                inside = ", ".join(f"%{one.strip()}" for one in inside.split(","))
            line = f"  {name} = {kind}({inside}){after}"
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["v5e", "h200:8", "v5e:2y4", "0*v5e:2x4", "v5e:2x4,v7:2x2"])
def test_chips_that_are_not_known_are_refused(name):
    wrong = re.escape(name.split(",")[-1])
    with pytest.raises(BenchError, match=f"--chips {wrong}: expected KIND:SHAPE"):
        parse(name)


@pytest.mark.skipif("libtpu" in {d.name for d in metadata.distributions()}, reason="libtpu is here")
def test_without_libtpu_one_line_says_what_to_install(capsys):
    assert cli.main(["bench", "programs", "--chips", "v5e:2x4"]) == 2
    error = capsys.readouterr().err
    assert error.strip().count("\n") == 0
    assert "pip install libtpu" in error


@pytest.mark.parametrize("arch", [*programs.NETS, "lenet5", "nin:cifar10", "resnet:18", "vgg:A"])
def test_the_program_of_a_study_is_lowered_for_a_tpu_without_one(arch):
    """From shapes alone, with what is a TPU's: no barrier of a CPU's, no stack of phases."""
    from jax.sharding import AxisType, Mesh

    import cnn_arch
    from experiments.training import program

    name = cnn_arch.full_name(arch)
    config = programs.config_of(name, "float32", 128)
    if "width" in config.model:
        config.model.width = 1 / 16
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    traced = program.trace(config, programs.data_of(config), mesh)
    assert "optimization_barrier" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert ("optimization_barrier" in on_cpu) == (arch != "lenet5")  # which has no ReLU


# ------------------------------------------------------------------- with libtpu installed

CHIP, EIGHT = "v5e:1x1", "v5e:2x4"


@functools.cache
def compiled(arch, chips=CHIP, dtype="bfloat16", batch=None, plain=False, kind="step"):
    batch = batch or programs.config_of(arch, dtype, None).train.batch_size
    return programs.compiled(programs.Case(arch, chips, dtype, batch, plain, kind))


@pytest.mark.programs
@pytest.mark.parametrize(
    ("arch", "chips", "dtype"),
    [
        ("resnet:50", CHIP, "bfloat16"),
        ("vgg:D", EIGHT, "float32"),
        ("alexnet:two_gpu", CHIP, "float32"),
        ("googlenet:paper", CHIP, "float32"),
    ],
)
def test_a_step_moves_no_more_than_the_plain_nets(arch, chips, dtype):
    ours, plain = (compiled(arch, chips, dtype, plain=plain) for plain in (False, True))
    assert ours.program.bytes <= programs.MOST_BYTES * plain.program.bytes
    assert ours.memory <= 1.15 * plain.memory
    assert ours.program.flops == pytest.approx(plain.program.flops, rel=0.001)


@pytest.mark.programs
@pytest.mark.parametrize(
    ("arch", "chips", "dtype", "most"),
    [("resnet:50", "v5e:8x8", "bfloat16", 101), ("cifar_resnet:20", EIGHT, "float32", 40)],
)
def test_a_normalisation_that_spans_chips_exchanges_once_each_way(arch, chips, dtype, most):
    exchanges = compiled(arch, chips, dtype).program.exchanges
    assert {e.kind for e in exchanges} == {"all-reduce"}
    norms = sum(row.kind == "norm" for row in census(arch).layers)
    total = sum(e.times for e in exchanges)
    assert norms < total <= min(most, 2 * norms + 2)  # those side by side exchange together


@pytest.mark.programs
@pytest.mark.parametrize("arch", ["vgg:D", "resnet:50", "alexnet:two_gpu", "googlenet:paper"])
def test_chips_exchange_the_gradients_and_next_to_nothing_else(arch):
    sent = sum(e.times * e.bytes for e in compiled(arch, EIGHT).program.exchanges)
    skeleton = network.skeleton(
        programs.config_of(arch, "bfloat16", None), classes=1000, channels=3, train=True
    )
    size = 2 * sum(leaf.size for leaf in jax.tree.leaves(skeleton.params))  # bfloat16
    assert size <= sent <= 1.15 * size


@pytest.mark.programs
@pytest.mark.parametrize("chips", ["2*v5e:2x4", "v5e:16x16"])
def test_slices_and_a_pod_exchange_the_gradients_once(chips):
    """Between slices too: of what a slice's chips have summed, each exchanges its part."""
    few, many = (compiled("alexnet:two_gpu", where, batch=2048) for where in (EIGHT, chips))
    sent = [sum(e.times * e.bytes for e in one.program.exchanges) for one in (few, many)]
    assert sent[0] * 0.98 <= sent[1] <= sent[0] * 1.2
    kinds = {e.kind for e in many.program.exchanges}
    slices = {"reduce-scatter", "all-reduce", "all-gather"}
    assert kinds == (slices if "*" in chips else {"all-reduce"})
    share = 8 / Absent(chips).count
    assert many.program.flops == pytest.approx(few.program.flops * share, rel=0.02)


@pytest.mark.programs
@pytest.mark.parametrize("chips", [CHIP, EIGHT])
def test_a_set_that_lies_on_the_device_is_not_copied(chips):
    one = compiled("cifar_resnet:20", chips)
    images = 60_000 * 3072
    assert one.program.largest_copy() < images / 10
    assert images < one.memory < 2 * images


@pytest.mark.programs
@pytest.mark.parametrize(
    "arch",
    [
        "resnet:18",
        "resnet:50",
        "resnet:152",
        "vgg:A",
        "vgg:D",
        "alexnet:two_gpu",
        "googlenet:paper",
        "nin:cifar10",
        "cifar_resnet:20",
        "cifar_resnet:110",
    ],
)
def test_networks_in_bfloat16_multiply_in_it_and_keep_the_shape_of_their_maps(arch):
    one = compiled(arch)
    views = 2 if "cifar" in arch else 0  # images are cropped in float32
    float32 = sum(n for kinds, n in one.program.multiplied.items() if "f32" in kinds.split(" x "))
    assert float32 <= views
    made = [array for work in one.program.work for array in shapes(work.instruction.type)]
    assert max(len(array.dims) for array in made) <= 5
    macs = census(arch).macs
    assert one.program.flops <= 2 * 3 * macs * one.case.batch * 1.02
    assert arch == "resnet:152" or one.memory < one.chip.memory


@pytest.mark.programs
@pytest.mark.parametrize("kind", ["center", "dense"])
@pytest.mark.parametrize("arch", ["resnet:50", "vgg:D"])
def test_tests_in_bfloat16_multiply_in_it_and_do_no_more_than_the_network(arch, kind):
    images = 32
    one = compiled(arch, batch=images, kind=kind)
    assert set(one.program.multiplied) == {"bf16 x bf16"}
    # A whole image of 256 x 341 has at most 1.75 times the pixels of a crop.
    macs = census(arch).macs * images * (1.85 if kind == "dense" else 1)
    assert one.program.flops <= 2 * macs * 1.02
    assert not one.program.exchanges


@pytest.mark.programs
def test_the_command_prints_both_nets_and_their_ratio(capsys):
    options = ["--arch", "alexnet", "--chips", EIGHT, "--batch", "64", "--json"]
    assert cli.main(["bench", "programs", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    ours, plain = found["programs"]
    assert (ours["plain"], plain["plain"]) == (False, True)
    ratio = ours["hbm_bytes"] / plain["hbm_bytes"]
    assert found["items"][0]["measured"] == pytest.approx(ratio)
