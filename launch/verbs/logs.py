"""`cnn-depth logs`: what the processes of a run wrote, and what they write on."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launch.verbs.options import RUNS_FOLDER, add_options, whole_or_all

if TYPE_CHECKING:
    from launch.row_states import RowState

HELP = """\
Print the end of a run's log. Where it has none yet, that of its Slurm job (what happened before the
run's own program). With -f, go on as it is written, also when Slurm starts the run again, until the
run is finished, failed, cancelled or lost.

ROW is a run's id or a part that only it has, a row's name ('B', 'B (seed 2)') or STUDY/ROW."""
EXAMPLE = """
cnn-depth logs vgg_depth/E
cnn-depth logs 'E (seed 2)' -f
cnn-depth logs residual_depth/resnet-44 --process all -n 20
"""

LINES = 100
# Control characters, of which ESC steers terminals, but for tabs and ends of lines; in UTF-8.
CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
BLOCK = 1 << 16
MOST = 1 << 24  # bytes of a file's end that are searched for its last lines
POLL_SECONDS = 0.5
FOLDER_SECONDS = 2.0  # between two looks into the run's folder: has the run ended?
SLURM_SECONDS = 15.0  # between two readings of its state, for which Slurm is asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("row", metavar="ROW", help="a row or a run; see above")
    options = {
        "-f --follow": "go on as it is written",
        "-n --lines LINES": f"how many of the last lines, or `all` (default: {LINES})",
    }
    add_options(parser, options, lines=LINES)
    parser.add_argument(
        "--process",
        type=whole_or_all,
        default=0,
        metavar="K",
        help="of a run of several processes, which, or `all` (default: 0)",
    )
    add_options(parser, {"--runs DIR": RUNS_FOLDER})


def main(args: argparse.Namespace) -> int:
    """Returns 1 where there is no log yet or, with -f, where the run did not finish."""
    from experiments.runs import names, runs
    from launch import row_states

    overview = row_states.read(runs.root(args.runs))
    row = names.find_one(args.row, overview.rows, overview.folder)
    printer = _Printer(args.process)
    for path in sources(row, args.process):
        text, printer.offsets[path] = tail(path, args.lines)
        printer(path, text)
    if args.follow:
        return _follow(row, printer)
    if not printer.wrote:
        printer.say(f"{_standing(row)}; {_why_empty(row)}")
    return 0 if printer.wrote else 1


def sources(row: RowState, process: int | None) -> list[Path]:
    """The log files of a run that are not empty: its own, or that of its Slurm job.

    process: whose log, from 0; None: those of all.
    """
    if process is not None:
        own = [row.folder / (f"log-{process}.txt" if process else "log.txt")]
    else:
        of_others = [p for p in row.folder.glob("log-*.txt") if p.stem[4:].isdecimal()]
        own = [row.folder / "log.txt", *sorted(of_others, key=lambda path: int(path.stem[4:]))]
    nonempty = [path for path in own if _size(path)]
    if nonempty or process:
        return nonempty
    from launch import row_states

    job = row_states.load(row.folder, "job") or {}
    job_log = Path(str(job.get("log") or ""))
    return [job_log] if job_log.name and _size(job_log) else []


def tail(path: Path, lines: int | None) -> tuple[bytes, int]:
    """The last lines of a file, and its size then. lines: how many; None: all.

    Reads no more than it needs of the file's end, and at most 16 MiB to find the lines.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if lines is None:
                file.seek(0)
                return file.read(size), size
            start, text = size, b""
            # One more line end than lines is needed: the first line may be cut.
            while start > 0 and text[:-1].count(b"\n") < lines and size - start < MOST:
                step = min(BLOCK, start)
                start -= step
                file.seek(start)
                text = file.read(step) + text
    except OSError:
        return b"", 0
    last_lines = text.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(last_lines), size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@dataclass
class _Printer:
    """Writes bytes of log files to standard output, below their names where there are several."""

    process: int | None  # as in `sources`
    offsets: dict[Path, int] = field(default_factory=dict)  # how far each file was printed
    last: Path | None = None  # the file that was printed last
    ended: bool = True  # the last byte ended a line

    @property
    def wrote(self) -> bool:
        return self.last is not None

    def __call__(self, path: Path, text: bytes) -> None:
        if not text:
            return
        if self.process is None and path != self.last:
            gap = ("" if self.ended else "\n") + ("\n" if self.wrote else "")
            text = f"{gap}==> {path.name} <==\n".encode() + text
        sys.stdout.flush()
        # Control characters are escaped, as \x1b.
        text = CONTROLS.sub(lambda match: match[0].decode().encode("unicode_escape"), text)
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        self.last, self.ended = path, text.endswith(b"\n")

    def print_added(self, row: RowState) -> None:
        for path in sources(row, self.process):
            start = self.offsets.get(path, 0)
            try:
                # Opened anew each time, as a network's file system refreshes a file then.
                with path.open("rb") as file:
                    if file.seek(0, os.SEEK_END) < start:  # another file of this name
                        start = 0
                    file.seek(start)
                    while text := file.read(BLOCK):
                        self(path, text)
                    self.offsets[path] = file.tell()
            except OSError:
                continue

    def say(self, text: str) -> None:
        """Prints a line that is not the log's, on standard error."""
        if not self.ended:
            print(flush=True)
            self.ended = True
        print(text, file=sys.stderr, flush=True)


def _follow(row: RowState, printer: _Printer) -> int:
    """Prints what is added to the logs until the run has ended. Returns 0 if it is finished."""
    from experiments.runs import state
    from launch import row_states

    if not printer.wrote and not _over(row):
        printer.say(f"{_standing(row)}; it has written nothing yet, waiting")
    last_look = last_query = time.monotonic()
    doubted = False  # seen lost or interrupted once: the folder and Slurm may differ for a moment
    while not _over(row):
        time.sleep(POLL_SECONDS)
        printer.print_added(row)
        now = time.monotonic()
        if now - last_look < FOLDER_SECONDS:
            continue
        last_look = now
        if doubted or now - last_query > SLURM_SECONDS or state.ended(row.folder):
            last_query = now
            latest = row_states.read_one(row)
            was_doubted, doubted = doubted, latest.state in ("lost", "interrupted")
            row = latest if was_doubted or not doubted else row
    printer.print_added(row)
    printer.say(_standing(row))
    return 0 if row.state == "finished" else 1


def _over(row: RowState) -> bool:
    """Whether nothing more will be logged. A row that was never begun may still start."""
    return not row.active and row.state != "not run" and not row.unsure


def _why_empty(row: RowState) -> str:
    """Why a log has no line, for the user."""
    if not _over(row):
        return "it has written nothing yet"
    metrics = row.folder / "metrics.jsonl"
    return "its log is empty" + (f", and its losses are in {metrics}" if _size(metrics) else "")


def _standing(row: RowState) -> str:
    return f"{row.name} is {row.state}" + (f": {row.reason}" if row.reason else "")
