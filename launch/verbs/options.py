"""Options that several verbs share, each declared once."""

from __future__ import annotations

import argparse
from pathlib import Path

RUN = "a run's folder or id, a part only its id has, a row (`B`, `B (seed 2)`), or STUDY/ROW"
RUNS = f"{RUN}; or a pattern such as 'vgg_depth/*'"


def add_runs(parser: argparse.ArgumentParser) -> None:
    """--runs, for `experiments.runs.runs.root`."""
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="where runs are kept (default: $CNN_DEPTH_RUNS, or runs)",
    )


def add_json(parser: argparse.ArgumentParser, what: str = "JSON") -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def add_set(parser: argparse.ArgumentParser, what: str, metavar: str = "KEY=VALUE") -> None:
    """--set, which may be repeated, for `experiments.config.parse_set`."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=what)
