"""Runs made of other people's weights, and weights files made of runs.

An imported run is a run like any other, but never trained here: its folder has the network in a
checkpoint and, with it, how its images were prepared, so that testing, predicting and seeding work
on it as on a trained one.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import cnn_arch
from cnn_arch import pretrained, weight_files
from cnn_arch.errors import WeightsError
from cnn_arch.pretrained import keras, names
from cnn_arch.weight_files import Which
from experiments import config as configs
from experiments import hugging_face, model_card
from experiments.data import preprocessing
from experiments.runs import runs
from experiments.runs.checkpoints import Checkpoints
from experiments.testing import classifier
from input_pipeline import image_files, resident

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


# In files with our own names, beside the tensors: JSON of what tensors do not show, as bytes.
HEADER = "cnn-depth.json"


def import_run(
    file: Path,
    arch: str | None,
    folder: Path,
    *,
    out: Path | None = None,
    naming: str | None = None,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    renaming: Sequence[names.Rule] = (),
    which: Which | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    origin: Mapping[str, str] | None = None,
) -> runs.Run:
    """The run of a weights file, or of a folder of Hugging Face's; made if it is not there.

    Args:
        file: see `weight_files.read` and `hugging_face.read`; one of `export_run` with our own
            names says what follows.
        arch: the architecture that the weights are of, such as 'resnet:50'; by default what a
            folder says, or a file of ours, or the only one that has such names and shapes.
        folder: where runs are kept; the run's own folder there is named after what it holds.
        out: the run's own folder instead.
        naming: whose names the tensors have; found out by default.
        options: of the architecture, where they differ from what follows from the file; and
            `image_size` and `Q` (pixels), where images shall be prepared differently.
        class_names: by label; ImageNet's or CIFAR-10's by default, where the number fits.
        mean, std: what pixels from 0 to 255 had taken off and were then divided by, one number or
            one a channel (RGB); what the source did by default.
        renaming: of tensors, before their names are understood; see `names.renamed`.
        which: see `weight_files.read`, as is on_note.
        origin: where the file was fetched, which is kept with the run.

    Raises WeightsError where the file can't be read, or a tensor is missing, unknown or of a wrong
    shape; and ArchitectureError, ConfigError or RunError where something asked for can't be.
    """
    model_folder = hugging_face.read(file) if file.is_dir() else None
    path, file = file, model_folder.weights if model_folder else file
    notes: list[str] = []
    tensors = names.unwrapped(weight_files.read(file, which, notes.append))
    tensors = keras.named_as_today(names.renamed(tensors, renaming))
    metadata = model_folder.metadata() if model_folder else _header(file, tensors.pop(HEADER, None))
    arch = _architecture(
        path, arch, model_folder.arch if model_folder else metadata.get("arch"), tensors
    )
    for note in notes:
        on_note(f"{file}: {note}")
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    older = configs.older_options(arch) if metadata and model_folder is None else {}
    options = {**older, **metadata.get("options", {}), **(options or {})}
    overrides = {"class_names": class_names, "mean": mean, "std": std}
    metadata |= {key: value for key, value in overrides.items() if value is not None}
    naming = naming or (model_folder and model_folder.naming) or _naming(file, arch, tensors)
    with _hinting_at_fits(file, tensors):
        sizes = pretrained.arguments(arch, tensors, naming)
    source = pretrained.preprocessing(arch, naming, sha256, sizes["classes"])
    if model_folder and model_folder.images:
        source = model_folder.images
        sizes["image_size"] = source.crop
    config, arguments = _config(arch, sizes, options, source)
    preparation = _preparation(arch, naming, arguments, metadata, source)
    changes = [*map(list, renaming), *(["raw"] if notes and which == "raw" else [])]
    digest = _identity(sha256, naming, config, preparation, changes)
    run = runs.Run(out.resolve() if out else folder / f"{arch.replace(':', '-')}-{digest}")
    if run.read("run") is not None:
        if run.imported != digest:
            raise runs.RunError(f"{run.folder} is there already, and is another run")
        return run
    network = cnn_arch.abstract(arch, **arguments)
    with _hinting_at_fits(file, tensors):
        report = pretrained.load(network, tensors, naming=naming)
    imported = {
        "digest": digest,
        "file": file.name,
        "sha256": sha256,
        "naming": naming,
        "tensors": len(report.used),
        "ignored": sorted(report.ignored),
        "notes": notes,
        "origin": dict(origin or {}),
        "images": None if source is None else asdict(source),
    }
    _, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    arrays = {"params": cnn_arch.flat_state(params), "stats": cnn_arch.flat_state(stats)}
    write_run(run, config, imported, arrays, preparation)
    return run


def _naming(file: Path, arch: str, tensors: pretrained.Tensors) -> str:
    with _hinting_at_fits(file, tensors):
        return pretrained.detect(arch, tensors)


@contextlib.contextmanager
def _hinting_at_fits(file: Path, tensors: pretrained.Tensors) -> Iterator[None]:
    """Adds the file to a WeightsError, and the architectures that its weights fit."""
    try:
        yield
    except WeightsError as error:
        fit = names.fitting(tensors)
        if fit:
            hint = f" They are those of {' or '.join(fit)}: --as {fit[0]}."
        else:
            hint = f" By their names {why}." if (why := keras.why_none_fits(tensors)) else ""
        raise WeightsError(f"{file}: {error}{hint}") from error


def _architecture(
    file: Path, arch: str | None, stated: str | None, tensors: pretrained.Tensors
) -> str:
    """The architecture: as it was asked for, as the file states it, or as alone fits the tensors.

    Raises WeightsError where the file states another than was asked for.
    """
    if arch is not None:
        arch = cnn_arch.full_name(arch)
        if stated is not None and arch != stated:
            raise WeightsError(f"{file} holds the weights of {stated}, not of {arch}.")
        return arch
    if stated is not None:
        return cnn_arch.full_name(stated)
    fit = names.fitting(tensors)
    unsaid = f"{file} does not say its architecture, and"
    if not fit:
        why = keras.why_none_fits(tensors)
        reason = f"none has tensors of these names: {pretrained.some(list(tensors))}"
        raise WeightsError(f"{unsaid} {reason}{why and '; ' + why}; give --as ARCH")
    if len(fit) > 1:
        raise runs.RunError(f"{unsaid} it may be {' or '.join(fit)}; give --as ARCH")
    return fit[0]


def _identity(
    sha256: str,
    naming: str,
    config: ConfigDict,
    preparation: preprocessing.Preprocessing,
    changes: Sequence[Any],
) -> str:
    """Ten hex digits that name an imported run. changes: of its tensors, when they were read."""
    how: list[Any]
    how = [preparation.resize, preparation.warp, preparation.of_view, preparation.mirror_ok]
    how += [preparation.frame] if preparation.frame else []
    how += ["several"] if preparation.several else []
    content: dict[str, Any] = {
        "file": sha256,
        "naming": naming,
        "config": configs.identity_part(config),
        "classes": list(preparation.class_names),
        "images": [preparation.normalise.mean.tolist(), preparation.normalise.std.tolist(), *how],
    }
    if changes:
        content["taken"] = changes
    return hashlib.sha256(repr(content).encode()).hexdigest()[:10]


def export_run(run: runs.Run, file: Path, naming: str, which: str = "last") -> tuple[int, str]:
    """Writes a run's network as a weights file, or as a folder of Hugging Face's.

    It is a folder where the naming is Hugging Face's and `file` does not end as weights files do.
    Returns the number of tensors, and how readers will prepare images otherwise, '' if they won't.

    Raises WeightsError where the file's type is unknown, or the naming has no names for this
    network; ConfigError where the run says boxes, and the naming is one of classifiers; and
    RunError or CheckpointError where the run can't be read.
    """
    if (boxes := run.config().train.boxes) != "none":
        if naming in (pretrained.OWN, hugging_face.NAMING):
            raise configs.ConfigError(
                f"--naming {naming} is of classifiers, and {run.id} says boxes "
                f"(train.boxes={boxes!r}); a naming of tensors alone will do, such as torchvision"
            )
        preparation = preprocessing.load(run.folder / preprocessing.FILE)
        network, _ = classifier.restored(run, which, preparation)
        tensors = pretrained.export(network, naming)
        weight_files.write(file, tensors)
        return len(tensors), ""
    model = classifier.load(run.folder, which)
    tensors = pretrained.export(model.network, naming)
    if naming == hugging_face.NAMING and file.suffix.lower() not in weight_files.SUFFIXES:
        preparation, view = model.preprocessing, model.view
        note = hugging_face.crop_difference(view.Q, view.crop, view.warp).removeprefix("; ")
        texts = {
            hugging_face.CONFIG: hugging_face.config_of(
                model.network, tensors, preparation.class_names, several=preparation.several
            ),
            hugging_face.PROCESSOR: hugging_face.processor_of(preparation, view),
            "README.md": model_card.text(run, model, note),
        }
        hugging_face.write(file, tensors, texts)
        return len(tensors), note
    header = {}
    if naming == pretrained.OWN:
        text = json.dumps(_own(run.config(), model.preprocessing))
        header[HEADER] = np.frombuffer(text.encode(), np.uint8)
    weight_files.write(file, {**tensors, **header})
    return len(tensors), ""


def _own(config: ConfigDict, preparation: preprocessing.Preprocessing) -> dict[str, Any]:
    """What `import_run` needs to know of a run besides its tensors."""
    if preparation.normalise.whitening is not None:
        raise runs.RunError(
            "a network that sees whitened images (data.normalise='gcn_zca') can't be exported: the "
            "file has no place for the whitening"
        )
    options = configs.builder_options(config.model)
    sizes = {"image_size": config.data.image_size, "Q": config.test.Q}
    return {
        "arch": config.model.arch,
        "options": {**options, **sizes},
        "class_names": preparation.class_names,
        "mean": np.asarray(preparation.normalise.mean).tolist(),
        "std": np.asarray(preparation.normalise.std).tolist(),
        "of_view": preparation.of_view,
        "resize": preparation.resize,
        "warp": preparation.warp,
        "mirror_ok": preparation.mirror_ok,
        "frame": preparation.frame,
        **({"several": True} if preparation.several else {}),
    }


def _header(file: Path, content: np.ndarray | None) -> dict[str, Any]:
    """The header of a file with our own names; {} for other files."""
    if content is None:
        return {}
    kinds = {"arch": str, "options": dict, "class_names": list}
    try:
        header = json.loads(content.astype(np.uint8).tobytes())
        names_are_text = all(isinstance(name, str) for name in header["class_names"])
        if not names_are_text or any(not isinstance(header[k], kind) for k, kind in kinds.items()):
            raise ValueError("a value is of another type")
        header["mean"], header["std"] = (
            np.array(header[key], np.float32) for key in ("mean", "std")
        )
        if header.get("resize", "bilinear") not in get_args(image_files.Resize):
            raise ValueError(f"resize {header['resize']!r} is not known")
        frame, side = header.get("frame", 0), header["options"].get("image_size", 0)
        if type(frame) is not int or (frame and not 0 < 2 * frame < side):
            raise ValueError(f"frame {frame!r} leaves no room for an image")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{file}: {HEADER} in it is not as expected ({error}).") from error
    return dict(header)


def _preparation(
    arch: str,
    naming: str,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, Any],
    source: pretrained.Preprocessing | None,
) -> preprocessing.Preprocessing:
    """How the run's images are prepared; mean, deviation and classes of the metadata go first."""
    views = {
        "resize": metadata.get("resize", "bilinear"),
        "warp": metadata.get("warp") is True,
        "of_view": metadata.get("of_view") is True,
        "mirror_ok": metadata.get("mirror_ok") is not False,
        "frame": metadata.get("frame", 0),
    }
    if source is not None:
        views = {"resize": source.resize, "warp": source.warp}
    return preprocessing.Preprocessing(
        normalise=_normalisation(arch, source, arguments["channels"], metadata),
        class_names=_class_names(arguments["classes"], naming, metadata.get("class_names")),
        channels=arguments["channels"],
        several=metadata.get("several") is True,
        **views,
    )


