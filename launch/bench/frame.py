"""What every bench does: its options, its run, and its three outputs (screen, JSON and page).

A bench is a module `measure_NAME` with

    HELP, EXAMPLE                       as a verb has them
    VERSIONS                            the distributions whose versions its figures depend on
    add_arguments(parser)               its own options; `--json` and `--page` are added here
    measure(args, machine, console)     -> Report; shows its progress on `console`

It raises BenchError for an option that can't be measured.

The page is one Markdown file, with a section for each bench and device. A section lies between two
comments and is replaced as a whole when its bench is measured on that device again; all else on the
page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from experiments.runs import runs
from input_pipeline import DataError
from input_pipeline.whole_files import whole_file
from launch import devices
from launch.bench.ratios import Table
from launch.bench.timing import cpu_ticks
from launch.console import at_times, bars
from launch.verbs.options import add_options

PLAIN_WIDTH = 120
PAGE = Path("docs", "speed.md")
HEAD = """\
# Measured speed

Every section was written by `cnn-depth bench NAME --page`, which replaces the section of the same
bench and device and leaves the others alone. Ratios are ours over the peer's, of measurements that
took turns in one run: the median of the repeats, then the lowest and the highest. A target that
was missed is shown as missed. A measurement whose process had less than 0.9 of its cores, or whose
repeats were more than 1.3 apart, is taken again, and is `not trusted` where it stays so.
"""

# What a part of an output shows on the screen and on the page; None where it is not shown there.
Part = tuple[str | Table | None, str | Table | None]


class BenchError(ValueError):
    """An option without sense, or something that can't be measured."""

    user_error = True


@dataclass(frozen=True)
class Report:
    """What a bench measured, for all outputs."""

    device: str  # the page's section is named after it
    figures: Mapping[str, Any]  # of the JSON, what follows the versions
    parts: Sequence[Part]  # of the screen and of the page
    machine: Mapping[str, Any] = field(default_factory=dict)  # what the JSON adds to `machine()`
    in_markdown: bool = False  # whether the screen shows what the page does

    def markdown(self) -> str:
        """The body of the page's section."""
        shown = [part.markdown() if isinstance(part, Table) else part for _, part in self.parts]
        return "\n\n".join(part for part in shown if part)

    def show(self) -> None:
        if self.in_markdown:
            print(self.markdown())
            return
        console = screen()
        for part, _ in self.parts:
            if isinstance(part, Table):
                console.print(part.rich())
            elif part:
                console.print(part, soft_wrap=True, markup=False)


def both(*parts: str | Table) -> list[Part]:
    """Parts that are the same on the screen and on the page."""
    return [(part, part) for part in parts]


def notes(lines: Sequence[str]) -> Part:
    """Lines, which are a list on the page."""
    return "\n".join(lines), "\n".join(f"- {line}" for line in lines)


# Options that several benches have, for `add_options`.
PRECISION = {
    "--dtype float32|bfloat16": "of the computation (default: float32 on a CPU, bfloat16 "
    "elsewhere)",
    "--width WIDTH": "of the networks, as a share of the paper's",
}
PEERS = "whom to measure beside (default: all that are installed)"
NETS = "--arch NAME[@SIZExBATCH]..."
NETS_HELP = "architecture, image size in pixels and batch; may be given several times (default: {})"


def add_arguments(parser: argparse.ArgumentParser, bench: Any) -> None:
    """All options of a bench, with its help."""
    lines = "\n".join(f"  {line}" for line in bench.EXAMPLE.strip().splitlines())
    parser.description, parser.epilog = bench.HELP, f"examples:\n{lines}"
    bench.add_arguments(parser)
    add_options(parser, {"--json": "print JSON, with every raw figure"})
    parser.add_argument(
        "--page",
        nargs="?",
        type=Path,
        const=PAGE,
        metavar="FILE",
        help=f"write the figures into this Markdown page too (default: {PAGE} in the folder that "
        "the command is run in, such as a checkout)",
    )


def at_least(args: argparse.Namespace, **bounds: int) -> None:
    """Raises BenchError for an option that was given and is less than its least value."""
    for name, bound in bounds.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise BenchError(f"--{name.replace('_', '-')} must be at least {bound}, not {value}")


