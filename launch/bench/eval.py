"""The verb `cnn-depth bench eval`; what it does is in `measure_eval`."""

from __future__ import annotations

import argparse

from launch.bench import options

HELP = """\
Measure what the dense test costs beside crops: a network over whole images at three scales, with
mirrors, and over 150 crops of each (VGG section 3.2), in turns; the arithmetic of both; and, where
PATH is given, how much of the dense test's arithmetic is spent on padding on these images. Images
are made up and weights are fresh: neither changes the time."""
EXAMPLE = """
cnn-depth bench eval
cnn-depth bench eval imagenet --arch resnet:50 --images 64
cnn-depth bench eval --arch vgg:D --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench eval`."""
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="a folder of images, as for `evaluate --data`"
    )
    parser.add_argument("--arch", default="vgg:D", help="architecture (default: vgg:D)")
    parser.add_argument(
        "--width", type=float, default=1.0, help="of the network, as a share of the paper's"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images at a time (default: 1 on a CPU, 32 elsewhere)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_eval

    return measure_eval.main(args)
