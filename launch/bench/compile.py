"""The verb `cnn-depth bench compile`; what it does is in `measure_compile`."""

from __future__ import annotations

import argparse

from launch.bench import options

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
    """The options of `cnn-depth bench compile`."""
    parser.add_argument(
        "--arch",
        action="append",
        metavar="NAME[@SIZExBATCH]",
        help="architecture, image size in pixels and batch; may be given several times (default: "
        "cifar_resnet of 20 to 110 layers, resnet of 18 to 152; on a CPU of 2 images)",
    )
    parser.add_argument(
        "--deepest", action="store_true", help="cifar_resnet:1202 too, which takes minutes"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the computation (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    parser.add_argument(
        "--width", type=float, default=1.0, help="of the networks, as a share of the paper's"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_compile

    return measure_compile.main(args)
