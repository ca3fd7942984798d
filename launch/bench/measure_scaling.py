"""`cnn-depth bench scaling`: what devices exchange in a step, and what that costs.

The compiled step of each net is read, as text, in a process of its own that has eight devices: a
collective is an operation there that takes data over a link.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from launch import devices
from launch.bench import frame, process, timing
from launch.bench.frame import BenchError, Report
from launch.bench.hlo import EXCHANGES, INSTRUCTION, shapes
from launch.bench.ratios import NOT_TRUSTED, Table
from launch.bench.timing import Series, Timing, Watch, in_turns
from launch.verbs.options import add_options

NETS = ("cifar_resnet:20@16", "cifar_resnet:56@16", "vgg:A@32", "resnet:18@32", "resnet:50@32")
HELP = """\
Show what a training step on many devices exchanges: the collectives in the compiled step of several
nets on 1, 2, 4 and 8 devices of the host, beside the one reduction of the gradients and the
statistics of BatchNorm that there should be. On paper, from stated assumptions: the efficiency on
8, 64 and 512 devices. And the seconds that planning a sweep of many rows takes."""
EXAMPLE = """
cnn-depth bench scaling
cnn-depth bench scaling --net cifar_resnet:20@16 --devices 1,8 --rows 0
cnn-depth bench scaling --images-per-s vgg:D=4600 --bandwidth-gbytes 50 --latency-us 5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options = {
        "--net NAME@SIZE...": "architecture and image size; may be repeated (default: "
        f"{', '.join(NETS)})",
        "--width WIDTH": "of these nets, as a share of the paper's",
    }
    add_options(parser, options, width=0.125)
    parser.add_argument(
        "--devices", default="1,2,4,8", metavar="N,...", help="numbers of devices, up to 8"
    )
    group = parser.add_argument_group("what the estimate assumes")
    assumed = {
        "--images-per-s NAME=RATE...": "training images a second of one device; may be repeated "
        "(default: vgg:D=4600 and resnet:50=2500)",
        "--per-device-batch N": "images (default: 32)",
        "--bandwidth-gbytes GB/S": "of the slowest link of the ring, each way (default: 25)",
        "--latency-us US": "of a message (default: 10)",
    }
    add_options(group, assumed, per_device_batch=32, bandwidth_gbytes=25.0, latency_us=10.0)
    rows = "of the sweep that is planned (default: 1000; 0: none)"
    add_options(parser, {"--rows N": rows}, rows=1000)


VERSIONS = ("jax", "jaxlib", "flax")
MOST_DEVICES = 8
BATCH = 16  # images a step
GROUP = 2  # of a BatchNorm: what a device has of a batch, where there are most
ESTIMATED = (8, 64, 512)
RATES = {"vgg:D": 4600.0, "resnet:50": 2500.0}  # images/s of one device; no more than assumptions
BACKWARD = 2 / 3  # of a step: the backward pass has two of its three products
WORKER_SECONDS = 1200

_NAME = re.compile(r'op_name="([^"]*)"')


# ------------------------------------------------------------------------ reading a program


@dataclass(frozen=True)
class Array:
    """What a collective of a kind exchanges: where it comes from, and its size."""

    kind: str
    name: str
    elements: int
    bytes: int


