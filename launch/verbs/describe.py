"""`cnn-depth describe`: an architecture layer by layer, without allocating its parameters."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from launch.verbs.options import add_options

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
    parser.add_argument("architecture", help="FAMILY:VARIANT, as `cnn-depth list` shows them")
    options = {
        "--image-size PIXELS": "default: the paper's",
        "--classes K": "default: the paper's",
        "--channels C": "default: the paper's",
        "--batch-size N": "count the activation memory of so many images, layer by layer",
        "--set OPTION=VALUE...": "an option of the architecture (`cnn-depth list keys model`), "
        "such as width=0.5",
        "--parameters": "list every parameter too",
        "--json": "print JSON instead of a table",
    }
    add_options(parser, options)


def main(args: argparse.Namespace) -> int:
    """Prints the layers of `args.architecture`.

    Raises ArchitectureError for an unknown network or too small an image, ConfigError for options.
    """
    from cnn_arch.census import census
    from experiments import config

    if args.batch_size is not None and args.batch_size < 1:
        raise config.ConfigError(f"--batch-size must be at least 1, not {args.batch_size}")
    options = _options(args.architecture, args.set)
    options |= {name: getattr(args, name) for name in ("image_size", "classes", "channels")}
    counted = census(args.architecture, **options)
    parameters = _parameters(args.architecture, options) if args.parameters else None
    if args.json:
        batch_size = args.batch_size or 1
        document = counted.to_json()
        document["batch_size"] = batch_size
        document["batch_activation_bytes"] = batch_size * counted.activation_bytes
        if parameters is not None:
            document["parameters"] = {
                name: {"shape": list(value.shape), "dtype": str(value.dtype)}
                for name, value in parameters.items()
            }
        print(json.dumps(document, indent=2))
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
    overrides = {
        key if key.startswith("model.") else f"model.{key}": value
        for key, value in config.parse_set(assignments).items()
    }
    if "model.precision" in overrides:
        raise config.ConfigError("--set precision: it changes how a network is computed, no layer")
    return config.builder_options(config.override(settings, overrides, "--set").model)


def _parameters(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """Name -> shape and dtype of every parameter, traced and not allocated."""
    from flax import nnx

    import cnn_arch

    network = cnn_arch.abstract(architecture, **options)
    return cnn_arch.flat_state(nnx.state(network, nnx.Param))


def _print_table(counted: Census, batch_size: int | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", no_wrap=True)
    memory = ["MB"] if batch_size is not None else []
    for header in ("output", "params", "MACs/M", "sees", *memory):
        table.add_column(header, justify="right", no_wrap=True)
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
    legend = (
        "output: height x width x channels; MACs in millions; sees: receptive field/its stride, "
    )
    legend += "in pixels" + ("" if batch_size is None else f"; MB: the output of {images}")
    console.print(legend, style="dim", soft_wrap=True)
    summary = (
        f"{counted.name} at {counted.image_size}x{counted.image_size}: "
        f"{counted.depth} weight layers, {counted.params:,} parameters, {counted.macs:,} MACs, "
        f"{counted.neurons:,} neurons"
    )
    if counted.training_params != counted.params:
        summary += f" ({counted.training_params:,} parameters with what serves in training only)"
    console.print(summary, soft_wrap=True)
    console.print(
        f"memory: parameters {_megabytes(4 * counted.training_params)} MB, activations of {images} "
        f"{_megabytes(count * counted.activation_bytes)} MB",
        soft_wrap=True,
    )


def _megabytes(count: int) -> str:
    """A number of bytes as megabytes (10^6 bytes), to three digits."""
    return f"{count / 1e6:,.0f}" if count >= 99.5e6 else f"{count / 1e6:.3g}"


def _kind(layer: LayerRow) -> str:
    """`conv 3x3/2`: the kind, its window where it has one, and its stride where that is not 1."""
    if layer.kernel == 1 and layer.kind != "conv":
        return layer.kind
    stride = f"/{layer.stride}" if layer.stride != 1 else ""
    return f"{layer.kind} {layer.kernel}x{layer.kernel}{stride}"
