"""What `cnn-depth bench scaling` shows: what devices exchange in a step, and what that costs.

The compiled step of each net is read, as text, in a process of its own that has eight devices: a
collective is an operation there that takes data over a link. As a module it is that process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from launch import devices
from launch.bench import figures, page, timing
from launch.bench.timing import Series, Timing, Watch, in_turns

MOST_DEVICES = 8
BATCH = 16  # images a step: two a device, where there are most
ESTIMATED = (8, 64, 512)
RATES = {"vgg:D": 4600.0, "resnet:50": 2500.0}  # images/s of one device; no more than assumptions
BACKWARD = 2 / 3  # of a step: the backward pass has two of its three products
WORKER_SECONDS = 1200
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_RESULT = re.compile(
    r"= (?P<type>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"ragged-all-to-all|collective-permute|collective-broadcast)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')


class ScalingError(ValueError):
    """An option without sense, or a net that can't be compiled."""

    user_error = True


# ------------------------------------------------------------------------ reading a program


@dataclass(frozen=True)
class Collective:
    """An operation that exchanges arrays: (type, elements) of each, and where it comes from."""

    kind: str
    arrays: tuple[tuple[str, int], ...]
    where: str

    @property
    def bytes(self) -> int:
        return sum(BYTES[kind] * elements for kind, elements in self.arrays)

    @property
    def names(self) -> list[str]:
        """Where each array comes from: XLA calls what it combined `path/(one:another)`."""
        start, _, combined = self.where.partition("/(")
        each = combined[:-1].split(":") if combined.endswith(")") else []
        if len(each) == len(self.arrays):
            return [f"{start}/{name}" for name in each]
        return [self.where] * len(self.arrays)


def collectives(hlo: str) -> list[Collective]:
    """Those in the text of a compiled program; what XLA combined is one."""
    return list(_collectives(hlo))


def _collectives(hlo: str) -> Iterator[Collective]:
    for line in hlo.splitlines():
        found = _RESULT.search(line)
        if found is None:
            continue
        arrays = [(kind, _elements(sides)) for kind, sides in _ARRAY.findall(found["type"])]
        if found["start"] and found["kind"] != "all-reduce":
            # What goes in, what comes out and, of some, two counters.
            arrays = [array for array in arrays if array != ("u32", 1)]
            arrays = arrays[len(arrays) // 2 :]
        where = _NAME.search(line)
        yield Collective(found["kind"], tuple(arrays), where[1] if where else "")


def _elements(sides: str) -> int:
    product = 1
    for side in filter(None, sides.split(",")):
        product *= int(side)
    return product


@dataclass(frozen=True)
class Exchange:
    """What the collectives of one step move, in bytes, beside what they should.

    gradients: arrays as large as parameters, each parameter counted once, or as the taps of a
    kernel (of small maps, whose outer taps may see nothing and are not exchanged then); statistics:
    further sums as large as a BatchNorm's; numbers: the metrics; other: all else. `where` and
    `other` say kind, name, how many and bytes.
    """

    operations: dict[str, int]
    gradients: int
    parameters: int
    statistics: int
    statistics_expected: int
    numbers: int
    statistics_where: list[dict[str, Any]]
    other: list[dict[str, Any]]


def sort_out(
    found: Sequence[Collective],
    parameters: Mapping[str, tuple[int, ...]],
    channels: Sequence[int],
    expected: int,
) -> Exchange:
    """What each array of the collectives is. parameters: name -> shape; channels: of each
    BatchNorm; expected: bytes of its statistics.

    Arrays are known by their sizes, those of the backward pass first (a BatchNorm's scale is as
    large as its mean), and taps last of these.
    """
    left = Counter(map(prod, parameters.values()))
    sizes = set(channels)
    moved = Counter[str]()
    names: dict[str, Counter[tuple[str, str]]] = {"statistics": Counter(), "other": Counter()}
    weights: dict[str, Counter[tuple[str, str]]] = {"statistics": Counter(), "other": Counter()}
    arrays = [
        (one.kind, name, elements, BYTES[kind] * elements)
        for one in found
        for (kind, elements), name in zip(one.arrays, one.names, strict=True)
    ]
    whole = Counter(elements for kind, _, elements, _ in arrays if kind == "all-reduce")
    taps = _taps(parameters.values(), whole)
    arrays.sort(
        key=lambda one: (
            "transpose(" not in one[1],
            one[1].endswith("dot_general") and taps[one[2]] > 0,
        )
    )
    for kind, name, elements, size in arrays:
        what = "other"
        if kind == "all-reduce" and elements == 1:
            what = "numbers"
        elif kind == "all-reduce" and left[elements]:
            left[elements] -= 1
            what = "gradients"
        elif kind == "all-reduce" and taps[elements] and name.endswith("dot_general"):
            taps[elements] -= 1
            what = "gradients"
        elif kind == "all-reduce" and elements in sizes and name.endswith("reduce_sum"):
            what = "statistics"
        moved[what] += size
        if what in names:
            names[what][kind, name] += 1
            weights[what][kind, name] += size

    def told(what: str) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "name": name, "count": n, "bytes": weights[what][kind, name]}
            for (kind, name), n in names[what].most_common()
        ]

    return Exchange(
        operations=dict(Counter(one.kind for one in found)),
        gradients=moved["gradients"],
        parameters=4 * sum(map(prod, parameters.values())),
        statistics=moved["statistics"],
        statistics_expected=expected,
        numbers=moved["numbers"],
        statistics_where=told("statistics"),
        other=told("other"),
    )


