"""What is read from compiled programs, and the programs of chips that are not here."""

import functools
import json
import re
from importlib import metadata
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh

import cnn_arch
from cnn_arch.census import census
from experiments import network
from experiments.training import program
from launch import cli
from launch.bench import measure_programs as programs
from launch.bench.hlo import Exchange, Program, Work, shapes
from launch.chips import ChipSet, parse
from launch.devices import DeviceError

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

%piece (whole: u8[600,3072]) -> u8[4,3072] {
  %whole = u8[600,3072]{1,0} parameter(0)
  ROOT %some = u8[4,3072]{1,0:S(1)} slice(%whole), slice={[0:4], [0:3072]}
}

%offloaded.1 (x.1: f32[10,130], t.1: token[]) -> f32[10,130] {
  %x.1 = f32[10,130]{1,0} parameter(0)
  %t.1 = token[] parameter(1)
  ROOT %summed.1 = f32[10,130]{1,0} all-reduce(%x.1), channel_id=2, to_apply=%add
}

%offloaded (x.2: f32[10,130], t.2: token[]) -> f32[10,130] {
  %x.2 = f32[10,130]{1,0} parameter(0)
  %t.2 = token[] parameter(1)
  ROOT %called = f32[10,130]{1,0} call(%x.2, %t.2), to_apply=%offloaded.1
}

%opening (x.3: f32[10,130]) -> (f32[10,130], u32[]) {
  %x.3 = f32[10,130]{1,0} parameter(0)
  %summed.3 = f32[10,130]{1,0} all-reduce(%x.3), channel_id=7, to_apply=%add
  ROOT %begun = (f32[10,130]{1,0}, u32[]{:S(2)}) custom-call(%summed.3), \
custom_call_target="AsyncCollectiveStart"
}

%within (x.4: f32[10,130], y.4: f32[8]) -> (f32[8], f32[10,130]) {
  %x.4 = f32[10,130]{1,0} parameter(0)
  %y.4 = f32[8]{0} parameter(1)
  %doubled = f32[8]{0} add(%y.4, %y.4)
  %summed.4 = f32[10,130]{1,0} all-reduce(%x.4), channel_id=7, to_apply=%add
  ROOT %both = (f32[8]{0}, f32[10,130]{1,0}, f32[10,130]{1,0}) tuple(%doubled, %summed.4, %x.4)
}

