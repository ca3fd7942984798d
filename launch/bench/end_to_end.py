"""The verb `cnn-depth bench end_to_end`; what it does is in `measure_end_to_end`."""

from __future__ import annotations

import argparse

from launch.bench import options

HELP = """\
Measure the whole program: seconds of `--help`; seconds from the command to the first finished
training step of the demo net, with an empty and with a filled compilation cache; the training loop
beside its jitted step alone; microseconds a step that the loop, its input and its bookkeeping take,
early and late in a training, and what a checkpoint costs. All files are temporary."""
EXAMPLE = """
cnn-depth bench end_to_end
cnn-depth bench end_to_end --longest 100000 --repeats 3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench end_to_end`."""
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        metavar="N",
        help="of the demo net's loop and of its bare step, a measurement (default: 1000)",
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=10_000,
        metavar="N",
        help="steps after which a step's bookkeeping is measured last (default: 10000)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_end_to_end

    return measure_end_to_end.main(args)
