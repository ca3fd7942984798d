"""`cnn-depth bench`: speed beside peers, measured here and now.

A bench is a module of this package, in the form that `frame` describes, and one line in `BENCHES`.
Peers are measured in the same run as what is compared with them, in turns; nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from launch.parser import Parser

HELP = """\
Measure speed beside peers, in one run on this machine: medians of ratios over several repeats, with
the targets they are meant to reach. A missed target is shown, and is no error."""
EXAMPLE = """
cnn-depth bench input
cnn-depth bench input imagenet/val --json
cnn-depth bench eval
cnn-depth bench step --arch vgg:A@32x128
cnn-depth bench forward
cnn-depth bench compile --arch resnet:18@224x8
cnn-depth bench end_to_end --json
cnn-depth bench planning
cnn-depth bench programs --chips v5e:2x4
"""
# Name -> its line in `cnn-depth bench --help`; its module is `measure_NAME`.
BENCHES = {
    "input": "JPEG files to batches of training views",
    "eval": "the dense test beside 150 crops",
    "step": "a training step beside PyTorch's and Keras's",
    "forward": "what a test computes beside PyTorch",
    "compile": "the time until a network trains",
    "end_to_end": "the program's start, and the training loop",
    "planning": "planning a sweep of many rows",
    "programs": "what chips that are not here would execute, and exchange",
}


class _Parser(Parser):
    """The parser of a bench's options, which imports the bench when they are asked for."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.description is None:
            from launch.bench import frame

            frame.add_arguments(self, bench(self.prog.split()[-1]))
        return super().parse_known_args(args, namespace)


def bench(name: str) -> Any:
    return importlib.import_module(f"launch.bench.measure_{name}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(
        dest="bench", required=True, metavar="|".join(BENCHES), parser_class=_Parser
    )
    for name, summary in BENCHES.items():
        formatter = argparse.RawDescriptionHelpFormatter
        benches.add_parser(name, help=summary, formatter_class=formatter, allow_abbrev=False)


def main(args: argparse.Namespace) -> int:
    """Run the bench called `args.bench`; its exit status."""
    from launch.bench import frame

    return frame.main(args.bench, bench(args.bench), args)