def _taps(shapes: Iterable[tuple[int, ...]], whole: Counter[int]) -> Counter[int]:
    """How many taps of each size the kernels have that are not exchanged whole."""
    seen, taps = whole.copy(), Counter[int]()
    for shape in shapes:
        if seen[prod(shape)]:
            seen[prod(shape)] -= 1
        elif len(shape) == 4:
            taps[shape[2] * shape[3]] += shape[0] * shape[1]
    return taps


def expected_statistics(channels: Sequence[int], devices: int) -> int:
    """Bytes that BatchNorms exchange in a step at least, float32.

    The sums of each map and of its squares where a group lies on several devices, whose two sums
    backward are the gradients of scale and bias; else the mean and variance that are kept.
    """
    return 0 if devices == 1 else 4 * 2 * sum(channels)


# ------------------------------------------------------------------------ the process


def compiled(net: str, size: int, width: float, count: int, group: int) -> dict[str, Any]:
    """The exchange of a training step of a net on `count` devices, with BatchNorm in groups."""
    import numpy as np

    from experiments import config as configs
    from experiments import data as data_lib
    from experiments.training import state as training_state

    config = configs.base()
    config.model = configs.model(net)
    config.data.update(name="digits", image_size=size, holdout=0.0)
    config.train.update(batch_size=BATCH, steps=1, steps_per_dispatch=1)
    options = {"width": width, "bn_group_size": group}
    config.model.update({key: value for key, value in options.items() if key in config.model})
    data = data_lib.prepare(config)
    training = training_state.start(config, data, devices.mesh(count), None)
    feed = data.feed(config, training.mesh, 0)
    inputs = {
        "step": np.zeros(1, np.int32),
        "lr": np.zeros(1, np.float32),
        "batch": feed.next(range(1)),
    }
    arguments = (training.state, training.constants, np.int32(0), inputs)
    text = training.dispatch.lower(*arguments).compile().as_text()
    feed.close()
    stats = training.state["stats"]
    channels = [array.size for name, array in stats.items() if name.endswith("mean")]
    parameters = {name: array.shape for name, array in training.state["params"].items()}
    expected = expected_statistics(channels, count)
    return vars(sort_out(collectives(text), parameters, channels, expected))


def _work(task: dict[str, Any]) -> None:
    for count in task["devices"]:
        for group in task["groups"] if count > 1 else [0]:
            told = compiled(task["net"], task["size"], task["width"], count, group)
            print(json.dumps({"devices": count, "group": group, **told}), flush=True)


