"""`cnn-depth bench`: speed beside peers, measured here and now.

A bench is a module of this package with `HELP`, `EXAMPLE`, `add_arguments(parser)` and
`main(args) -> int`, as a verb is, and one line in `BENCHES`. Peers are measured in the same run as
what is compared with them, in turns; nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib

HELP = """\
Measure speed beside peers, in one run on this machine: medians of ratios over several repeats, with
the targets they are meant to reach. A missed target is shown, and is no error."""
EXAMPLE = """
cnn-depth bench input
cnn-depth bench input imagenet/val --json
cnn-depth bench eval
cnn-depth bench step --arch vgg:A@32x128
cnn-depth bench compile --arch resnet:18@224x8
cnn-depth bench end_to_end --json
cnn-depth bench scaling
"""
# Name -> its module and its line in `cnn-depth bench --help`.
BENCHES = {
    "input": ("launch.bench.input", "JPEG files to batches of training views"),
    "eval": ("launch.bench.eval", "the dense test beside 150 crops"),
    "step": ("launch.bench.step", "a training step beside PyTorch's and Keras's"),
    "compile": ("launch.bench.compile", "the time until a network trains"),
    "end_to_end": ("launch.bench.end_to_end", "the program's start, and the training loop"),
    "scaling": ("launch.bench.scaling", "what many devices exchange, and planning many rows"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benches, each with its options."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, (module, summary) in BENCHES.items():
        bench = importlib.import_module(module)
        lines = "\n".join(f"  {line}" for line in bench.EXAMPLE.strip().splitlines())
        bench.add_arguments(
            benches.add_parser(
                name,
                help=summary,
                description=bench.HELP,
                epilog=f"examples:\n{lines}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )


def main(args: argparse.Namespace) -> int:
    """Run the bench called `args.bench`; its exit status."""
    module, _ = BENCHES[args.bench]
    status: int = importlib.import_module(module).main(args)
    return status
