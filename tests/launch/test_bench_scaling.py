"""`bench scaling`: what collectives a program has, and the closed form of the estimate."""

import json
from dataclasses import replace

import pytest

from launch import cli
from launch.bench import measure_scaling as scaling
from launch.bench import timing
from launch.bench.frame import Report

# A step of a net with a kernel of 3x3x1x8, a BatchNorm of 8 maps and a bias of 10, on two devices.
HLO = """
ENTRY %main {
  %x = f32[8,4]{1,0} parameter(0)
  %all-reduce = f32[1,1,1,8]{3,2,1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, \
to_apply=%sum, metadata={op_name="jit(dispatch)/jvp()/sub" stack_frame_id=1}
  %all-reduce.1 = (f32[8]{0}, f32[8]{0}) all-reduce(%a, %b), channel_id=2, to_apply=%sum, \
metadata={op_name="jit(dispatch)/(jvp()/reduce_sum:jvp()/reduce_sum)"}
  %all-reduce-start.2 = (f32[3,3,1,8]{3,2,1,0}, f32[8]{0}, f32[8]{0}, bf16[10]{0}, f32[]) \
all-reduce-start(%c, %d, %e, %f, %g), metadata={op_name="jit(dispatch)/(transpose(jvp())/conv:\
transpose(jvp())/reduce_sum:transpose(jvp())/mul:transpose(jvp())/reduce_sum:jvp()/reduce_sum)"}
  %all-reduce-done.2 = (f32[3,3,1,8]{3,2,1,0}) all-reduce-done(%all-reduce-start.2)
  %all-gather-start.3 = (f32[2,4]{1,0}, f32[4,4]{1,0}) all-gather-start(%h), dimensions={0}
  %all-gather-done.3 = f32[4,4]{1,0} all-gather-done(%all-gather-start.3)
  %collective-permute-start = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%i)
  ROOT %tuple = (f32[8,4]{1,0}) tuple(%x)
}
"""


def test_collectives_of_a_program_are_read_with_their_results():
    found = [*scaling.collectives(HLO)]
    assert [(kind, sum(array.bytes for array in arrays)) for kind, arrays in found] == [
        ("all-reduce", 32),
        ("all-reduce", 64),
        ("all-reduce", 288 + 32 + 32 + 20 + 4),
        ("all-gather", 64),
        ("collective-permute", 20),
    ]
    names = [[array.name for array in arrays] for _, arrays in found]
    assert names[1] == ["jit(dispatch)/jvp()/reduce_sum"] * 2
    assert names[0] == ["jit(dispatch)/jvp()/sub"]
    assert names[2][2] == "jit(dispatch)/transpose(jvp())/mul"


def test_arrays_are_gradients_once_each_then_statistics_and_all_else_is_told():
    parameters = {"kernel": (3, 3, 1, 8), "scale": (8,), "norm/bias": (8,), "bias": (10,)}
    found = scaling.sort_out([*scaling.collectives(HLO)], parameters, [8], 2)
    assert (found["gradients"], found["parameters"]) == (288 + 32 + 32 + 20, 4 * 98)
    assert (found["statistics"], found["statistics_expected"]) == (64, 64)
    assert found["numbers"] == 4
    assert found["operations"] == {"all-reduce": 3, "all-gather": 1, "collective-permute": 1}
    assert [(one["kind"], one["bytes"]) for one in found["other"]] == [
        ("all-reduce", 32),
        ("all-gather", 64),
        ("collective-permute", 20),
    ]


def test_kernel_that_is_exchanged_tap_by_tap_is_a_gradient():
    line = (
        '  %a.{} = f32[{}]{{0}} all-reduce(%x), metadata={{op_name="jit(f)/transpose(jvp())/{}"}}'
    )
    ops = [("2,4", "dot_general")] * 9 + [("3,3,2,4", "conv"), ("2,4", "dot_general"), ("8", "mul")]
    hlo = "\n".join(line.format(i, *op) for i, op in enumerate(ops))
    shapes = {"small": (3, 3, 2, 4), "large": (3, 3, 2, 4)}
    found = scaling.sort_out([*scaling.collectives(hlo)], shapes, [], 2)
    assert found["gradients"] == found["parameters"] == 2 * 4 * 72
    assert [one["bytes"] for one in found["other"]] == [32, 32]
    # A parameter as large as a tap, which is exchanged after them.
    shapes |= {"bias": (8,)}
    found = scaling.sort_out([*scaling.collectives(hlo)], shapes, [], 2)
    assert found["gradients"] == found["parameters"]
    assert [one["bytes"] for one in found["other"]] == [32]