def collectives(hlo: str) -> Iterator[tuple[str, list[Array]]]:
    """Kind and arrays of each in the text of a compiled program; what XLA combined is one."""
    for line in hlo.splitlines():
        found = INSTRUCTION.match(line)
        kind = found[3].removesuffix("-start") if found else ""
        if found is None or kind not in EXCHANGES:
            continue
        arrays = shapes(found[2])
        if found[3].endswith("-start") and kind != "all-reduce":
            # What goes in, what comes out and, of some, two counters.
            arrays = [array for array in arrays if (array.dtype, prod(array.dims)) != ("u32", 1)]
            arrays = arrays[len(arrays) // 2 :]
        where = _NAME.search(line)
        name = where[1] if where else ""
        # XLA calls what it combined `path/(one:another)`.
        start, _, combined = name.partition("/(")
        parts = combined[:-1].split(":") if combined.endswith(")") else []
        apart = len(parts) == len(arrays)
        names = [f"{start}/{part}" for part in parts] if apart else [name] * len(arrays)
        told = zip(names, arrays, strict=True)
        yield kind, [Array(kind, name, prod(each.dims), int(each.bytes)) for name, each in told]


def sort_out(
    found: Sequence[tuple[str, Sequence[Array]]],
    parameters: Mapping[str, tuple[int, ...]],
    channels: Sequence[int],
    devices: int,
) -> dict[str, Any]:
    """What the collectives of one step move, in bytes, beside what they should.

    gradients: arrays as large as parameters, each parameter counted once, or as the taps of a
    kernel (of small maps, whose outer taps may see nothing and are not exchanged then); statistics:
    further sums as large as a BatchNorm's; numbers: the metrics; other: all else. Arrays are known
    by their sizes, those of the backward pass first (a BatchNorm's scale is as large as its mean),
    and taps last of these.

    Expected of statistics are the sums of each map and of its squares where a group lies on several
    devices, whose two sums backward are the gradients of scale and bias; else the mean and variance
    that are kept.

    parameters: name -> shape; channels: of each BatchNorm, float32.
    """
    arrays = [array for _, each in found for array in each]
    left = Counter(map(prod, parameters.values()))
    whole = Counter(array.elements for array in arrays if array.kind == "all-reduce")
    taps = _taps(parameters.values(), whole)
    arrays.sort(
        key=lambda array: (
            "transpose(" not in array.name,
            array.name.endswith("dot_general") and taps[array.elements] > 0,
        )
    )
    sorted_out: dict[str, list[Array]] = defaultdict(list)
    for array in arrays:
        sorted_out[_what(array, left, taps, set(channels))].append(array)
    moved = Counter({what: sum(a.bytes for a in each) for what, each in sorted_out.items()})
    return {
        "operations": Counter(kind for kind, _ in found),
        "gradients": moved["gradients"],
        "parameters": 4 * sum(map(prod, parameters.values())),
        "statistics": moved["statistics"],
        "statistics_expected": 0 if devices == 1 else 4 * 2 * sum(channels),
        "numbers": moved["numbers"],
        "statistics_where": _by_name(sorted_out["statistics"]),
        "other": _by_name(sorted_out["other"]),
    }


def _what(array: Array, left: Counter[int], taps: Counter[int], channels: set[int]) -> str:
    """What an array is; takes it off the parameters or taps that are left, by their sizes."""
    if array.kind != "all-reduce":
        return "other"
    if array.elements == 1:
        return "numbers"
    if left[array.elements]:
        left[array.elements] -= 1
        return "gradients"
    if taps[array.elements] and array.name.endswith("dot_general"):
        taps[array.elements] -= 1
        return "gradients"
    sums = array.elements in channels and array.name.endswith("reduce_sum")
    return "statistics" if sums else "other"


def _by_name(arrays: Sequence[Array]) -> list[dict[str, Any]]:
    """Kind and name of these arrays, the commonest first, with how many and their bytes."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for array in arrays:
        found[array.kind, array.name].append(array.bytes)
    return [
        {"kind": kind, "name": name, "count": len(each), "bytes": sum(each)}
        for (kind, name), each in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _taps(shapes: Iterable[tuple[int, ...]], whole: Counter[int]) -> Counter[int]:
    """How many taps of each size the kernels have that are not exchanged whole."""
    seen, taps = whole.copy(), Counter[int]()
    for shape in shapes:
        if seen[prod(shape)]:
            seen[prod(shape)] -= 1
        elif len(shape) == 4:
            taps[shape[2] * shape[3]] += shape[0] * shape[1]
    return taps


# ------------------------------------------------------------------------ the process


def compiled(net: str, size: int, width: float, count: int, group: int) -> dict[str, Any]:
    """The exchange of a training step of a net on `count` devices, with BatchNorm in groups."""
    from experiments import config as configs
    from launch.bench.step_ours import with_inputs

    config = configs.base()
    config.model = configs.model(net)
    config.data.update(name="digits", image_size=size, holdout=0.0)
    config.train.update(batch_size=BATCH, steps=1, steps_per_dispatch=1)
    options = {"width": width, "bn_group_size": group}
    config.model.update({key: value for key, value in options.items() if key in config.model})
    training, arguments = with_inputs(config, devices.mesh(count))
    text = training.dispatch.lower(*arguments).compile().as_text()
    stats = training.state["stats"]
    channels = [array.size for name, array in stats.items() if name.endswith("mean")]
    parameters = {name: array.shape for name, array in training.state["params"].items()}
    return sort_out([*collectives(text)], parameters, channels, count)


def tell_programs(told: str) -> None:
    """Prints `compiled` for each program of a task, as JSON, a line each: with BatchNorm over the
    batch and, where there is one over several devices, in groups. For a process of its own."""
    net, size, width, counts = json.loads(told)
    for count in counts:
        for group in (0, GROUP):
            found = compiled(net, size, width, count, group)
            print(json.dumps({"devices": count, "group": group, **found}), flush=True)
            if not found["statistics_expected"]:
                break


def programs(net: str, size: int, width: float, counts: Sequence[int]) -> list[dict[str, Any]]:
    """`compiled` for each number of devices and both groups, in a process with eight devices.

    Raises PeerEnded with that process's last words.
    """
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(MOST_DEVICES),
        "CNN_DEPTH_CONVOLUTIONS": "xla",  # as with several devices anyway
        # Which collectives there are is settled before the code is optimised.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    code = "import sys; from launch.bench import measure_scaling as s; s.tell_programs(sys.argv[1])"
    failed = f"{net} at {size} pixels can't be compiled"
    task = json.dumps([net, size, width, counts])
    found = process.run(failed, code, task, variables=variables, timeout=WORKER_SECONDS)
    return [{"net": net, "size": size, **one} for one in found]


# ------------------------------------------------------------------------ on paper


def all_reduce(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring's all-reduce of `size` bytes (Patarasuk and Yuan 2009): each of n devices
    sends 2 (n - 1) messages of size / n.

    bandwidth: bytes a second of the slowest link; latency: seconds until a message begins to
    arrive.
    """
    n = devices
    return 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * latency


def efficiency(step: float, exchange: float) -> tuple[float, float]:
    """Images/s a device over those of a device alone: (nothing, all of it) overlapped with the
    backward pass. step, exchange: seconds."""
    forward, backward = (1 - BACKWARD) * step, BACKWARD * step
    return step / (step + exchange), step / (forward + max(backward, exchange))


def estimate(rates: Mapping[str, float], batch: int, *link: float) -> list[dict[str, Any]]:
    """A line for each net and number of devices; gradients are float32, `batch` a device's;
    link: its bandwidth and latency.

    Raises ArchitectureError for a net that is not there.
    """
    from cnn_arch.census import census

    lines = []
    for net, rate in rates.items():
        size, step = 4 * census(net).training_params, batch / rate
        for n in ESTIMATED:
            exchange = all_reduce(size, n, *link)
            alone, overlapped = efficiency(step, exchange)
            lines.append(
                {
                    "net": net,
                    "devices": n,
                    "bytes": size,
                    "step_ms": 1e3 * step,
                    "exchange_ms": 1e3 * exchange,
                    "without_overlap": alone,
                    "with_overlap": overlapped,
                }
            )
    return lines


# ------------------------------------------------------------------------ a sweep's rows

STUDY = """\
from experiments.studies import residual_depth

DEPTHS = (8, 14, 20)

def get_config(arg=None):
    return residual_depth.get_config()

def sweep():
    for i in range({rows}):
        arch = f"cifar_resnet:{{DEPTHS[i % 3]}}"
        yield f"row-{{i}}", {{"model.arch": arch, "schedule.lr": 1e-4 * (1 + i)}}
"""


@dataclass(frozen=True)
class Sweep:
    """Seconds a row of a generated sweep: to `plan` it, to make the `folders` of its runs, to
    `look` at them, and to `plan_again`. timing: of all of it; an image is a row."""

    seconds: dict[str, float]
    timing: Timing


def sweep(rows: int) -> Sweep:
    """The whole of a sweep's planning, as often as a timing needs, after a small one."""
    total = Counter[str]()

    def lap() -> int:
        total.update(swept(rows))
        return rows

    swept(timing.LEAST_STEPS)
    found = timing.laps(lap, rows, Watch(cores=1))
    return Sweep({what: each / found.images for what, each in total.items()}, found)


def swept(rows: int) -> dict[str, float]:
    """Seconds of each part of one sweep's planning."""
    from launch.planning import graph

    clock = []
    with tempfile.TemporaryDirectory() as folder:
        study, runs = Path(folder) / "rows.py", Path(folder) / "runs"
        study.write_text(STUDY.format(rows=rows), encoding="utf-8")
        clock.append(time.perf_counter())
        planned = graph.plan([str(study)], {}, None, runs)
        clock.append(time.perf_counter())
        jobs = [job for row in planned for job in row.jobs.values()]
        for job in jobs:
            job.create()
        clock.append(time.perf_counter())
        if any(job.done for job in jobs):
            raise AssertionError("a run that was only made is not done")
        clock.append(time.perf_counter())
        graph.plan([str(study)], {}, None, runs)
        clock.append(time.perf_counter())
    parts = ("plan", "folders", "look", "plan_again")
    return {part: end - start for part, (start, end) in zip(parts, pairwise(clock), strict=True)}


# ------------------------------------------------------------------------ the bench


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """The programs of each net, the estimate, and a sweep's planning."""
    nets, counts = [_net(text) for text in args.net or NETS], _counts(args.devices)
    rates = RATES | dict(_rate(text) for text in args.images_per_s)
    for name in ("per_device_batch", "bandwidth_gbytes", "width"):
        if getattr(args, name) <= 0:
            raise BenchError(f"--{name.replace('_', '-')} must be more than 0")
    frame.at_least(args, rows=0, latency_us=0)
    devices.use_cpu_only()
    bandwidth, latency = 1e9 * args.bandwidth_gbytes, 1e-6 * args.latency_us
    lines = estimate(rates, args.per_device_batch, bandwidth, latency)
    found: list[dict[str, Any]] = []
    planned = None
    with frame.turns_bar(console, len(nets) + bool(args.rows)) as on_turn:
        for net, size in nets:
            on_turn(f"{net} at {size} pixels")
            found += programs(net, size, args.width, counts)
        if args.rows:
            title = f"a sweep of {args.rows} rows"
            subject = {title: functools.partial(sweep, args.rows)}
            planned = in_turns(subject, 1, on_turn)[0][title]
    assumed = {
        "images_per_s": rates,
        "per_device_batch": args.per_device_batch,
        "bandwidth_bytes_per_s": bandwidth,
        "latency_s": latency,
        "backward_share": BACKWARD,
    }
    told = {
        "batch": BATCH,
        "width": args.width,
        "steps": found,
        "estimate": {"assumed": assumed, "lines": lines},
        "sweep": planned and {"seconds_a_row": planned.bursts[-1].seconds, **planned.to_json()},
        "rows": args.rows,
    }
    parts = report(found, lines, assumed, planned, args.rows, args.width)
    return Report("CPU", told, parts, in_markdown=True)


def _net(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("@")
    if not name or not size.isdecimal():
        raise BenchError(f"--net {text}: expected NAME@SIZE, such as resnet:18@32")
    return name, int(size)


def _counts(text: str) -> list[int]:
    counts = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if not {*counts} <= {1, 2, 4, MOST_DEVICES}:
        raise BenchError(f"--devices {text}: expected some of 1, 2, 4 and 8")
    return counts


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise BenchError(f"--images-per-s {text}: expected NAME=RATE, such as vgg:D=1000")
    return name, value


# Heading -> its cells.
EXCHANGED = {
    "net": "{net}",
    "devices": "{devices}",
    "BN group": "{group}",
    "operations": "{operations}",
    "gradients / parameters": "{gradients:,} / {parameters:,}",
    "statistics / expected": "{statistics:,} / {statistics_expected:,}",
    "other": "{other}",
}
ESTIMATE = {
    "net": "{net}",
    "devices": "{devices}",
    "MB exchanged": "{megabytes:,.1f}",
    "step ms": "{step_ms:.1f}",
    "exchange ms": "{exchange_ms:.1f}",
    "efficiency, no overlap": "{without_overlap:.0%}",
    "all overlapped": "{with_overlap:.0%}",
}


def report(
    found: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    assumed: Mapping[str, Any],
    planned: Series[Sweep] | None,
    rows: int,
    width: float,
) -> list[frame.Part]:
    """What was found, as Markdown that reads well as it is."""
    exchanged = []
    for one in found:
        count, size = (sum(each[key] for each in one["other"]) for key in ("count", "bytes"))
        shown = {
            "group": one["group"] or "batch",
            "operations": ", ".join(f"{n} {kind}" for kind, n in one["operations"].items())
            or "none",
            "other": f"{count}: {size:,} bytes" if count else "none",
        }
        exchanged.append([cell.format_map({**one, **shown}) for cell in EXCHANGED.values()])
    estimated = [
        [cell.format(**line, megabytes=line["bytes"] / 1e6) for cell in ESTIMATE.values()]
        for line in lines
    ]
    sentence = ""
    if planned is not None and planned.doubt:
        sentence = f"A sweep of {rows:,} rows, {NOT_TRUSTED}: {planned.doubt}."
    elif planned is not None:
        seconds = planned.bursts[-1].seconds
        each = ", ".join(f"{k.replace('_', ' ')} {1e3 * s:.2f}" for k, s in seconds.items())
        total = rows * (seconds["plan"] + seconds["folders"] + seconds["look"])
        sentence = (
            f"A sweep of {rows:,} rows, milliseconds a row: {each}; {total:.1f} s in all before "
            "the first run."
        )
    rates = ", ".join(f"{net} {rate:g}" for net, rate in assumed["images_per_s"].items())
    return frame.both(
        f"Collectives of a compiled training step ({BATCH} images, nets at width {width:g}). "
        "Target: the gradients once, BatchNorm's statistics, nothing else.",
        Table([*EXCHANGED], exchanged, "lrrlrrl"),
        "An ESTIMATE on paper, not a measurement. Assumed: images/s of one device as stated "
        f"({rates}); {assumed['per_device_batch']} images a device; a ring's all-reduce of float32 "
        f"gradients over links of {assumed['bandwidth_bytes_per_s'] / 1e9:g} GB/s and "
        f"{assumed['latency_s'] * 1e6:g} us; the backward pass is two thirds of a step; "
        "BatchNorm's groups on one device each; input keeps up.",
        Table([*ESTIMATE], estimated),
        sentence,
    )
