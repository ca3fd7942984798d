"""`bench step`: peers train our network, layer for layer, and ours is trained as runs are."""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import cnn_arch
from cnn_arch import ArchitectureError
from cnn_arch.census import census
from cnn_arch.kernels import onednn
from experiments import network
from experiments.config import ConfigError
from launch import cli, devices
from launch.bench import (
    frame,
    keras_net,
    measure_forward,
    measure_step,
    process,
    step_case,
    step_ours,
    step_runs,
    step_typed,
    step_workers,
    torch_net,
)
from launch.bench.layer_graph import record
from launch.bench.ratios import NotTrusted, Ratio
from launch.bench.step_case import Case, Peak
from launch.bench.step_runs import Runs
from launch.bench.timing import Timing, series

# Architecture, image size and options: every kind of layer that peers can execute is among them.
TINY = [
    ("cifar_resnet:8", 16, {"width": 0.25}),
    ("resnet:18", 64, {"width": 0.05}),
    ("resnet:50", 64, {"width": 0.05, "stride_in": "3x3"}),
    ("vgg:A-LRN", 32, {"width": 0.05}),
    ("vgg:C", 32, {"width": 0.05}),
    ("alexnet:two_gpu", 96, {"width": 0.1}),
    ("alexnet:two_gpu", 96, {"width": 0.1, "activation": "tanh", "overlapping": False}),
    ("nin:cifar10", 32, {"width": 0.2}),
    ("dan_net:100", 32, {}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, _, options in TINY]


def recorded(name, size, options):
    return record(name, image_size=size, classes=10, **options)


def ours(name, size, options):
    """Images, our logits of them, and the values by name: all of them random."""
    net = cnn_arch.create(name, image_size=size, classes=10, rngs=nnx.Rngs(0), **options)
    net.eval()
    random = np.random.default_rng(1)

    def value(path, like):
        if path.endswith(("scale", "var")):
            return random.uniform(0.5, 1.5, like.shape)
        deviation = (
            0.1 if path.endswith(("bias", "mean")) else (2 / np.prod(like.shape[:-1])) ** 0.5
        )
        return random.normal(0, deviation, like.shape)

    state = nnx.state(net)
    values = {
        path: value(path, like).astype(np.float32)
        for path, like in cnn_arch.flat_state(state).items()
    }
    nnx.update(
        net, cnn_arch.unflat_state({k: jax.numpy.asarray(v) for k, v in values.items()}, state)
    )
    images = random.standard_normal((2, size, size, 3), np.float32)
    return images, np.asarray(net(images)), values


def assert_close(logits, expected):
    assert logits.shape == expected.shape
    assert np.ptp(expected, axis=-1).min() > 0.01
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def load_torch(torch, net, graph, values):
    """Copies parameters and running statistics, by our names, into what `torch_net` made."""

    def put(place, value):
        assert tuple(place.shape) == value.shape, (place.shape, value.shape)
        place.copy_(torch.from_numpy(np.array(value)))

    with torch.no_grad():
        for node, layer in zip(graph.nodes, net.layers, strict=True):
            if node.op == "conv":
                put(layer.weight, values[f"{node.name}/kernel"].transpose(3, 2, 0, 1))
                if node.options["bias"]:
                    put(layer.bias, values[f"{node.name}/bias"])
            elif node.op == "fc":
                kernel = values[f"{node.name}/kernel"]
                by_map = kernel.reshape(*node.options["inputs"], -1).transpose(3, 2, 0, 1)
                put(layer[1].weight, by_map.reshape(kernel.shape[::-1]))
                put(layer[1].bias, values[f"{node.name}/bias"])
            elif node.op == "norm":
                ours = ("scale", "bias", "mean", "var")
                theirs = ("weight", "bias", "running_mean", "running_var")
                for our, their in zip(ours, theirs, strict=True):
                    put(getattr(layer, their), values[f"{node.name}/{our}"])


def load_keras(model, graph, values):
    """Copies parameters and running statistics, by our names, into what `keras_net` made."""
    for node in graph.nodes:
        if node.op == "conv":
            groups = node.options["groups"]
            kernels = np.split(values[f"{node.name}/kernel"], groups, axis=-1)
            arrays = [kernels]
            if node.options["bias"]:
                arrays.append(np.split(values[f"{node.name}/bias"], groups))
            for group in range(groups):
                layer = model.get_layer(keras_net._name(node, group if groups > 1 else None))
                layer.set_weights([parts[group] for parts in arrays])
        elif node.op in ("fc", "norm"):
            names = ("kernel", "bias") if node.op == "fc" else ("scale", "bias", "mean", "var")
            weights = [np.asarray(values[f"{node.name}/{name}"]) for name in names]
            model.get_layer(keras_net._name(node)).set_weights(weights)


@pytest.mark.peers
@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=IDS)
def test_torch_has_our_logits(name, size, options):
    torch = pytest.importorskip("torch")
    graph = recorded(name, size, options)
    images, expected, values = ours(name, size, options)
    net = torch_net.network(graph).eval()
    assert sum(p.numel() for p in net.parameters()) == graph.params
    load_torch(torch, net, graph, values)
    with torch.no_grad():
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert_close(logits, expected)


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=IDS)
def test_keras_has_our_logits(name, size, options):
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    pytest.importorskip("keras")
    graph = recorded(name, size, options)
    images, expected, values = ours(name, size, options)
    model = keras_net.network(graph)
    assert sum(np.prod(v.shape) for v in model.trainable_weights) == graph.params
    load_keras(model, graph, values)
    assert_close(np.asarray(model(images, training=False)), expected)


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "keras"])
def test_peer_trains_in_a_process_of_its_own(library):
    pytest.importorskip(library)
    graph = recorded("cifar_resnet:8", 16, {"width": 0.25})
    case = Case("cifar_resnet:8", 16, 2, 10, "float32", 0.25)
    with step_workers.worker(library, case, graph, "cpu") as worker:
        assert worker.description["params"] == graph.params
        burst = worker.ask("burst", 5)
        assert burst.images == 2 * burst.steps >= 10
        assert burst.seconds >= 2
        assert burst.core_seconds > 0
        assert worker.ask("memory") > 0