def _config(
    arch: str,
    arguments: dict[str, Any],
    options: dict[str, Any],
    source: pretrained.Preprocessing | None,
) -> tuple[ConfigDict, dict[str, Any]]:
    """The run's config, and the arguments of `cnn_arch.create` that agree with it."""
    size_keys = {"image_size", "classes", "channels"}
    sizes = {key: arguments[key] for key in size_keys}
    model_options = {key: value for key, value in arguments.items() if key not in size_keys}
    config = configs.base()
    config.data.name = ""  # it was not trained here
    config.data.image_size = sizes["image_size"]
    if source is not None:  # in proportion, where the network is for other images
        config.test.Q = round(source.short_side * sizes["image_size"] / source.crop)
    config.model = configs.model(arch, **model_options)
    # Published figures were measured in float32. bfloat16 has no other precision than its own.
    dtype = options.get("dtype", config.model.get("dtype", "float32"))
    config.model.precision = "default" if dtype == "bfloat16" else "highest"
    keys = {"image_size": "data.image_size", "Q": "test.Q"}
    overrides = {keys.get(key, f"model.{key}"): value for key, value in options.items()}
    config = configs.override(config, overrides, "--set")
    sizes["image_size"] = config.data.image_size
    return config, {**sizes, **configs.builder_options(config.model)}


