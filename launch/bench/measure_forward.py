"""`cnn-depth bench forward`: what a test computes, beside the same network in PyTorch.

The processes, turns and tables are those of `measure_step`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from launch import devices
from launch.bench import frame, measure_step
from launch.bench.frame import Report
from launch.bench.timing import LEAST_STEPS
from launch.verbs.options import add_options

HELP = """\
Measure the forward pass of a test: images/s of ours and of the same network in PyTorch, layer for
layer, as it is and frozen (torch.jit.freeze and optimize_for_inference), with the same batch and
cores, each in a process of its own, in turns. From normalised images, which are made up and on the
device already, to log posteriors. If PyTorch is not installed, it is said how to install it."""
EXAMPLE = """
cnn-depth bench forward
cnn-depth bench forward --arch vgg:E@224x8 --arch cifar_resnet:110@32x128 --json
"""
VERSIONS = ("jax", "jaxlib", "flax", "torch")
CASES = ("resnet:50", "vgg:D")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = ", where --arch does not say (default: "
    options = {
        frame.NETS: frame.NETS_HELP.format(", ".join(CASES)),
        "--peer torch|none": frame.PEERS,
        "--batch N": f"images{where}on a CPU 128 up to 64 pixels and 8 above, 256 elsewhere)",
        "--size PIXELS": f"of the images{where}the paper's)",
        **frame.PRECISION,
        "--repeats N": "default: 5",
        "--steps N": "a measurement, at least; it takes two seconds or more (default: 5)",
    }
    add_options(parser, options, peer="torch", width=1.0, repeats=5)


def measure(args: argparse.Namespace, machine: dict[str, Any], console: Any) -> Report:
    """Every case in turns."""
    frame.at_least(args, repeats=1, steps=LEAST_STEPS, batch=1, size=1)
    platform = devices.probe(devices.Slot()).platform
    devices.use_cpu_only()
    chosen = measure_step.cases_of(args, CASES, platform)
    cases = [replace(case, forward=True) for case in chosen]
    libraries = ["ours", *(["torch", "torch_frozen"] if args.peer == "torch" else [])]
    total = measure_step.turns(cases, libraries, args, platform)
    with frame.turns_bar(console, total) as on_turn:
        measured = measure_step.in_turn(cases, libraries, args, platform, on_turn)
    device = measure_step.device_of(measured, machine)
    return measure_step.report(measured, None, platform, device, args)
