"""The verb `cnn-depth bench scaling`; what it does is in `measure_scaling`."""

from __future__ import annotations

import argparse

from launch.bench import options

HELP = """\
Show what a training step on many devices exchanges: the collectives in the compiled step of several
nets on 1, 2, 4 and 8 devices of the host, beside the one reduction of the gradients and the
statistics of BatchNorm that there should be. On paper, from stated assumptions: the efficiency on
8, 64 and 512 devices. And the seconds that planning a sweep of many rows takes."""
EXAMPLE = """
cnn-depth bench scaling
cnn-depth bench scaling --net cifar_resnet:20@16 --devices 1,8 --rows 0
cnn-depth bench scaling --images-per-s vgg:D=4600 --bandwidth-gbytes 50 --latency-us 5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench scaling`."""
    parser.add_argument(
        "--net",
        action="append",
        metavar="NAME@SIZE",
        help=f"architecture and image size; may be repeated (default: {', '.join(options.NETS)})",
    )
    parser.add_argument(
        "--width", type=float, default=0.125, help="of these nets, as a share of the paper's"
    )
    parser.add_argument(
        "--devices", default="1,2,4,8", metavar="N,...", help="numbers of devices, up to 8"
    )
    group = parser.add_argument_group("what the estimate assumes")
    group.add_argument(
        "--images-per-s",
        action="append",
        default=[],
        metavar="NAME=RATE",
        help="training images a second of one device; may be repeated (default: vgg:D=4600 and "
        "resnet:50=2500)",
    )
    group.add_argument(
        "--per-device-batch", type=int, default=32, metavar="N", help="images (default: 32)"
    )
    group.add_argument(
        "--bandwidth-gbytes",
        type=float,
        default=25.0,
        metavar="GB/S",
        help="of the slowest link of the ring, each way (default: 25)",
    )
    group.add_argument(
        "--latency-us", type=float, default=10.0, metavar="US", help="of a message (default: 10)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1000,
        metavar="N",
        help="of the sweep that is planned (default: 1000; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_scaling

    return measure_scaling.main(args)