def main(name: str, bench: Any, args: argparse.Namespace) -> int:
    """Measures, prints, and writes the page if that is asked for; the exit status.

    Raises BenchError, DataError, ConfigError or ArchitectureError for what can't be measured or
    written; DeviceError or PeerEnded where JAX, or a process that measures, does not start.
    """
    if args.page is not None and not args.page.parent.is_dir():
        raise BenchError(f"--page {args.page}: there is no folder {args.page.parent}")
    at_start = machine()
    report: Report = bench.measure(args, at_start, Console(stderr=True))
    versions = {name: devices.version(name) for name in ("cnn-depth", *bench.VERSIONS)}
    if args.json:
        header = {"bench": name, "machine": {**at_start, **report.machine}, "versions": versions}
        json.dump({**header, **report.figures}, sys.stdout, indent=2, default=as_json)
        print()
    else:
        report.show()
    if args.page is not None:
        command = shlex.join(["cnn-depth", *sys.argv[1:]])
        write_page(name, report.device, command, at_start, versions, report.markdown(), args.page)
        print(f"written: {args.page}", file=sys.stderr)
    return 0


def as_json(value: Any) -> Any:
    """What stands for an object in JSON: its own `to_json`, or its attributes."""
    return value.to_json() if hasattr(value, "to_json") else vars(value)


def machine() -> dict[str, Any]:
    """Processor, cores and load, now; `cpu_ticks` is for `stolen`."""
    return {
        "processor": runs.processor(),
        "cores": os.cpu_count(),
        "usable_cores": devices.usable_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_ticks": cpu_ticks().get("cpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu(machine: Mapping[str, Any]) -> str:
    """A processor as a device."""
    return f"{machine['processor']}, {machine['usable_cores']} cores"


@contextmanager
def turns_bar(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of measurements: gives `on_turn(title)`, to be called as each one begins.

    Where bars can't be drawn, it prints a plain line now and then.
    """
    description = TextColumn("{task.description}")
    bar = bars(
        console, BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), description
    )
    task = bar.add_task("", total=total)
    current, tell = -1, at_times(console, soon=0.0)

    def on_turn(title: str) -> None:
        nonlocal current
        current += 1
        expected = max(total, current + 1)  # what is measured again was not foreseen
        bar.update(task, completed=current, total=expected, description=title)
        tell(f"[{current + 1}/{expected}] {title}")

    with bar:
        yield on_turn


def screen() -> Console:
    """Where tables are printed; where there is no terminal, it is as wide as they need."""
    console = Console(highlight=False)
    has_width = console.is_terminal or "COLUMNS" in os.environ
    return console if has_width else Console(highlight=False, width=PLAIN_WIDTH)


def write_page(
    bench: str,
    device: str,
    command: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, str | None],
    body_markdown: str,
    path: Path,
) -> None:
    """Writes what a bench measured on a device into a page, and where, when and how.

    machine: what `machine()` gave at the start. versions: those that are None are not named. Raises
    DataError for a page that can't be written or has a section without an end.
    """
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    conditions = [
        f"{machine['processor']}, {machine['usable_cores']} usable cores",
        str(machine["platform"]),
        f"Python {machine['python']}",
    ]
    if machine["load_average"] is not None:
        conditions.append(f"load {machine['load_average']:.1f} when it began")
    stolen_share = stolen(machine)
    if stolen_share is not None and stolen_share >= 0.01:
        conditions.append(
            f"its host gave {stolen_share:.0%} of the time asked of the cores to others"
        )
    begin, end = (f"<!-- {bench} on {device}: {word} -->" for word in ("begin", "end"))
    summary = f"{str(machine['date'])[:10]}; {'; '.join(conditions)}.\n{installed}."
    head = f"## `{bench}` on {device}\n\n{summary}\n\n```\n{command}\n```"
    section = f"{begin}\n{head}\n\n{body_markdown.strip()}\n{end}\n"
    try:
        page = path.read_text(encoding="utf-8") if path.exists() else HEAD
        match = re.search(f"{re.escape(begin)}\n.*?{re.escape(end)}\n?", page, re.DOTALL)
        if match:
            page = page[: match.start()] + section + page[match.end() :]
        elif begin in page or end in page:
            raise DataError(f"{path}: the section {begin!r} does not end with {end!r}; mend it")
        else:
            page = f"{page.rstrip()}\n\n{section}"
        with whole_file(path) as stream:
            stream.write(page.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--page {path}: {error}") from error


def stolen(machine: Mapping[str, Any]) -> float | None:
    """The share of a virtual machine's core time that its host gave to others since `machine` was
    taken, of all that was asked for; None where it is not known."""
    before, now = machine["cpu_ticks"], cpu_ticks().get("cpu")
    if before is None or now is None:
        return None
    spent, lost = (after - start for start, after in zip(before, now, strict=True))
    return lost / max(spent + lost, 1)