def _class_names(classes: int, naming: str, class_names: Sequence[str] | None) -> tuple[str, ...]:
    if class_names is not None:
        if len(class_names) != classes:
            raise runs.RunError(
                f"the network has {classes} classes, and {len(class_names)} are named"
            )
        odd = [name for name in class_names if not name.strip() or not name.isprintable()]
        if odd or len(set(class_names)) != classes:
            twice = next((name for name in class_names if list(class_names).count(name) > 1), "")
            raise runs.RunError(
                f"names of classes must be text, each once; got {(odd or [twice])[0]!r}"
            )
        return tuple(class_names)
    if classes == 1000:
        return image_files.imagenet_classes()[1]
    if classes == 10 and naming in ("cifar", "pytorch-cifar-models", "kuangliu", "chengyangfu"):
        return CIFAR10_CLASSES
    return tuple(map(str, range(classes)))


def _normalisation(
    arch: str, source: pretrained.Preprocessing | None, channels: int, metadata: Mapping[str, Any]
) -> resident.Normalisation:
    if source is None and not {"mean", "std"} <= metadata.keys():
        raise runs.RunError(
            f"the weights do not say how the images of {arch} were prepared; give the mean that "
            "was taken off and the deviation that was divided by, for pixels from 0 to 255 "
            "(--mean 0 --std 1 for pixels as they are)"
        )
    values = []
    for key in ("mean", "std"):
        value = np.asarray(metadata[key] if key in metadata else getattr(source, key), np.float32)
        fits = value.shape in ((), (1,), (channels,))
        if key == "mean" and value.ndim == 3:  # a mean image
            fits = value.shape[2] == channels
        if not fits or not np.isfinite(value).all():
            raise runs.RunError(f"{key} must be one number, or one for each of {channels} channels")
        values.append(value)
    if not (values[1] > 0).all():
        raise runs.RunError("std must be above 0")
    return resident.Normalisation(*values)


def write_run(
    run: runs.Run,
    config: ConfigDict,
    imported: Mapping[str, Any],
    arrays: dict[str, Any],
    preparation: preprocessing.Preprocessing,
) -> None:
    """Makes the folder of a run that was not trained, at once or not at all.

    imported: where its network comes from; its `digest` tells it from others. arrays: its `params`
    and `stats` by name. Raises RunError where it can't be written.
    """
    partial = run.folder.with_name(f".{run.id}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        checkpoints = Checkpoints(partial / "checkpoints")
        checkpoints.save(0, arrays, {})
        checkpoints.close()
        preprocessing.save(partial / preprocessing.FILE, preparation)
        description = runs.description(run, config, fingerprint="", label={"imported": imported})
        runs.write_json(partial / "run.json", description)
        os.rename(partial, run.folder)
    except OSError as error:
        raise runs.RunError(f"{run.folder} can't be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
