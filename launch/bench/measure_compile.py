"""`cnn-depth bench compile`: how long it takes until a network trains.

Every start is a process of its own. The first finds an empty compilation cache and fills it, the
second finds the program there.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from launch import devices
from launch.bench import frame, process, ratios
from launch.bench.frame import Report
from launch.bench.process import PeerEnded
from launch.bench.ratios import NOT_TRUSTED, Item, NotTrusted, Ratio, Table
from launch.bench.step_case import Case, choose
from launch.bench.timing import Series, Timing, Watch, in_turns, with_ended_children
from launch.verbs.options import add_options

HELP = """\
Measure how long a network takes until it trains: seconds to trace, to lower and to compile its
training step in a fresh process with an empty compilation cache, and the same again in a second
process that finds the program in the cache. Each start is also timed from the process's start to
the end of the first step."""
EXAMPLE = """
cnn-depth bench compile
cnn-depth bench compile --arch resnet:152@224x8 --arch vgg:E@224x8 --json
cnn-depth bench compile --deepest --page
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nets = "cifar_resnet of 20 to 110 layers, resnet of 18 to 152; on a CPU of 2 images"
    options = {
        frame.NETS: frame.NETS_HELP.format(nets),
        "--deepest": "cifar_resnet:1202 too, which takes minutes",
        **frame.PRECISION,
        "--repeats N": "default: 1",
    }
    add_options(parser, options, width=1.0, repeats=1)


VERSIONS = ("jax", "jaxlib", "flax")
CASES = (
    *(f"cifar_resnet:{depth}" for depth in (20, 32, 56, 110)),
    *(f"resnet:{depth}" for depth in (18, 34, 50, 101, 152)),
)
DEEPEST = "cifar_resnet:1202"
SECOND_START = 0.35  # of the first, the most that it may take
# The other nets' second starts are mostly imports, which no cache shortens.
JUDGED = "resnet:152"
CPU_BATCH = 2  # where --arch does not say: a step of many would be most of the start
PARTS = ("imports", "network", "trace", "lower", "compile", "first_step")


@dataclass(frozen=True)
class Start:
    """One start of a training."""

    seconds: dict[str, float]  # of its `PARTS`
    device: str
    timing: Timing  # of the whole process


@dataclass(frozen=True)
class Measurement:
    """The starts of one case."""

    case: Case
    starts: Series[tuple[Start, Start]]  # with an empty cache, with the program in the cache

    def seconds(self, part: str, index: int) -> list[float]:
        """The seconds of a part in each repeat's first (0) or second (1) start."""
        return [pair[index].seconds[part] for pair in self.starts.bursts]

    @property
    def ratio(self) -> Ratio | NotTrusted:
        """The second start over the first, from process to first step."""
        first, second = (self.seconds("first_step", index) for index in (0, 1))
        return ratios.trusted({str(self.case): self.starts}) or Ratio.of(second, first)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "first": [first.seconds for first, _ in self.starts.bursts],
            "second": [second.seconds for _, second in self.starts.bursts],
            **self.starts.to_json(),
        }


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    from cnn_arch.census import census

    frame.at_least(args, repeats=1)
    platform = devices.probe(devices.Slot()).platform
    devices.use_cpu_only()
    nets = [*(args.arch or CASES), *([DEEPEST] if args.deepest else [])]
    batch = CPU_BATCH if platform == "cpu" else None
    cases = choose(nets, platform, batch=batch, dtype=args.dtype, width=args.width)
    for case in cases:
        census(case.arch, image_size=case.size, classes=case.classes, **case.options)
    measurements = []
    with frame.turns_bar(console, args.repeats * len(cases)) as on_turn:
        for case in cases:
            subjects = {str(case): functools.partial(twice, case)}
            series_of, _ = in_turns(subjects, args.repeats, on_turn)
            measurements.append(Measurement(case, series_of[str(case)]))
    return report(measurements, args.repeats, platform, machine)


def twice(case: Case) -> tuple[Start, Start]:
    """A start with an empty cache, and one that finds the program in it."""
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as cache:
        return start(case, cache), start(case, cache)


def start(case: Case, cache: str) -> Start:
    """One start of a training, in a fresh process with this compilation cache.

    Raises PeerEnded where it ends without its first step.
    """
    code = (  # JAX reads where its cache is, and what goes there, as it is imported
        "import sys; from launch import devices; devices.set_up(); "
        "from launch.bench.step_ours import tell_start; tell_start(*sys.argv[1:])"
    )
    variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_ENABLE_COMPILATION_CACHE": "true"}
    watch, arguments = Watch(with_ended_children), (json.dumps(asdict(case)), repr(time.time()))
    *_, fields = process.run(f"{case} does not start", code, *arguments, variables=variables)
    timing = watch.stop(1, None)  # a start happens once
    if not os.listdir(cache):
        raise PeerEnded(f"{case}: nothing came into the compilation cache")
    return Start(**fields, timing=timing)


def items(measurements: list[Measurement]) -> list[Item]:
    """The second start of the net that has a target, over its first."""
    name = f"{JUDGED}_second_start"
    return [
        Item(name, f"{m.case}, second start over first", SECOND_START, m.ratio, at_most=True)
        for m in measurements
        if m.case.arch == JUDGED
    ]


# Heading -> (part, of the first start or the second).
COLUMNS = {
    **{part: (part, 0) for part in ("trace", "lower", "compile")},
    "first start": ("first_step", 0),
    "from cache": ("compile", 1),
    "second start": ("first_step", 1),
}
EXPLAINED = (
    "Seconds: to trace, to lower and to compile the training step, into an empty cache, and from "
    "the start of the process to the end of the first step; then, in a second process, to fetch "
    "the program from the cache, and again to the end of the first step. Ratio: second start over "
    "first. The convolutions are XLA's: a program with oneDNN's, as long trainings on a CPU have "
    "them, is compiled at every start."
)


def report(
    measurements: list[Measurement], repeats: int, platform: str, machine: dict[str, Any]
) -> Report:
    device = f"1 x {measurements[0].starts.bursts[0][0].device}"
    device = frame.cpu(machine) if platform == "cpu" else device
    compared, rows = items(measurements), []
    for m in measurements:
        cells = [f"{median(m.seconds(*column)):.1f}" for column in COLUMNS.values()]
        ratio = f"{m.ratio.median:.2f}" if isinstance(m.ratio, Ratio) else NOT_TRUSTED
        rows.append((str(m.case), *cells, ratio))
    table = Table(("case", *COLUMNS, "ratio"), rows)
    return Report(
        device,
        {"settings": {"repeats": repeats}, "cases": measurements, "items": compared},
        [
            (f"{device}; {repeats} repeats", None),
            (table, table),
            (EXPLAINED, f"{repeats} repeats. {EXPLAINED}"),
            ratios.items_tables(compared),
            frame.notes(ratios.doubts({str(m.case): m.starts for m in measurements})),
        ],
        {"platform_of_jax": platform, "device": device},
    )