def test_a_sum_over_two_devices_is_found_and_one_device_has_none(fresh_python):
    code = """
import jax, jax.numpy as jnp
from launch import devices
from launch.bench import measure_scaling
from jax.sharding import NamedSharding, PartitionSpec as P
for count in (1, 2):
    mesh = devices.mesh(count)
    x = jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("data")))
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, P()))
    text = total.lower(x).compile().as_text()
    found = measure_scaling.collectives(text)
    print([(kind, *(one.bytes for one in arrays)) for kind, arrays in found])
"""
    done = fresh_python("-c", code, devices=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[('all-reduce', 12)]"]


def test_ring_sends_twice_all_but_a_share_and_waits_for_each_message():
    link = {"bandwidth": 1e9, "latency": 1e-5}
    assert scaling.all_reduce(1e9, 1, **link) == 0
    assert scaling.all_reduce(1e9, 2, **link) == pytest.approx(1 + 2e-5)
    assert scaling.all_reduce(1e9, 8, **link) == pytest.approx(1.75 + 14e-5)


def test_overlap_hides_what_the_backward_pass_covers():
    assert scaling.efficiency(3.0, 0.0) == (1.0, 1.0)
    assert scaling.efficiency(3.0, 1.0) == pytest.approx((0.75, 1.0))
    assert scaling.efficiency(3.0, 5.0) == pytest.approx((3 / 8, 3 / 6))


def test_estimate_exchanges_each_parameter_in_four_bytes():
    lines = scaling.estimate({"resnet:50": 320.0}, 32, 1e9, 0.0)
    assert [line["devices"] for line in lines] == [8, 64, 512]
    assert {line["bytes"] for line in lines} == {4 * 25_557_032}  # as torchvision counts them
    assert lines[0]["step_ms"] == pytest.approx(100)
    assert lines[0]["exchange_ms"] == pytest.approx(1.75 * 4 * 25_557_032 / 1e6)


def test_planning_is_timed_a_row(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    found = scaling.sweep(4)
    assert list(found.seconds) == ["plan", "folders", "look", "plan_again"]
    assert min(found.seconds.values()) > 0
    assert found.timing.steps == 8  # twice, as four are too few
    assert sum(found.seconds.values()) * 8 <= found.timing.seconds


def test_planning_that_was_starved_is_not_trusted():
    starved = timing.Timing(1000, 5.0, 2.5, 1, 0.5, 1000)
    seconds = dict.fromkeys(("plan", "folders", "look", "plan_again"), 1e-3)
    assumed = {"images_per_s": {}, "per_device_batch": 32}
    assumed |= {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-6}
    for free, told in ((0.5, "not trusted: other programs"), (2.0, "a row: plan 1.00, folders")):
        one = scaling.Sweep(seconds, replace(starved, free=free, core_seconds=5.0))
        series = timing.series([one])
        parts = scaling.report([], [], assumed, series, 1000, 1.0)
        shown = Report("CPU", {}, parts).markdown()
        assert f"A sweep of 1,000 rows, {'milliseconds ' * (free > 1)}{told}" in shown


@pytest.mark.slow
def test_step_of_a_small_net_reduces_each_gradient_once_and_gathers_nothing(capsys):
    words = "--net cifar_resnet:8@16 --devices 1,8 --rows 0 --width 0.25 --json"
    assert cli.main(["bench", "scaling", *words.split()]) == 0
    one, whole, grouped = json.loads(capsys.readouterr().out)["steps"]
    assert one["operations"] == {}
    for step in (whole, grouped):
        assert step["gradients"] == step["parameters"] > 0
        assert set(step["operations"]) == {"all-reduce"}
    assert grouped["operations"]["all-reduce"] == 1
    assert grouped["other"] == []
    assert grouped["statistics"] == grouped["statistics_expected"] > 0