def programs(net: str, size: int, width: float, counts: Sequence[int]) -> list[dict[str, Any]]:
    """`compiled` for each number of devices and both groups, in a process with eight devices.

    Raises ScalingError with that process's last words.
    """
    task = {"net": net, "size": size, "width": width, "devices": list(counts)}
    task["groups"] = [0, BATCH // MOST_DEVICES] if net.partition(":")[0] not in PLAIN else [0]
    environment = devices.environment(devices.Slot()) | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(MOST_DEVICES),
        "CNN_DEPTH_CONVOLUTIONS": "xla",  # as with several devices anyway
        # Which collectives there are is settled before the code is optimised.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [*devices.PYTHON, "-m", "launch.bench.measure_scaling", json.dumps(task)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=WORKER_SECONDS,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ScalingError(f"{net} at {size} pixels can't be compiled: {lines[-1]}")
    return [
        {"net": net, "size": size, **json.loads(line)}
        for line in done.stdout.splitlines()
        if line.startswith("{")
    ]


PLAIN = ("lenet5", "dan_net", "alexnet", "nin", "vgg")  # without BatchNorm, by default


# ------------------------------------------------------------------------ on paper


@dataclass(frozen=True)
class Link:
    """Bytes a second of the ring's slowest link, and seconds until a message begins to arrive."""

    bandwidth: float
    latency: float

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds of a ring's all-reduce of `size` bytes (Patarasuk and Yuan 2009): each device
        sends 2 (n - 1) messages of size / n."""
        n = devices
        return 2 * (n - 1) / n * size / self.bandwidth + 2 * (n - 1) * self.latency


def efficiency(step: float, exchange: float) -> tuple[float, float]:
    """Images/s a device over those of a device alone: (nothing, all of it) overlapped with the
    backward pass. step, exchange: seconds."""
    forward, backward = (1 - BACKWARD) * step, BACKWARD * step
    return step / (step + exchange), step / (forward + max(backward, exchange))


def estimate(rates: Mapping[str, float], batch: int, link: Link) -> list[dict[str, Any]]:
    """A line for each net and number of devices; gradients are float32, `batch` a device's.

    Raises ArchitectureError for a net that is not there.
    """
    from cnn_arch.census import census

    lines = []
    for net, rate in rates.items():
        size, step = 4 * census(net).training_params, batch / rate
        for n in ESTIMATED:
            exchange = link.all_reduce(size, n)
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
    swept(timing.LEAST_STEPS)
    watch, times, total = Watch(cores=1), 0, Counter[str]()
    while times * rows < timing.LEAST_STEPS or watch.seconds < timing.LEAST_SECONDS:
        total.update(swept(rows))
        times += 1
    found = watch.stop(times * rows, times * rows)
    return Sweep({what: each / (times * rows) for what, each in total.items()}, found)


def swept(rows: int) -> dict[str, float]:
    """Seconds of each part of one sweep's planning."""
    from launch.planning import graph

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        study, runs = Path(folder) / "rows.py", Path(folder) / "runs"
        study.write_text(STUDY.format(rows=rows), encoding="utf-8")
        start = time.perf_counter()

        def took(what: str) -> None:
            nonlocal start
            found[what] = time.perf_counter() - start
            start = time.perf_counter()

        planned = graph.plan([str(study)], {}, None, runs)
        took("plan")
        jobs = [job for row in planned for job in row.jobs.values()]
        for job in jobs:
            job.create()
        took("folders")
        if any(job.done for job in jobs):
            raise AssertionError("a run that was only made is not done")
        took("look")
        graph.plan([str(study)], {}, None, runs)
        took("plan_again")
    return found


# ------------------------------------------------------------------------ the bench


def main(args: argparse.Namespace) -> int:
    """Measure and print. Raises ScalingError for options without sense."""
    from rich.console import Console

    from launch.bench.options import NETS

    nets = [_net(text) for text in args.net or NETS]
    counts = _counts(args.devices)
    rates = RATES | dict(_rate(text) for text in args.images_per_s)
    for name in ("per_device_batch", "bandwidth_gbytes", "width"):
        if getattr(args, name) <= 0:
            raise ScalingError(f"--{name.replace('_', '-')} must be more than 0")
    if args.rows < 0 or args.latency_us < 0:
        raise ScalingError("--rows and --latency-us must be at least 0")
    devices.use_cpu_only()
    machine = figures.machine()
    link = Link(1e9 * args.bandwidth_gbytes, 1e-6 * args.latency_us)
    lines = estimate(rates, args.per_device_batch, link)
    progress = Console(stderr=True)
    found: list[dict[str, Any]] = []
    with figures.turns_bar(progress, len(nets) + bool(args.rows)) as on_turn:
        for net, size in nets:
            on_turn(f"{net} at {size} pixels")
            found += programs(net, size, args.width, counts)
        planned = None
        if args.rows:
            title = {"sweep": f"a sweep of {args.rows} rows"}
            subject = {"sweep": functools.partial(sweep, args.rows)}
            planned = in_turns(subject, 1, on_turn, titles=title, of=_parts)[0]["sweep"]
    assumed = {
        "images_per_s": rates,
        "per_device_batch": args.per_device_batch,
        "bandwidth_bytes_per_s": link.bandwidth,
        "latency_s": link.latency,
        "backward_share": BACKWARD,
    }
    versions = figures.versions("cnn-depth", "jax", "jaxlib", "flax")
    body = report(found, lines, assumed, planned, args.rows, args.width)
    if args.json:
        told: dict[str, Any] = {"bench": "scaling", "machine": machine, "versions": versions}
        told |= {"batch": BATCH, "width": args.width, "steps": found}
        told |= {"estimate": {"assumed": assumed, "lines": lines}}
        each = planned and {"seconds_a_row": planned.bursts[-1].seconds, **planned.to_json()}
        told |= {"sweep": each}
        print(json.dumps({**told, "rows": args.rows}, indent=1))
    else:
        print(body)
    if args.page is not None:
        command = page.command_line()
        page.write("scaling", "CPU", command, machine, versions, body, args.page)
    return 0


def _parts(burst: Sweep) -> tuple[Timing, ...]:
    return (burst.timing,)


def _net(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("@")
    if not name or not size.isdecimal():
        raise ScalingError(f"--net {text}: expected NAME@SIZE, such as resnet:18@32")
    return name, int(size)


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and BATCH % max(1, int(word)) == 0 for word in words):
        raise ScalingError(f"--devices {text}: expected some of 1, 2, 4 and 8")
    counts = [int(word) for word in words]
    if not all(1 <= count <= MOST_DEVICES for count in counts):
        raise ScalingError(f"--devices {text}: expected some of 1, 2, 4 and 8")
    return counts


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ScalingError(f"--images-per-s {text}: expected NAME=RATE, such as vgg:D=1000")
    return name, value


def report(
    found: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    assumed: Mapping[str, Any],
    planned: Series[Sweep] | None,
    rows: int,
    width: float,
) -> str:
    """What was found, as Markdown that reads well as it is."""
    parts = [
        f"Collectives of a compiled training step ({BATCH} images, nets at width {width:g}). "
        "Target: the gradients once, BatchNorm's statistics, nothing else.",
        "",
        "| net | devices | BN group | operations | gradients / parameters | statistics / expected "
        "| other |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for one in found:
        operations = ", ".join(f"{n} {kind}" for kind, n in one["operations"].items()) or "none"
        other = sum(each["count"] for each in one["other"])
        size = sum(each["bytes"] for each in one["other"])
        parts.append(
            f"| {one['net']} | {one['devices']} | {one['group'] or 'batch'} | {operations} | "
            f"{one['gradients']:,} / {one['parameters']:,} | "
            f"{one['statistics']:,} / {one['statistics_expected']:,} | "
            f"{f'{other}: {size:,} bytes' if other else 'none'} |"
        )
    rates = ", ".join(f"{net} {rate:g}" for net, rate in assumed["images_per_s"].items())
    parts += [
        "",
        "An ESTIMATE on paper, not a measurement. Assumed: images/s of one device as stated "
        f"({rates}); {assumed['per_device_batch']} images a device; a ring's all-reduce of float32 "
        f"gradients over links of {assumed['bandwidth_bytes_per_s'] / 1e9:g} GB/s and "
        f"{assumed['latency_s'] * 1e6:g} us; the backward pass is two thirds of a step; "
        "BatchNorm's groups on one device each; input keeps up.",
        "",
        "| net | devices | MB exchanged | step ms | exchange ms | efficiency, no overlap | "
        "all overlapped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        parts.append(
            f"| {line['net']} | {line['devices']} | {line['bytes'] / 1e6:,.1f} | "
            f"{line['step_ms']:.1f} | {line['exchange_ms']:.1f} | "
            f"{line['without_overlap']:.0%} | {line['with_overlap']:.0%} |"
        )
    if planned is not None:
        seconds = planned.bursts[-1].seconds
        each = ", ".join(f"{k.replace('_', ' ')} {1e3 * s:.2f}" for k, s in seconds.items())
        total = seconds["plan"] + seconds["folders"] + seconds["look"]
        told = f"milliseconds a row: {each}; {rows * total:.1f} s in all before the first run"
        if planned.doubt:
            told = f"{figures.NOT_TRUSTED}: {planned.doubt}"
        parts += ["", f"A sweep of {rows:,} rows, {told}."]
    return "\n".join(parts)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _work(json.loads(sys.argv[1]))