@pytest.mark.parametrize(("name", "size", "options"), TINY, ids=IDS)
def test_graph_has_every_parameter_at_its_layer(name, size, options):
    graph = recorded(name, size, options)
    net = cnn_arch.abstract(name, image_size=size, classes=10, **options)
    params = cnn_arch.flat_state(nnx.state(net, nnx.Param))
    weighted = {node.name for node in graph.nodes if node.op in ("conv", "fc", "norm")}
    assert {path.rpartition("/")[0] for path in params} == weighted
    assert graph.params == sum(np.prod(p.shape) for p in params.values())
    assert graph.nodes[-1].shape == (10,)
    for k, node in enumerate(graph.nodes):
        assert all(value <= k for value in node.inputs)
    gone = [value for freed in graph.last_used() for value in freed]
    assert sorted(gone) == list(range(len(graph.nodes)))  # all but the logits, each once


def test_branches_meet_again():
    graph = recorded("cifar_resnet:8", 16, {"width": 0.25})
    adds = [node for node in graph.nodes if node.op == "add"]
    assert len(adds) == 3
    assert all(len(set(node.inputs)) == 2 for node in adds)
    shortcuts = [node for node in graph.nodes if node.op == "shortcut"]
    assert [node.options["stride"] for node in shortcuts] == [2, 2]


@pytest.mark.parametrize(
    ("name", "size", "options", "named"),
    [
        ("lenet5:original", 32, {}, "soft-max cross-entropy"),
        ("googlenet:paper", 224, {}, "soft-max cross-entropy"),
        ("alexnet:cifar", 24, {}, "LocallyConnected as local3 is"),
        ("cifar_resnet:8", 16, {"bn_group_size": 2}, "BatchNorm as conv1/norm is"),
    ],
)
def test_network_that_peers_lack_is_refused(name, size, options, named):
    with pytest.raises(ArchitectureError, match=named):
        record(name, image_size=size, classes=10, **options)


def test_ours_is_trained_by_the_step_of_runs():
    case = Case("cifar_resnet:8", 16, 4, 10, "float32", 0.25)
    training = step_ours.training(case, devices.mesh(1))
    config = training.config
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    before = jax.tree.map(np.array, training.state["params"])
    training.advance(1)
    training.finish_steps()
    assert training.window.steps == 1
    after = training.state["params"]
    assert all((before[name] != after[name]).any() for name in before if "kernel" in name)


