"""The verb `cnn-depth bench step`; what it does is in `measure_step`."""

from __future__ import annotations

import argparse

from launch.bench import options

HELP = """\
Measure a training step: images/s of ours, of the same network in PyTorch and of it in Keras
(TensorFlow), layer for layer, with the same batch and cores, each in a process of its own, in
turns. Forward pass, soft-max cross-entropy, backward pass, SGD with momentum and weight decay, on
images that are made up and on the device already. Also the share of the arithmetic that a large
matrix product reaches here, and memory. A peer that is not installed is left out, and it is said
how to install it."""
EXAMPLE = """
cnn-depth bench step
cnn-depth bench step --arch vgg:D@32x128 --arch resnet:18@224x8 --peer torch
cnn-depth bench step --arch resnet:50 --batch 256 --dtype bfloat16 --compiled --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench step`."""
    parser.add_argument(
        "--arch",
        action="append",
        metavar="NAME[@SIZExBATCH]",
        help="architecture, image size in pixels and batch; may be given several times (default: "
        "six small ones on a CPU, the papers' ImageNet nets elsewhere)",
    )
    parser.add_argument(
        "--peer",
        choices=("all", "torch", "keras", "none"),
        default="all",
        help="whom to measure beside (default: all that are installed)",
    )
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="PyTorch through torch.compile as well (default: not on a CPU)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images, where --arch does not say (default: on a CPU 128 up to 64 pixels and 8 "
        "above, 256 elsewhere)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="of the images, where --arch does not say (default: the paper's); up to 64 pixels "
        "they are of 10 classes",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the computation (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    parser.add_argument(
        "--width", type=float, default=1.0, help="of the networks, as a share of the paper's"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="also cifar_resnet:20 as a run trains it, many steps a dispatch: how long the paper's "
        "64,000 take, N seeds in one program beside one, and deterministic kernels (default: 5; "
        "on a CPU 0, which leaves it out)",
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="a measurement, at least; it takes two seconds or more (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_step

    return measure_step.main(args)
