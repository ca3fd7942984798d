"""What `cnn-depth bench compile` measures: how long it takes until a network trains.

Every start is a process of its own. The first finds an empty compilation cache and fills it, the
second finds the program there.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cnn_arch.census import census
from experiments.config import ConfigError
from launch import devices
from launch.bench import figures, measure_step, page
from launch.bench.figures import NOT_TRUSTED, Item, NotTrusted, Ratio
from launch.bench.process import PeerEnded
from launch.bench.step_case import Case
from launch.bench.timing import Series, Timing, Watch, in_turns, with_ended_children

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
    """Seconds of the parts of one start, by `PARTS`, and the time of the whole process."""

    seconds: dict[str, float]
    device: str
    timing: Timing


Pair = tuple[Start, Start]


@dataclass(frozen=True)
class Found:
    """The starts of one case: (with an empty cache, with its program in the cache), by repeat."""

    case: Case
    starts: Series[Pair]

    def seconds(self, part: str, *, second: bool = False) -> float:
        """The median."""
        return median(pair[second].seconds[part] for pair in self.starts.bursts)

    @property
    def ratio(self) -> Ratio | NotTrusted:
        """The second start over the first, from process to first step."""
        times = [[pair[k].seconds["first_step"] for pair in self.starts.bursts] for k in (1, 0)]
        return figures.trusted({str(self.case): self.starts}) or Ratio.of(*times)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": asdict(self.case),
            "first": [pair[0].seconds for pair in self.starts.bursts],
            "second": [pair[1].seconds for pair in self.starts.bursts],
            **self.starts.to_json(),
        }


def main(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        ConfigError, ArchitectureError: an option or architecture that can't be measured.
        DeviceError, PeerEnded: JAX does not start, or a training does not.
    """
    from rich.console import Console

    if args.repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, not {args.repeats}")
    platform = devices.probe(devices.Slot()).platform
    devices.use_cpu_only()
    args.size, args.batch = None, CPU_BATCH if platform == "cpu" else None
    args.arch = [*(args.arch or CASES), *([DEEPEST] if args.deepest else [])]
    cases = measure_step.choose(args, platform)
    for case in cases:
        census(case.arch, image_size=case.size, classes=case.classes, **case.options)
    machine, progress = figures.machine(), Console(stderr=True)
    found = []
    with figures.turns_bar(progress, args.repeats * len(cases)) as on_turn:
        for case in cases:
            subject = {str(case): functools.partial(twice, case)}
            series, _ = in_turns(subject, args.repeats, on_turn, of=_timings)
            found.append(Found(case, series[str(case)]))
    compared = items(found)
    cpu = platform == "cpu"
    device = page.cpu(machine) if cpu else f"1 x {found[0].starts.bursts[0][0].device}"
    versions = figures.versions("cnn-depth", "jax", "jaxlib", "flax")
    if args.json:
        told = {
            "bench": "compile",
            "machine": {**machine, "platform_of_jax": platform, "device": device},
            "versions": versions,
            "settings": {"repeats": args.repeats},
            "cases": [one.to_json() for one in found],
            "items": [item.to_json() for item in compared],
        }
        json.dump(told, sys.stdout, indent=2)
        print()
    else:
        _print(device, args.repeats, found, compared)
    if args.page:
        body = markdown(args.repeats, found, compared)
        page.write("compile", device, page.command_line(), machine, versions, body, args.page)
    return 0


def twice(case: Case) -> Pair:
    """A start with an empty cache, and one that finds what it left there."""
    with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as cache:
        return start(case, cache), start(case, cache)


def _timings(pair: Pair) -> tuple[Timing, ...]:
    return tuple(one.timing for one in pair)


def start(case: Case, cache: str) -> Start:
    """One start of a training, in a fresh process with this compilation cache.

    Raises PeerEnded where it ends without its first step.
    """
    code = (  # JAX reads where its cache is, and what goes there, as it is imported
        "import sys; from launch import devices; devices.set_up(); "
        "from launch.bench.step_ours import tell_start; tell_start(*sys.argv[1:])"
    )
    environment = {**devices.environment(devices.Slot()), "JAX_COMPILATION_CACHE_DIR": cache}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    watch = Watch(with_ended_children)
    done = subprocess.run(
        [*devices.PYTHON, "-c", code, json.dumps(asdict(case)), repr(time.time())],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    timing = watch.stop(1, None)  # a start happens once
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerEnded(f"{case} does not start: {said[-1]}")
    if not os.listdir(cache):
        raise PeerEnded(f"{case}: nothing came into the compilation cache")
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]), timing=timing)


def items(found: list[Found]) -> list[Item]:
    """The second start of the net that is judged beside its target."""
    return [
        Item(
            f"{one.case.arch}_second_start",
            f"{one.case}, second start over first",
            SECOND_START,
            one.ratio,
            at_most=True,
        )
        for one in found
        if one.case.arch == JUDGED
    ]


# -------------------------------------------------------------------------------- output


COLUMNS = (
    "case",
    "trace",
    "lower",
    "compile",
    "first start",
    "from cache",
    "second start",
    "ratio",
)
EXPLAINED = (
    "Seconds: to trace, to lower and to compile the training step, into an empty cache, and from "
    "the start of the process to the end of the first step; then, in a second process, to fetch "
    "the program from the cache, and again to the end of the first step. Ratio: second start over "
    "first. The convolutions are XLA's: a program with oneDNN's, as long trainings on a CPU have "
    "them, is compiled at every start."
)


def _rows(found: list[Found]) -> list[tuple[str, ...]]:
    rows = []
    for one in found:
        first = [one.seconds(part) for part in ("trace", "lower", "compile", "first_step")]
        second = [one.seconds(part, second=True) for part in ("compile", "first_step")]
        ratio = one.ratio
        shown = f"{ratio.median:.2f}" if isinstance(ratio, Ratio) else NOT_TRUSTED
        rows.append((str(one.case), *(f"{cell:.1f}" for cell in (*first, *second)), shown))
    return rows


def _doubts(found: list[Found]) -> list[str]:
    return figures.doubts({str(one.case): one.starts for one in found})


def markdown(repeats: int, found: list[Found], compared: list[Item]) -> str:
    """The body of the page's section."""
    parts = [page.table(COLUMNS, _rows(found)), f"{repeats} repeats. {EXPLAINED}"]
    parts += [page.items_table(compared) if compared else "", page.listed(_doubts(found))]
    return "\n\n".join(part for part in parts if part)


def _print(device: str, repeats: int, found: list[Found], compared: list[Item]) -> None:
    from rich import box
    from rich.table import Table

    console = figures.screen()
    console.print(f"{device}; {repeats} repeats", soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    console.print(EXPLAINED, soft_wrap=True, markup=False)
    if compared:
        console.print(figures.items_table(compared))
    for line in _doubts(found):
        console.print(line, soft_wrap=True, markup=False)
