"""Options of the benches, and what they are where nothing is said."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGE = Path(__file__).with_name("FIGURES.md")
IMAGES_PER_THREAD = 512  # of `bench input`
NETS = ("cifar_resnet:20@16", "cifar_resnet:56@16", "vgg:A@32", "resnet:18@32", "resnet:50@32")


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