%closing (x.5: f32[10,130]) -> f32[10,130] {
  %x.5 = f32[10,130]{1,0} parameter(0)
  %summed.5 = f32[10,130]{1,0} all-reduce(%x.5), channel_id=7, to_apply=%add
  ROOT %over = f32[10,130]{1,0} custom-call(%summed.5), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (rows: u8[600,3072], at: s32[16,1], near: f32[10,130]) -> u8[16,3072] {
  %rows = u8[600,3072]{1,0} parameter(0)
  %eight = f32[8]{0} parameter(3)
  %at = s32[16,1]{1,0} parameter(1)
  %near = f32[10,130]{1,0:T(8,128)} parameter(2)
  %away = f32[10,130]{1,0:T(8,128)S(1)} copy(%near)
  %start = f32[10,130]{1,0} all-reduce-start(%near), replica_groups={{0,1}}
  %loop = (s32[], bf16[8,128]{1,0}) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %ended = f32[10,130]{1,0} all-reduce-done(%start)
  %pieces = ((u8[600,3072]{1,0}), u8[4,3072]{1,0:S(1)}, s32[]{:S(2)}) async-start(%rows), \
calls=%piece
  %arrived = u8[4,3072]{1,0:S(1)} async-done(%pieces)
  %apart = ((f32[10,130]{1,0:T(8,128)}, token[]), f32[10,130]{1,0}) async-start(%near, %token), \
async_execution_thread="sparsecore", calls=%offloaded
  %beside = f32[10,130]{1,0} async-done(%apart)
  %first = (f32[10,130]{1,0}, u32[]{:S(2)}) fusion(%near), kind=kCustom, calls=%opening
  %middle = (f32[8]{0}, f32[10,130]{1,0}) fusion(%first, %eight), kind=kOutput, calls=%within
  %last = f32[10,130]{1,0} fusion(%middle), kind=kCustom, calls=%closing
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
    by_name = {w.instruction.name: w.bytes for w in program.work}
    assert by_name["out"] == 2 * 16 * 3072 + 4 * 16
    assert by_name["away"] == 4 * 16 * 256  # read from main memory, kept elsewhere
    assert by_name["summed"] == 3 * 2 * 2 * 8 * 128
    assert by_name["pieces"] == 4 * 3072  # a slice, kept elsewhere
    # An exchange that runs in several operations is read and written once.
    assert [by_name[name] for name in ("first", "middle", "last")] == [2 * 4 * 1300, 2 * 4 * 8, 0]


def test_exchanges_are_counted_with_their_size_and_where_they_begin_and_end():
    program = Program(HLO)
    exchanges = {e.name: e for e in program.exchanges}
    assert [*exchanges] == ["start", "apart", "channel_id=7", "summed"]
    assert (exchanges["summed"].times, exchanges["summed"].bytes) == (3, 2 * 8 * 128)
    assert exchanges["summed"].dtypes == {"bf16"}
    assert {exchanges[name].times for name in ("start", "apart", "channel_id=7")} == {1}
    assert {exchanges[name].bytes for name in ("start", "apart", "channel_id=7")} == {4 * 1300}
    ends = {w.waits: w.instruction.name for w in program.work if w.waits}
    assert ends == {"summed": "summed", "start": "ended", "apart": "beside", "channel_id=7": "last"}


@pytest.mark.parametrize(
    ("begun", "bytes"),
    [
        ("(f32[2,4]{1,0}, f32[4,4]{1,0}) all-gather-start(%h)", 64),
        ("((f32[2]{0}, f32[3]{0}), (f32[4]{0}, f32[6]{0})) all-gather-start(%h, %i)", 40),
        ("(f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%i)", 20),
        ("(f32[5]{0}, bf16[4]{0}) all-reduce-start(%i, %j)", 28),
    ],
)
def test_an_exchange_has_the_size_of_its_results_not_of_its_operands(begun, bytes):
    text = f"ENTRY %main (h: f32[]) -> f32[] {{\n  ROOT %x = {begun}, channel_id=1\n}}\n"
    (exchange,) = Program(text).exchanges
    assert exchange.bytes == bytes


def test_what_devices_send_of_an_exchange_follows_from_its_kind():
    def sent(kind, size):
        return Exchange("x", kind, 1, size, frozenset()).sent(4)

    assert sent("all-reduce", 8) == sent("reduce-scatter", 2) + sent("all-gather", 8)
    assert sent("all-gather", 8) == 6


def test_an_exchange_is_hidden_by_the_operations_until_its_end():
    def compiled_step(last):
        work = [
            Work(None, 1, 0, 1e12, True, Exchange("x", "all-reduce", 1, 1e9, frozenset()), ""),
            Work(None, 1, 0, 1e12, True),
            Work(None, 1, 0, 0, False, None, "x"),
            Work(None, 1, 0, last, True),
        ]
        step = programs.Compiled(programs.Case("net", "v5e:2x4", "bfloat16", 8), None, 0)
        step.__dict__["program"] = SimpleNamespace(
            work=work, exchanges=[w.begins for w in work if w.begins]
        )
        return step

    chip = programs.ChipSet("v5e:2x4").chip
    exchange, part = 2 * 7 / 8 * 1e9 / chip.link, 1e12 / chip.peak
    step = compiled_step(last=3e12)
    assert step.seconds == pytest.approx(max(exchange, 2 * part) + 3 * part)
    assert step.hidden == pytest.approx(min(1, 2 * part / exchange))
    assert step.working == pytest.approx(5 * part)


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


@pytest.mark.parametrize("which", ["Forward", "BackwardInput", "BackwardFilter"])
def test_operations_of_a_gpus_convolutions_and_their_gradients(which):
    """cuDNN's gradients are labelled as the convolution that they are of."""
    maps = {"x": "bf16[8,14,14,32]", "k": "bf16[64,3,3,32]", "y": "bf16[8,7,7,64]"}
    left, right, result = {
        "Forward": "xky",
        "BackwardInput": "ykx",
        "BackwardFilter": "xyk",
    }[which]
    text = f"""\
ENTRY %main (a: f32[], b: f32[]) -> f32[] {{
  %a = {maps[left]}{{3,2,1,0}} parameter(0)
  %b = {maps[right]}{{3,2,1,0}} parameter(1)
  ROOT %c = ({maps[result]}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), \
window={{size=3x3 stride=2x2 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$conv{which}"
}}
"""
    program = Program(text)
    meetings = (7 * 3 - 1) ** 2  # the first window of each row and column reaches over the edge
    assert program.flops == 2 * 8 * 64 * 32 * meetings
    sizes = [8 * 14 * 14 * 32, 64 * 9 * 32, 8 * 7 * 7 * 64]
    assert program.bytes == 2 * sum(sizes)


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
                inside = ", ".join(f"%{operand.strip()}" for operand in inside.split(","))
            line = f"  {name} = {kind}({inside}){after}"
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:8", "h100:2x4", "b9:8", "v5e:2y4", "0*v5e:2x4", "v5e:2x4,v7:2x2"]
)
def test_chips_that_are_not_known_are_refused(name):
    wrong = re.escape(name.split(",")[-1])
    with pytest.raises(DeviceError, match=f"--chips {wrong}: expected KIND:SHAPE"):
        parse(name)


@pytest.mark.skipif("libtpu" in {d.name for d in metadata.distributions()}, reason="libtpu is here")
def test_without_libtpu_one_line_says_what_to_install(capsys):
    assert cli.main(["bench", "programs", "--chips", "v5e:2x4"]) == 2
    error = capsys.readouterr().err
    assert error.strip().count("\n") == 0
    assert "pip install libtpu" in error


def test_chips_of_both_kinds_are_counted():
    counts = {name: ChipSet(name).count for name in ("v5e:2x4", "2*v4:2x2x1", "h100:8", "3*a100:4")}
    assert counts == {"v5e:2x4": 8, "2*v4:2x2x1": 16, "h100:8": 8, "3*a100:4": 12}
    assert ChipSet("h100:8").chip.platform == "cuda"


@pytest.mark.parametrize("group", [0, 2])
def test_a_small_nets_step_exchanges_gradients_once_and_spanning_statistics(group, fresh_python):
    """On eight devices of the CPU, with groups of a device's two images or of the whole batch."""
    code = f"""
import json, sys
from experiments.training import program
from launch import devices
from launch.bench import measure_programs
from launch.bench.hlo import Program
more = {{"model.bn_group_size": {group}, "model.width": 0.25}}
config = measure_programs.config_of("cifar_resnet:8", "float32", 16, more)
traced = program.trace(config, measure_programs.data_of(config), devices.mesh(8))
text = traced.lower().compile({{"xla_backend_optimization_level": 0}}).as_text()
found = Program(text).exchanges
print(json.dumps([(e.kind, e.times, e.bytes, sorted(e.dtypes)) for e in found]))
"""
    process = fresh_python("-c", code, devices=8)
    assert process.returncode == 0, process.stderr
    exchanges = json.loads(process.stdout.splitlines()[-1])
    assert {(kind, *dtypes) for kind, _, _, dtypes in exchanges} == {("all-reduce", "f32")}
    layers = census("cifar_resnet:8", width=0.25).layers
    channels = [row.output_shape[-1] for row in layers if row.kind == "norm"]
    gradients = 4 * sum(row.params for row in layers)
    sent = sum(times * size for _, times, size, _ in exchanges)
    # Of each map two sums; the metrics are two numbers. Backward sums are gradients of scale and
    # bias; where groups span devices they are needed at once, and XLA exchanges some of them twice.
    least = gradients + 4 * 2 * sum(channels)
    if group:
        assert len(exchanges) == 1
        assert least <= sent <= least + 4 * 4
    else:
        assert len(channels) < len(exchanges) <= 3 * len(channels) + 1
        assert least <= sent <= least + 4 * 3 * sum(channels)


def traced(arch, width=None):
    """A study's training step, from shapes alone."""
    config = programs.config_of(arch, "float32", 128)
    if width and "width" in config.model:
        config.model.width = width
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    return program.trace(config, programs.data_of(config), mesh)


@pytest.mark.parametrize("arch", [*programs.NETS, "lenet5", "nin:cifar10", "resnet:18", "vgg:A"])
def test_a_step_is_lowered_for_accelerators_without_the_barriers_of_a_cpus(arch):
    steps = traced(cnn_arch.full_name(arch), width=1 / 16)
    for platform in ("tpu", "cuda"):
        text = steps.lower(lowering_platforms=(platform,)).as_text()
        assert "optimization_barrier" not in text
    on_cpu = steps.lower(lowering_platforms=("cpu",)).as_text()
    assert ("optimization_barrier" in on_cpu) == (arch != "lenet5")  # which has no ReLU


@pytest.mark.programs
@pytest.mark.parametrize("arch", cnn_arch.variants())
def test_every_networks_step_is_lowered_for_accelerators(arch):
    steps = traced(arch)
    for platform in ("tpu", "cuda"):
        assert "stablehlo" in steps.lower(lowering_platforms=(platform,)).as_text()


# ------------------------------------------------------------------- with libtpu installed

CHIP, EIGHT, GPUS = "v5e:1x1", "v5e:2x4", "h100:8"


@functools.cache
def compiled(arch, chips=CHIP, dtype="bfloat16", batch=None, plain=False, kind="step", changes=()):
    batch = batch or programs.config_of(arch, dtype, None).train.batch_size
    return programs.compiled(programs.Case(arch, chips, dtype, batch, plain, kind, changes))


@pytest.mark.programs
@pytest.mark.parametrize(
    ("arch", "chips", "dtype"),
    [
        ("resnet:50", CHIP, "bfloat16"),
        ("vgg:D", EIGHT, "float32"),
        ("alexnet:two_gpu", CHIP, "float32"),
        ("googlenet:paper", CHIP, "float32"),
        ("resnet:50", "h100:1", "bfloat16"),
        ("vgg:D", "h100:1", "bfloat16"),
        ("alexnet:two_gpu", "h100:1", "float32"),
        ("googlenet:paper", "h100:1", "bfloat16"),
    ],
)
def test_a_step_moves_no_more_than_the_plain_nets(arch, chips, dtype):
    ours, plain = (compiled(arch, chips, dtype, plain=plain) for plain in (False, True))
    assert ours.program.bytes <= programs.MOST_BYTES * plain.program.bytes
    assert ours.memory <= 1.2 * plain.memory  # exchanges that are under way need some
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
@pytest.mark.parametrize(
    ("arch", "chips", "least"),
    [
        ("vgg:D", GPUS, 0.9),
        ("resnet:50", GPUS, 0.9),
        ("vgg:D", "v6e:2x4", 0.9),
        ("resnet:50", "v6e:2x4", 0.8),
        ("vgg:D", "v5p:2x2x2", 0.5),
        ("resnet:50", "v5p:2x2x2", 0.7),
        ("vgg:D", EIGHT, 0.35),
        ("resnet:50", EIGHT, 0.5),
        ("resnet:50", "v4:2x2x1", 0.5),
    ],
)
def test_gradients_are_exchanged_while_others_are_computed(arch, chips, least):
    step = compiled(arch, chips)
    assert step.hidden >= least
    assert step.seconds < step.working + step.exchanging


@pytest.mark.programs
@pytest.mark.parametrize("chips", [EIGHT, GPUS])
@pytest.mark.parametrize("arch", ["vgg:A", "resnet:18"])
def test_gradients_are_exchanged_in_the_dtype_of_the_config(arch, chips):
    rounded = compiled(arch, chips).program
    exact = compiled(arch, chips, changes=(("train.gradient_dtype", "float32"),)).program

    def sent(program, dtype):
        return sum(e.bytes for e in program.exchanges if dtype in e.dtypes)

    assert sent(exact, "bf16") == 0
    assert sent(exact, "f32") == pytest.approx(2 * sent(rounded, "bf16"), rel=0.02)
    assert exact.flops == pytest.approx(rounded.flops, rel=1e-3)


@pytest.mark.programs
@pytest.mark.parametrize("arch", ["vgg:D", "resnet:50"])
def test_a_gpus_program_holds_one_state_and_multiplies_in_its_dtype(arch):
    """The new state takes the old one's memory, so parameters and momentum are there once."""
    step = compiled(arch, "h100:1")
    skeleton = network.skeleton(
        programs.config_of(arch, "bfloat16", None), classes=1000, channels=3, train=True
    )
    params, stats = (len(jax.tree.leaves(tree)) for tree in (skeleton.params, skeleton.stats))
    assert step.program.aliased == 2 * params + stats
    assert {*step.program.multiplied} == {"bf16 x bf16"}
    assert step.program.flops == pytest.approx(compiled(arch, CHIP).program.flops, rel=1e-4)


@pytest.mark.programs
@pytest.mark.parametrize("chips", [CHIP, "h100:1"])
def test_micro_batches_follow_one_another_and_take_the_memory_of_one(chips):
    at_once, in_parts, part = (
        compiled("resnet:50", chips, batch=batch, changes=changes).memory
        for batch, changes in ((256, ()), (256, (("train.accumulate", 4),)), (64, ()))
    )
    assert part < in_parts < 1.2 * part < 0.5 * at_once


@pytest.mark.programs
@pytest.mark.parametrize("chips", ["2*v5e:2x4", "v5e:16x16"])
def test_slices_and_a_pod_exchange_the_gradients_once(chips):
    """Between slices too: of what a slice's chips have summed, each exchanges its part."""
    few, many = (compiled("alexnet:two_gpu", where, batch=2048) for where in (EIGHT, chips))
    sent = [sum(e.times * e.bytes for e in step.program.exchanges) for step in (few, many)]
    assert sent[0] * 0.98 <= sent[1] <= sent[0] * 1.2
    kinds = {e.kind for e in many.program.exchanges}
    slices = {"reduce-scatter", "all-reduce", "all-gather"}
    assert kinds == (slices if "*" in chips else {"all-reduce"})
    share = 8 / ChipSet(chips).count
    assert many.program.flops == pytest.approx(few.program.flops * share, rel=0.02)


@pytest.mark.programs
@pytest.mark.parametrize("chips", [CHIP, EIGHT])
def test_a_set_that_lies_on_the_device_is_not_copied(chips):
    step = compiled("cifar_resnet:20", chips)
    images = 60_000 * 3072
    assert step.program.largest_copy() < images / 10
    assert images < step.memory < 2 * images


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
    step = compiled(arch)
    views = 2 if "cifar" in arch else 0  # images are cropped in float32
    float32 = sum(n for kinds, n in step.program.multiplied.items() if "f32" in kinds.split(" x "))
    assert float32 <= views
    arrays = [array for work in step.program.work for array in shapes(work.instruction.type)]
    assert max(len(array.dims) for array in arrays) <= 5
    macs = census(arch).macs
    assert step.program.flops <= 2 * 3 * macs * step.case.batch * 1.02
    assert arch == "resnet:152" or step.memory < step.chip.memory


@pytest.mark.programs
@pytest.mark.parametrize("kind", ["center", "dense"])
@pytest.mark.parametrize("arch", ["resnet:50", "vgg:D"])
def test_tests_in_bfloat16_multiply_in_it_and_do_no_more_than_the_network(arch, kind):
    images = 32
    forward = compiled(arch, batch=images, kind=kind)
    assert set(forward.program.multiplied) == {"bf16 x bf16"}
    # A whole image of 256 x 341 has at most 1.75 times the pixels of a crop.
    macs = census(arch).macs * images * (1.85 if kind == "dense" else 1)
    assert forward.program.flops <= 2 * macs * 1.02
    assert not forward.program.exchanges


@pytest.mark.programs
def test_the_command_prints_both_nets_and_their_ratio(capsys):
    options = ["--arch", "alexnet", "--chips", EIGHT, "--batch", "64", "--json"]
    assert cli.main(["bench", "programs", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    ours, plain = document["programs"]
    assert (ours["plain"], plain["plain"]) == (False, True)
    ratio = ours["hbm_bytes"] / plain["hbm_bytes"]
    assert document["items"][0]["measured"] == pytest.approx(ratio)