def test_ours_is_tested_as_its_network_says():
    case = Case("resnet:18", 32, 2, 10, "float32", 0.1, forward=True)
    runner = step_ours.OurForward(case)
    config = step_ours.config_of(case)
    skeleton = network.skeleton(config, 10, 3, train=False)
    params, stats = network.initial(config, 10, 3)
    assert runner.params == sum(x.size for x in params.values())
    expected = jax.nn.log_softmax(skeleton.merge(params, stats)(step_case.made_up(case)[0]))
    np.testing.assert_allclose(runner.program(), expected, atol=1e-4)
    runner.steps(1)


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "keras"])
def test_peers_train_a_network_of_grey_images(library):
    pytest.importorskip(library)
    (case,) = choose("--arch", "lenet5:modern@32x4")
    assert step_case.made_up(case)[0].shape == (4, 32, 32, 1)
    training = step_ours.training(case, devices.mesh(1))
    graph = record(case.arch, image_size=32, classes=10, **case.options)
    values = sum(x.size for x in training.state["params"].values())
    with step_workers.worker(library, case, graph, "cpu") as peer:
        assert peer.description["params"] == graph.params == values


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True])
def test_torch_is_tested_in_eval_mode(dtype, frozen):
    pytest.importorskip("torch")
    case = Case("resnet:18", 64, 2, 10, dtype, 0.05, forward=True)
    graph = recorded("resnet:18", 64, {"width": 0.05})
    runner = torch_net.TorchForward(case, graph, "cpu", 1, frozen=frozen)
    with runner.torch.inference_mode():
        logits = [runner.net(runner.x[:n]).numpy() for n in (1, 2)]
    np.testing.assert_allclose(logits[0][0], logits[1][0], atol=1e-4)  # no statistics of a batch
    runner.steps(1)


def choose(*words, platform="cpu"):
    parser = argparse.ArgumentParser()
    measure_step.add_arguments(parser)
    usual = measure_step.CPU_CASES if platform == "cpu" else measure_step.ELSEWHERE
    return measure_step.cases_of(parser.parse_args(words), usual, platform)


def test_cases_are_as_asked_or_the_platforms():
    names = [str(case) for case in choose()]
    assert names == [
        "cifar_resnet:20@32x128",
        "vgg:A@32x128",
        "vgg:D@32x128",
        "alexnet:two_gpu@224x8",
        "vgg:A@224x8",
        "resnet:18@224x8",
        "resnet:50@224x8",
        "lenet5:modern@32x32",
    ]
    assert [case.classes for case in choose()] == [10, 10, 10, 1000, 1000, 1000, 1000, 10]
    tested = {f"{name}@224x8, forward" for name in measure_forward.CASES}
    assert {*names, *tested} == set(measure_step.CPU_TARGETS)
    assert {*measure_step.BFLOAT16_CASES} <= {*names, *tested}
    assert {(c.size, c.batch, c.dtype) for c in choose(platform="gpu")} == {(224, 256, "bfloat16")}
    (case,) = choose("--arch", "vgg:A", "--size", "64", "--batch", "3", "--dtype", "bfloat16")
    assert case == Case("vgg:A", 64, 3, 10, "bfloat16")


@pytest.mark.parametrize(
    ("words", "error", "named"),
    [
        (["--arch", "vgg:A@224"], ConfigError, "expected NAME@SIZExBATCH, such as vgg:A@224x8"),
        (["--arch", "vgg:A@224x0"], ConfigError, "batch must be at least 1, not 0"),
        (["--arch", "vgg:Z"], ArchitectureError, "vgg:Z"),
    ],
)
def test_bad_architecture_is_one_message(words, error, named):
    with pytest.raises(error, match=named):
        choose(*words)


