"""`cnn-depth weights`: other people's weights into a run, and a run's weights into a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launch.verbs.options import RUN, add_options, add_runs_and_json

HELP = """\
Make a run of a weights file (`import`), or a weights file of a run (`export`).

Files are safetensors, .npz, torch .pth (old and new containers; nothing in them is executed),
.caffemodel and Keras's .h5 and .keras, by their content. Their tensors are named as in torchvision,
timm, Hugging Face's transformers, two releases of CIFAR ResNets (`cifar`, `pytorch-cifar-models`),
Caffe, Keras, or here (`cnn-depth`). Every tensor is accounted for. What follows from the source
comes along: where a ResNet has its strides, Caffe's normalisation constants, and how images are
prepared, so that `evaluate` and `predict` need no further options."""
EXAMPLE = """
cnn-depth weights import resnet50-0676ba61.pth --as resnet:50
cnn-depth weights import VGG_ILSVRC_16_layers.caffemodel --as vgg:D --out runs/vgg16
cnn-depth weights import checkpoint.pth --as resnet:50 --which-weights raw --map 'head.*=fc.*'
cnn-depth weights export residual_depth/resnet-44 --naming cifar --out resnet44.safetensors
cnn-depth weights export resnet/resnet-50 --naming huggingface --out my-resnet50
cnn-depth weights import vgg16_weights_tf_dim_ordering_tf_kernels.h5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="import|export")
    import_parser = actions.add_parser("import", help="make a run of a weights file")
    file_help = (
        "or a folder of Hugging Face's; or hf:USER/REPO@REVISION, timm:NAME, torchvision:NAME"
    )
    import_parser.add_argument("file", type=Path, metavar="FILE", help=file_help)
    add_import_arguments(import_parser)
    add_options(import_parser, {"--out DIR": "the run's folder"})
    export_parser = actions.add_parser("export", help="make a weights file of a run")
    export_parser.add_argument("run", help=RUN)
    naming_help = "torchvision, caffe or another one of docs/weights.md (default: cnn-depth)"
    add_options(export_parser, {"--naming NAMING": naming_help}, naming="cnn-depth")
    endings = "ends in .safetensors, .npz, .pth, .caffemodel or .h5; with huggingface else a folder"
    export_parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=endings)
    add_options(export_parser, {"--which last|best": "checkpoint"}, which="last")
    for action in (import_parser, export_parser):
        add_runs_and_json(action)


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of an import other than its file."""
    arch_help = "the architecture the weights are of, such as resnet:50 (default: found out)"
    range_ = ", 0 to 255, in RGB order (default: as the source has it)"
    parser.add_argument("--as", dest="arch", metavar="ARCH", help=arch_help)
    options = {
        "--naming NAMING": "default: found out by the names",
        "--set OPTION=VALUE...": "an option of the architecture, image_size or Q; may be repeated",
        "--mean X[,X,X]": f"taken off pixels{range_}",
        "--std X[,X,X]": f"that they are then divided by{range_}",
        "--classes FILE": "names of the classes, one a line, by label",
        "--which-weights raw|average": "of a file that has both the weights and their average over "
        "the training, such as model_ema (default: the average)",
    }
    add_options(parser, options)
    map_help = (
        "another name for a tensor; * stands for any text, FROM= leaves it out; or a FILE of such"
    )
    parser.add_argument(
        "--map", action="append", default=[], metavar="FROM=TO|FILE", help=f"{map_help} lines"
    )


def import_weights(file: Path, args: argparse.Namespace, out: Path | None = None) -> Any:
    """Makes a run of a weights file, with the options of `add_import_arguments`."""
    from cnn_arch.pretrained import names as tensor_names
    from experiments import config, hubs, weights
    from experiments.runs import runs

    names, origin = None, None
    if args.classes is not None:
        try:
            names = args.classes.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise runs.RunError(f"--classes {args.classes} can't be read: {error}") from error
    if hubs.is_name(str(file)):
        fetched = hubs.fetch(str(file))
        file, origin = fetched.path, fetched.origin
    return weights.import_run(
        file,
        args.arch,
        runs.root(args.runs),
        out=out,
        naming=args.naming,
        options=config.parse_set(args.set),
        class_names=names,
        mean=args.mean,
        std=args.std,
        renaming=tensor_names.rules(args.map),
        which=args.which_weights,
        on_note=lambda note: print(note, file=sys.stderr),
        origin=origin,
    )


def _assumed(run: Any, images: dict[str, Any] | None) -> str:
    """How images will be prepared, which the weights file itself does not say."""
    from experiments.data import preprocessing

    config = run.config()
    prepared = preprocessing.load(run.folder / preprocessing.FILE)
    mean, std = (
        "the mean image" if value.ndim == 3 else ", ".join(f"{x:g}" for x in value.reshape(-1))
        for value in (prepared.normalise.mean, prepared.normalise.std)
    )
    order = "RGB" if prepared.channels == 3 else "grey"
    source = f" (the source's were {images['colour_order']})" if images else ""
    size = config.test.Q or config.data.image_size
    scaled = (
        f"warped to {size}x{size}" if prepared.warp else f"short side {size - 2 * prepared.frame}"
    )
    framed = f" in a black frame of {prepared.frame}" if prepared.frame else ""
    lines = [
        f"images: {order}{source}, minus {mean}, divided by {std}, {scaled} ({prepared.resize}), "
        f"central crop {config.data.image_size - 2 * prepared.frame}{framed}; "
        "--mean, --std and --set Q=PIXELS say otherwise"
    ]
    if images:
        release = images["weights"] or "no published file that is known here: by its naming"
        lines.append(f"as published for {release} ({images['source']})")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    from launch import devices

    devices.set_up()
    devices.start()
    from experiments import weights
    from experiments.runs import names, runs

    if args.action == "import":
        run = import_weights(args.file, args, args.out)
        source = run.read("run")["imported"]
        document = {"run": run.id, "folder": str(run.folder), **source}
        ignored = f", {len(source['ignored'])} ignored" if source["ignored"] else ""
        text = f"{run.folder}: {source['tensors']} tensors as named by {source['naming']}{ignored}"
        text += f"\n{_assumed(run, source['images'])}"
    else:
        run = names.find_run(args.run, runs.root(args.runs))
        count, note = weights.export_run(run, args.out, args.naming, args.which)
        document = {"run": run.id, "file": str(args.out), "naming": args.naming, "tensors": count}
        text = f"{args.out}: {count} tensors as named by {args.naming}"
        if note:
            document |= {"note": note}
            text += f"\n{note}"
    print(json.dumps(document, indent=1) if args.json else text)
    return 0
