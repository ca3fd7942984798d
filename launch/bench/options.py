"""Options that every bench has."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGE = Path(__file__).with_name("FIGURES.md")


def add_page(parser: argparse.ArgumentParser) -> None:
    """The option `--page` of a bench: `args.page` is a path, or None where it was not given."""
    parser.add_argument(
        "--page",
        nargs="?",
        type=Path,
        const=PAGE,
        metavar="FILE",
        help="write the figures into this Markdown page too (default: FIGURES.md beside the bench)",
    )