def burst(rate, free=2.0):
    """Of five batches of eight, or as many as take two seconds."""
    images = 8 * max(5, -(-rate // 4))
    seconds = images / rate
    return Timing(images, seconds, 2 * seconds, 2, free, int(images // 8))


def product(flops, free=2.0):
    return series([Peak(flops, burst(10.0, free))])


def found(starved=(), **rates):
    case = Case("resnet:18", 224, 8, 1000, "bfloat16")
    measurement = measure_step.Measurement(case, flops=2e9, params=5)
    for library, speeds in rates.items():
        free = 1.0 if library in starved else 2.0
        measurement.timings[library] = series([burst(rate, free) for rate in speeds])
        description = {"params": 5, "bytes_accessed": 1e9, "note": "a note", "device": "D"}
        measurement.descriptions[library], measurement.memory[library] = description, 2**20
    measurement.peak = {"ours": product(3e11), "torch": product(4e11)}
    measurement.bandwidth = product(1e10)
    return measurement


def test_ratios_are_of_one_repeat_and_shares_of_the_faster_peak():
    measurement = found(ours=[40.0, 44.0, 36.0], torch=[20.0, 20.0, 24.0])
    measurement.absent["keras"] = "not installed"
    keras, torch = measure_step.items(measurement, "cpu")
    assert torch.measured.each == pytest.approx((2.0, 2.2, 1.5))
    assert (torch.target, torch.aim, torch.met) == (1.05, 1.2, True)
    assert keras.measured == "not installed"
    assert measurement.share_of_peak("ours") == pytest.approx(40 * 2e9 / 4e11)
    assert measurement.share_of_bandwidth() == pytest.approx(1e9 * 40 / 8 / 1e10)


def test_bfloat16_is_compared_with_float32_and_with_peers_in_bfloat16():
    measurement = found(ours=[40.0], torch=[50.0], ours_bfloat16=[80.0], torch_bfloat16=[64.0])
    narrow, torch = measure_step.items(measurement, "cpu")[1:]
    assert (narrow.title, narrow.target) == ("resnet:18@224x8 in bfloat16 over float32", 1.5)
    assert narrow.measured.median == 2.0
    assert torch.title == "resnet:18@224x8 over PyTorch, bfloat16"
    assert (torch.target, torch.measured.median) == (1.0, 1.25)
    assert measurement.share_of_peak("ours_bfloat16") is None  # the products are float32's
    del measurement.timings["ours_bfloat16"]
    measurement.absent["ours_bfloat16"] = "it ended"
    narrow, _, torch = measure_step.items(measurement, "cpu")
    assert narrow.measured == torch.measured == "it ended"


@pytest.mark.parametrize(
    ("arch", "dtype", "platform", "instructions", "has"),
    [
        ("resnet:18", "float32", "cpu", True, True),
        ("resnet:50", "float32", "cpu", True, False),
        ("resnet:18", "bfloat16", "cpu", True, False),
        ("resnet:18", "float32", "gpu", True, False),
        ("resnet:18", "float32", "cpu", False, False),
    ],
)
def test_which_cases_are_measured_in_bfloat16_too(
    arch, dtype, platform, instructions, has, monkeypatch
):
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: instructions)
    case = Case(arch, 224, 8, 1000, dtype)
    assert measure_step.has_bfloat16(case, platform) is has


def test_on_a_gpu_there_are_floors():
    torch, floor = measure_step.items(found(ours=[20_000.0], torch=[20_000.0]), "gpu")
    assert (torch.target, torch.met) == (1.15, False)
    assert (floor.target, floor.aim, floor.measured.median) == (1.0, 1.38, 1.25)
    tested = found(ours=[20_000.0], torch=[20_000.0])
    tested.case = replace(tested.case, forward=True)
    assert len(measure_step.items(tested, "gpu")) == 1  # the floors are of training


def test_peer_with_another_number_of_values_is_refused():
    measurement = found(ours=[1.0], torch=[1.0])
    measurement.descriptions["torch"]["params"] = 6
    with pytest.raises(process.PeerEnded, match="trains 6 values, ours 5"):
        measure_step.check_params(measurement)


def test_process_that_cannot_start_says_why():
    with pytest.raises(process.PeerEnded, match=r"ArchitectureError: .*vgg:Z"):
        step_workers.worker("ours", Case("vgg:Z", 32, 2, 10, "float32"), None, "cpu")


def page_of(measurement, platform, repeats):
    args = argparse.Namespace(repeats=repeats, steps=None)
    return measure_step.report([measurement], None, platform, "a device", args).markdown()


def test_page_has_the_rates_and_what_was_not_measured():
    measurement = found(ours=[40.0, 36.0, 45.0], keras=[20.0, 20.0, 24.0])
    measurement.absent["torch"] = "not installed"
    body = page_of(measurement, "cpu", repeats=3)
    assert "| resnet:18@224x8 | ours | 40.0 | 36.0 | 45.0 | 80 | 20% | 1 |" in body
    assert "| resnet:18@224x8 over PyTorch | 1.05 (1.2) | not installed |  |" in body
    assert "- resnet:18@224x8: Keras by a note" in body


def test_peer_that_was_starved_gives_no_ratio_anywhere():
    """It once had one of two cores, and ours was shown as 4.1 times as fast."""
    measurement = found(ours=[41.0, 41.0], torch=[10.0, 10.0], starved=("torch",))
    _, floor = items = measure_step.items(measurement, "gpu")
    assert isinstance(items[0].measured, NotTrusted)
    assert (items[0].met, items[0].by_core_time) == (None, None)
    assert isinstance(floor.measured, Ratio)  # only ours is judged there
    body = page_of(measurement, "gpu", repeats=2)
    assert "|  | PyTorch | not trusted | 10.0 | 10.0 |  |  | 1 |" in body
    assert "| resnet:18@224x8 over PyTorch | 1.15 | not trusted |  |" in body
    assert "- resnet:18@224x8: PyTorch: not trusted: other programs or the host left it" in body
    assert "4.1" not in body
    document = json.loads(json.dumps([measurement, items], default=frame.as_json))
    torch = document[0]["libraries"]["torch"]
    assert (torch["trusted"], torch["images_per_s"], torch["flops"]) == (False, None, None)
    assert [timing["free"] for timing in torch["timings"]] == [1.0, 1.0]
    assert document[0]["libraries"]["ours"]["images_per_s"] == 41
    assert document[1][0]["measured"] is None
    measurement = found(ours=[41.0, 41.0], torch=[10.0, 10.0], starved=("ours",))
    assert [item.met for item in measure_step.items(measurement, "gpu")] == [None, None]


def test_peak_that_was_starved_gives_no_share():
    measurement = found(ours=[40.0], torch=[40.0])
    measurement.peak["torch"] = product(2e11, free=1.0)  # it may be the faster one by right
    assert measurement.share_of_peak("ours") is None
    assert (
        "large product: JAX 300 GFLOP/s, PyTorch not trusted"
        in measure_step._notes([measurement])[0]
    )
    measurement.bandwidth = product(1e10, free=1.0)
    assert measurement.share_of_bandwidth() is None


def forms(**seconds):
    """Form -> the series of these seconds a step, on a GPU."""
    return {
        form: series([Timing(3000, 3000 * s, 1.0, 1, 2.0, 100, waits=True) for s in times])
        for form, times in seconds.items()
    }


def test_seeds_at_once_are_judged_on_a_gpu_alone():
    seconds = forms(one=(1e-3, 1.2e-3), together=(2e-3, 2.4e-3), deterministic=(1.5e-3, 1.8e-3))
    runs = Runs(5, 30, seconds, {}, cpu=False)
    duration, five = runs.items()
    assert (duration.target, duration.met) == (1, True)
    assert duration.measured.each == pytest.approx((64 / 90, 76.8 / 90))
    assert (five.target, five.met) == (3, True)
    assert five.measured.each == pytest.approx((2.0, 2.0))
    assert [item.name for item in replace(runs, seeds=4).items()] == [duration.name]
    assert replace(runs, cpu=True).items() == []
    assert runs.notes[2].endswith("1.50 [1.50, 1.50] of one's time")
    wild = replace(runs, timings=seconds | forms(one=(1e-3, 1.4e-3)))
    assert [str(item.measured) for item in wild.items()] == ["not trusted"] * 2
    assert wild.notes[0].endswith("30 steps a dispatch: not trusted")
    assert wild.notes[-1].endswith("one seed: not trusted: its repeats are 1.40 times apart")
    assert json.loads(json.dumps(wild, default=frame.as_json))["timings"]["one"]["trusted"] is False


def test_form_that_fails_is_told_and_loses_no_other():
    seconds = forms(one=(1e-3,), deterministic=(2e-3,))
    runs = Runs(5, 30, seconds, {"together": "no memory"}, cpu=False)
    duration, five = runs.items()
    assert (duration.met, five.met, five.measured) == (True, None, "no memory")
    assert runs.notes[1].endswith("5 seeds in one program: not measured: no memory")
    nothing = Runs(5, 0, {}, dict.fromkeys(step_runs.TITLES, "no GPU"), cpu=False)
    assert [item.met for item in nothing.items()] == [None, None]
    assert nothing.notes[0].endswith("not measured: no GPU")


@pytest.mark.skipif(sys.platform != "linux", reason="holds a process still and reads /proc")
def test_command_as_typed_is_measured_by_its_log_and_held_in_between(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    tiny = ["--set", "model.width=0.0625", "--set", "model.arch=cifar_resnet:8"]
    with step_typed.Typed(256, tiny) as command:
        first = command.burst(5)
        steps = command._steps()
        time.sleep(0.5)
        assert command._steps() <= steps + 1  # one that was being written
        second = command.burst(5)
    for timing in (first, second):
        assert timing.images == 128 * timing.steps >= 5 * 128
        assert timing.seconds >= 2
        assert timing.core_seconds > 0
    assert not list(tmp_path.iterdir())
    assert command._process.poll() is not None


def test_command_that_ends_says_why():
    with pytest.raises(process.PeerEnded, match=r"made no step: .*width"):
        step_typed.Typed(256, ["--set", "model.width=0"])


def test_command_as_typed_is_compared_with_its_step():
    measurement = found(ours=[40.0], torch=[20.0], typed=[39.0])
    del measurement.descriptions["typed"], measurement.memory["typed"]
    _, typed = measure_step.items(measurement, "cpu")
    assert (typed.target, typed.measured.median) == (0.97, pytest.approx(39 / 40))
    assert typed.title == "resnet:18@224x8 as typed over its bare step"
    assert "| ours, as typed | 39.0 | 39.0 | 39.0 | 78 | 20% |  |" in page_of(
        measurement, "cpu", repeats=1
    )


@pytest.mark.slow
def test_trainings_of_runs_are_measured_in_turns():
    turns = []
    tiny = {"model.width": "0.0625", "train.batch_size": "4", "model.bn_group_size": "2"}
    runs = step_runs.measure(2, 1, turns.append, images=40, **tiny)
    assert len(turns) >= 1 + len(step_runs.TITLES)
    assert (runs.seeds, runs.steps_a_dispatch, runs.cpu, runs.absent) == (2, 1, True, {})
    for timings in runs.timings.values():
        assert all(t.images == t.steps >= 5 and t.seconds >= 2 for t in timings.bursts)


class StandIn:
    """A worker of made-up figures, in this process."""

    asked: list[tuple[str, int]]
    starved: tuple[str, ...] = ()
    doubts: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, library, case, graph, platform):
        if library == "keras":
            raise process.PeerEnded("no Keras today")
        self.name, self.batch = library, case.batch
        self.description = {
            "params": 9,
            "device": "cpu",
            "note": "",
            "doubt": self.doubts.get(library, ""),
            "bytes_accessed": None,
        }

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def ask(self, question, steps=0):
        if question == "memory":
            return 2**20
        if question in ("product", "copy"):
            return Peak(1e12, Timing(5e12, 5.0, 10.0, 2, 2.0, 5))
        self.asked.append((self.name, steps))
        seconds = steps * (1.0 if self.name == "ours" else 2.0)
        free = 1.0 if self.name in self.starved else 2.0
        return Timing(steps * self.batch, seconds, free * seconds, 2, free, steps)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(StandIn, "asked", [], raising=False)
    monkeypatch.setattr(measure_step, "worker", StandIn)
    monkeypatch.setattr(measure_step, "installed", lambda library: True)
    monkeypatch.setattr(measure_step, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(devices, "probe", lambda slot: devices.Probe("cpu", 1, 1e9))


@pytest.fixture
def run(stand_ins, capsys):
    """What `bench step` prints of a tiny net, by the stand-ins: text, or JSON."""

    def run(*words):
        tiny = ["--arch", "cifar_resnet:8@16x2", "--width", "0.25", "--no-compiled"]
        assert cli.main(["bench", "step", *tiny, *words]) == 0
        output = capsys.readouterr().out
        return json.loads(output) if "--json" in words else output

    return run


def test_a_forward_pass_is_measured_beside_pytorch_as_it_is_and_frozen(stand_ins, capsys):
    tiny = ["--arch", "cifar_resnet:8@16x2", "--width", "0.25", "--repeats", "1", "--json"]
    assert cli.main(["bench", "forward", *tiny]) == 0
    answer = json.loads(capsys.readouterr().out)
    (case,) = answer["cases"]
    assert list(case["libraries"]) == ["ours", "torch", "torch_frozen"]
    options = {"image_size": 16, "classes": 10, "width": 0.25}
    assert case["flops_an_image"] == 2 * census("cifar_resnet:8", **options).macs
    titles = [item["title"] for item in answer["items"]]
    name = "cifar_resnet:8@16x2 width 0.25, forward"
    assert titles == [f"{name} over PyTorch", f"{name} over PyTorch, frozen"]


def test_runs_that_cannot_be_measured_lose_nothing_else(run, monkeypatch):
    def fails(seeds, repeats, on_turn):
        raise process.PeerEnded(f"no {seeds} today")

    monkeypatch.setattr(step_runs, "measure", fails)
    words = ["--repeats", "1", "--peer", "none", "--seeds", "3"]
    answer = run(*words, "--json")
    assert answer["runs"]["absent"]["one"] == "no 3 today"
    assert answer["cases"][0]["libraries"]["ours"]["images_per_s"] == 2
    assert "not measured: no 3 today" in run(*words)


def test_a_peer_that_ends_after_its_bursts_loses_no_timing(run, monkeypatch):
    def ask(self, question, steps=0):
        if self.name == "torch" and question != "burst":
            raise process.PeerEnded("torch ended")
        return answer(self, question, steps)

    answer = StandIn.ask
    monkeypatch.setattr(StandIn, "ask", ask)
    (case,) = run("--repeats", "1", "--json")["cases"]
    torch = case["libraries"]["torch"]
    assert (torch["images_per_s"], torch["memory_bytes"]) == (1.0, None)
    assert case["peak_flops"].keys() == {"ours"}


def test_libraries_take_turns(run):
    answer = run("--repeats", "2", "--json")
    assert StandIn.asked == [("ours", 5), ("torch", 5), ("torch", 5), ("ours", 5)]
    torch, keras = sorted(answer["items"], key=lambda item: item["measured"] is None)
    assert torch["each"] == [2.0, 2.0]
    assert keras["not_measured"] == "no Keras today"


def test_starved_peer_is_measured_again_and_shown_as_not_trusted(run, monkeypatch, tmp_path):
    monkeypatch.setattr(StandIn, "starved", ("torch",))
    words, file = ["--repeats", "2", "--peer", "torch"], tmp_path / "page.md"
    answer = run(*words, "--json", "--page", str(file))
    assert [name for name, _ in StandIn.asked].count("torch") == 12  # three times, in four rounds
    (item,) = answer["items"]
    assert (item["measured"], item["met"]) == (None, None)
    assert "left it 1.00 of 2 cores" in item["not_trusted"]
    assert "over PyTorch | 0.8 (1) | not trusted |  |" in file.read_text()
    output = run(*words)
    assert "PyTorch: not trusted: other programs or the host left it 1.00 of 2 cores" in output
    assert "yes" not in output


def test_peer_whose_faster_step_is_not_known_gives_no_ratio(run, monkeypatch):
    monkeypatch.setattr(StandIn, "doubts", {"torch": "which of its steps is faster is not known"})
    (item,) = run("--repeats", "1", "--peer", "torch", "--json")["items"]
    assert (item["measured"], item["met"]) == (None, None)
    assert item["not_trusted"] == "PyTorch: which of its steps is faster is not known"


def test_peer_that_is_not_installed_is_named(run, monkeypatch):
    monkeypatch.setattr(measure_step, "installed", lambda library: False)
    output = run("--repeats", "1", "--compiled")
    peers = {"PyTorch": "peers", "torch.compile": "peers", "Keras": "jpeg,peers"}
    for title, extras in peers.items():
        how = f"pip install -e '.[{extras}]' in the checkout"
        assert f"{title} not measured: not installed: {how}" in output


@pytest.mark.slow
def test_json_and_page_hold_what_was_measured(capsys, tmp_path):
    words = "--arch cifar_resnet:8@16x2 --width 0.25 --peer none --repeats 2 --json"
    page = tmp_path / "page.md"
    assert cli.main(["bench", "step", *words.split(), "--page", str(page)]) == 0
    answer = json.loads(capsys.readouterr().out)
    (case,) = answer["cases"]
    ours = case["libraries"]["ours"]
    assert case["case"]["classes"] == 10
    expected = recorded("cifar_resnet:8", 16, {"width": 0.25}).params
    assert ours["params"] == case["params"] == expected
    for timing in ours["timings"]:
        assert timing["images"] == 2 * timing["steps"] >= 10
        assert timing["seconds"] >= 2
        assert timing["core_seconds"] > 0
    assert ours["trusted"] == (ours["images_per_s"] is not None)
    assert answer["items"] == []
    assert "| cifar_resnet:8@16x2 width 0.25 | ours |" in page.read_text()
