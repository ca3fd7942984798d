"""What `cnn-depth bench compile` measures: how long it takes until a network trains.

Every start is a process of its own. The first finds an empty compilation cache and fills it, the
second finds the program there.
"""

from __future__ import annotations

import argparse
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
from launch.bench.figures import Item, Ratio
from launch.bench.process import PeerEnded
from launch.bench.step_workers import Case

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
    """Seconds of the parts of one start, by `PARTS`."""

    seconds: dict[str, float]
    device: str


@dataclass(frozen=True)
class Found:
    """The starts of one case: with an empty cache, and each with its program in the cache."""

    case: Case
    first: list[Start]
    second: list[Start]

    def seconds(self, part: str, *, second: bool = False) -> float:
        """The median."""
        return median(start.seconds[part] for start in (self.second if second else self.first))

    @property
    def ratio(self) -> Ratio:
        """The second start over the first, from process to first step."""
        times = [[s.seconds["first_step"] for s in each] for each in (self.second, self.first)]
        return Ratio.of(*times)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": asdict(self.case),
            "first": [start.seconds for start in self.first],
            "second": [start.seconds for start in self.second],
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
    with figures.turns_bar(progress, 2 * args.repeats * len(cases)) as on_turn:
        for case in cases:
            first, second = [], []
            for _ in range(args.repeats):
                with tempfile.TemporaryDirectory(prefix="cnn-depth-bench-") as cache:
                    on_turn(f"{case}: with an empty cache")
                    first.append(start(case, cache))
                    on_turn(f"{case}: from the cache")
                    second.append(start(case, cache))
            found.append(Found(case, first, second))
    compared = items(found)
    cpu = platform == "cpu"
    device = page.cpu(machine) if cpu else f"1 x {found[0].first[0].device}"
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
    done = subprocess.run(
        [*devices.PYTHON, "-c", code, json.dumps(asdict(case)), repr(time.time())],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerEnded(f"{case} does not start: {said[-1]}")
    if not os.listdir(cache):
        raise PeerEnded(f"{case}: nothing came into the compilation cache")
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]))


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
    return [
        (
            str(one.case),
            *(f"{one.seconds(part):.1f}" for part in ("trace", "lower", "compile", "first_step")),
            *(f"{one.seconds(part, second=True):.1f}" for part in ("compile", "first_step")),
            f"{one.ratio.median:.2f}",
        )
        for one in found
    ]


def markdown(repeats: int, found: list[Found], compared: list[Item]) -> str:
    """The body of the page's section."""
    parts = [page.table(COLUMNS, _rows(found)), f"{repeats} repeats. {EXPLAINED}"]
    return "\n\n".join([*parts, *([page.items_table(compared)] if compared else [])])


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
