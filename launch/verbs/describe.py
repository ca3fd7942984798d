"""`cnn-depth describe`: an architecture layer by layer, without allocating its parameters."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from launch.verbs.options import add_json, add_set

if TYPE_CHECKING:
    from cnn_arch.census import Census, LayerRow

HELP = """\
Print an architecture layer by layer: output shape, parameters, multiply-adds (MACs), receptive
field and stride, and activation memory, with totals. MACs count convolutions and fully connected
layers, per image; neurons are their outputs, as AlexNet's paper counts them."""
EXAMPLE = """
cnn-depth describe vgg:E
cnn-depth describe cifar_resnet:56 --image-size 16 --channels 1 --set width=0.5
cnn-depth describe vgg:E --batch-size 256 --set dtype=bfloat16
cnn-depth describe googlenet --parameters
cnn-depth describe alexnet:two_gpu --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth describe`."""
    parser.add_argument("architecture", help="FAMILY:VARIANT, as `cnn-depth list` shows them")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: the paper's")
    parser.add_argument("--classes", type=int, metavar="K", help="default: the paper's")
    parser.add_argument("--channels", type=int, metavar="C", help="default: the paper's")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="count the activation memory of so many images, layer by layer",
    )
    add_set(
        parser,
        "an option of the architecture (`cnn-depth list keys model`), such as width=0.5",
        "OPTION=VALUE",
    )
    parser.add_argument("--parameters", action="store_true", help="list every parameter too")
    add_json(parser, "JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Print the layers of `args.architecture`.

    Raises:
      cnn_arch.ArchitectureError: unknown architecture, or an image too small for it.
      experiments.config.ConfigError: an unknown option or a value of the wrong type.
    """
    from cnn_arch.census import census
    from experiments import config

    if args.batch_size is not None and args.batch_size < 1:
        raise config.ConfigError(f"--batch-size must be at least 1, not {args.batch_size}")
    options = _options(args.architecture, args.set)
    counted = census(
        args.architecture,
        image_size=args.image_size,
        classes=args.classes,
        channels=args.channels,
        **options,
    )
    parameters = _parameters(args, options) if args.parameters else None
    if args.json:
        json.dump(_as_json(counted, parameters, args.batch_size or 1), sys.stdout, indent=2)
        print()
        return 0
    _print_table(counted, args.batch_size)
    if parameters is not None:
        from clu import parameter_overview

        print(parameter_overview.get_parameter_overview(parameters, include_stats=False))
    return 0


def _options(architecture: str, assignments: list[str]) -> dict[str, Any]:
    """`--set` as the builder's options, checked and typed as in a config's `model`."""
    from experiments import config

    settings = config.base()
    settings.model = config.model(architecture)
    given = {
        key if key.startswith("model.") else f"model.{key}": value
        for key, value in config.parse_set(assignments).items()
    }
    if "model.precision" in given:
        raise config.ConfigError("--set precision: it changes how a network is computed, no layer")
    return config.builder_options(config.override(settings, given, "--set").model)


def _parameters(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Name -> shape and dtype of every parameter, traced and not allocated."""
    from flax import nnx

    import cnn_arch

    network = cnn_arch.abstract(
        args.architecture,
        image_size=args.image_size,
        classes=args.classes,
        channels=args.channels,
        **options,
    )
    return cnn_arch.flat_state(nnx.state(network, nnx.Param))


def _as_json(counted: Census, parameters: dict[str, Any] | None, batch_size: int) -> dict[str, Any]:
    found = counted.to_json()
    found["batch_size"] = batch_size
    found["batch_activation_bytes"] = batch_size * counted.activation_bytes
    if parameters is not None:
        found["parameters"] = {
            name: {"shape": list(value.shape), "dtype": str(value.dtype)}
            for name, value in parameters.items()
        }
    return found


def _print_table(counted: Census, batch_size: int | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("MACs/M", justify="right", no_wrap=True)
    table.add_column("sees", justify="right", no_wrap=True)
    if batch_size is not None:
        table.add_column("MB", justify="right", no_wrap=True)
    for layer in counted.layers:
        table.add_row(
            layer.name,
            _kind(layer),
            "x".join(str(n) for n in layer.output_shape),
            f"{layer.params:,}" if layer.params else "",
            f"{layer.macs / 1e6:,.2f}" if layer.macs else "",
            f"{layer.receptive_field}/{layer.jump}",
            *([] if batch_size is None else [_megabytes(batch_size * layer.activation_bytes)]),
        )
    console = Console(highlight=False)
    console.print(table)
    count = batch_size or 1
    images = "an image" if count == 1 else f"{count} images"
    memory = "" if batch_size is None else f"; MB: the output of {images}"
    console.print(
        "output: height x width x channels; MACs in millions; sees: receptive field/its stride, "
        f"in pixels{memory}",
        style="dim",
        soft_wrap=True,
    )
    lines = [
        f"{counted.name} at {counted.image_size}x{counted.image_size}: "
        f"{counted.depth} weight layers, {counted.params:,} parameters, {counted.macs:,} MACs, "
        f"{counted.neurons:,} neurons",
        f"memory: parameters {_megabytes(4 * counted.training_params)} MB, activations of {images} "
        f"{_megabytes(count * counted.activation_bytes)} MB",
    ]
    if counted.training_params != counted.params:
        lines[0] += f" ({counted.training_params:,} parameters with what serves in training only)"
    for line in lines:
        console.print(line, soft_wrap=True)


def _megabytes(count: int) -> str:
    """Bytes as 10^6 bytes, to three digits."""
    return f"{count / 1e6:,.0f}" if count >= 99.5e6 else f"{count / 1e6:.3g}"


def _kind(layer: LayerRow) -> str:
    """`conv 3x3/2`: the kind, its window where it has one, and its stride where that is not 1."""
    if layer.kernel == 1 and layer.kind != "conv":
        return layer.kind
    stride = f"/{layer.stride}" if layer.stride != 1 else ""
    return f"{layer.kind} {layer.kernel}x{layer.kernel}{stride}"
