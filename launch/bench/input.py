"""The verb `cnn-depth bench input`; what it does is in `measure_input`."""

from __future__ import annotations

import argparse

from launch.bench import options

HELP = """\
Measure how fast JPEG files become batches of training views: images/s of our pipeline, of cropped
decoding alone, of plain tf.data, of the Flax ImageNet example's way and of a PyTorch DataLoader
with Pillow, on the same images and cores; one core against two; a training loop whose device only
sleeps; memory at ImageNet's size. PATH is any data set that `cnn-depth data check` reads, or a
folder with JPEGs anywhere below it; without it, images like ImageNet's are made."""
EXAMPLE = """
cnn-depth bench input
cnn-depth bench input imagenet/val --repeats 7
cnn-depth bench input imagenet --peer none --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth bench input`."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="images (default: made for this)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"images a measurement, at least (default: {options.IMAGES_PER_THREAD} a thread)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: the usable cores")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--peer",
        choices=("all", "torch", "tf", "none"),
        default="all",
        help="whom to measure beside (default: all that are installed)",
    )
    parser.add_argument(
        "--entries",
        type=int,
        default=1_280_000,
        metavar="N",
        help="images of the set whose memory is measured (default: 1280000; 0: leave it out)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every raw figure")
    options.add_page(parser)


def main(args: argparse.Namespace) -> int:
    """Measure and print."""
    from launch.bench import measure_input

    return measure_input.main(args)
