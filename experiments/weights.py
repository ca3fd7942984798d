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
    found = hugging_face.read(file) if file.is_dir() else None
    asked, file = file, found.weights if found else file
    notes: list[str] = []
    tensors = names.unwrapped(weight_files.read(file, which, notes.append))
    tensors = keras.named_as_today(names.renamed(tensors, renaming))
    told = found.told() if found else _header(file, tensors.pop(HEADER, None))
    arch = _agreed(asked, arch, found.arch if found else told.get("arch"), tensors)
    for note in notes:
        on_note(f"{file}: {note}")
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    options = {**told.get("options", {}), **(options or {})}
    given = {"class_names": class_names, "mean": mean, "std": std}
    told |= {key: value for key, value in given.items() if value is not None}
    naming = naming or (found and found.naming) or _naming(file, arch, tensors)
    with _told_what_fits(file, tensors):
        sizes = pretrained.arguments(arch, tensors, naming)
    source = pretrained.preprocessing(arch, naming, sha256, sizes["classes"])
    if found and found.images:
        source = found.images
        sizes["image_size"] = source.crop
    config, arguments = _config(arch, sizes, options, source)
    seen = _seen(arch, naming, arguments, told, source)
    taken = [*map(list, renaming), *(["raw"] if notes and which == "raw" else [])]
    digest = _identity(sha256, naming, config, seen, taken)
    run = runs.Run(out.resolve() if out else folder / f"{arch.replace(':', '-')}-{digest}")
    if run.read("run") is not None:
        if run.imported != digest:
            raise runs.RunError(f"{run.folder} is there already, and is another run")
        return run
    network = cnn_arch.abstract(arch, **arguments)
    with _told_what_fits(file, tensors):
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
    write_run(run, config, imported, arrays, seen)
    return run


def _naming(file: Path, arch: str, tensors: pretrained.Tensors) -> str:
    with _told_what_fits(file, tensors):
        return pretrained.detect(arch, tensors)


@contextlib.contextmanager
def _told_what_fits(file: Path, tensors: pretrained.Tensors) -> Iterator[None]:
    """Adds to a refusal the file, and the architectures whose weights it has."""
    try:
        yield
    except WeightsError as error:
        fit = names.fitting(tensors)
        if fit:
            hint = f" They are those of {' or '.join(fit)}: --as {fit[0]}."
        else:
            hint = f" By their names {why}." if (why := keras.why_none_fits(tensors)) else ""
        raise WeightsError(f"{file}: {error}{hint}") from error


def _agreed(file: Path, arch: str | None, said: str | None, tensors: pretrained.Tensors) -> str:
    """The architecture: as was asked for, and as the file says, or as the tensors are of it."""
    if arch is not None:
        arch = cnn_arch.full_name(arch)
        if said is not None and arch != said:
            raise WeightsError(f"{file} holds the weights of {said}, not of {arch}.")
        return arch
    if said is not None:
        return cnn_arch.full_name(said)
    fit = names.fitting(tensors)
    unsaid = f"{file} does not say its architecture, and"
    if not fit:
        why = keras.why_none_fits(tensors)
        seen = f"none has tensors of these names: {pretrained.some(list(tensors))}"
        raise WeightsError(f"{unsaid} {seen}{why and '; ' + why}; give --as ARCH")
    if len(fit) > 1:
        raise runs.RunError(f"{unsaid} it may be {' or '.join(fit)}; give --as ARCH")
    return fit[0]


def _identity(
    sha256: str,
    naming: str,
    config: ConfigDict,
    seen: preprocessing.Preprocessing,
    taken: Sequence[Any],
) -> str:
    """Ten hex digits that name an imported run. taken: how its tensors were, where not as usual."""
    how: list[Any] = [seen.resize, seen.warp, seen.of_view, seen.mirror_ok]
    how += [seen.frame] if seen.frame else []
    how += ["several"] if seen.several else []
    content: dict[str, Any] = {
        "file": sha256,
        "naming": naming,
        "config": configs.identity_part(config),
        "classes": list(seen.class_names),
        "images": [seen.normalise.mean.tolist(), seen.normalise.std.tolist(), *how],
    }
    if taken:
        content["taken"] = taken
    return hashlib.sha256(repr(content).encode()).hexdigest()[:10]


def export_run(run: runs.Run, file: Path, naming: str, which: str = "last") -> tuple[int, str]:
    """Writes a run's network as a weights file, or as a folder of Hugging Face's.

    A folder it is with that naming and a name that does not end as weights files do. Returns the
    number of tensors, and how images will be seen otherwise by whoever reads it, '' if they won't.

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
        seen = preprocessing.load(run.folder / preprocessing.FILE)
        network, _ = classifier.restored(run, which, seen)
        tensors = pretrained.export(network, naming)
        weight_files.write(file, tensors)
        return len(tensors), ""
    model = classifier.load(run.folder, which)
    tensors = pretrained.export(model.network, naming)
    if naming == hugging_face.NAMING and file.suffix.lower() not in weight_files.SUFFIXES:
        seen, view = model.seen, model.view
        note = hugging_face.where_it_differs(view.Q, view.crop, view.warp).removeprefix("; ")
        texts = {
            hugging_face.CONFIG: hugging_face.config_of(
                model.network, tensors, seen.class_names, several=seen.several
            ),
            hugging_face.PROCESSOR: hugging_face.processor_of(seen, view),
            "README.md": model_card.text(run, model, note),
        }
        hugging_face.write(file, tensors, texts)
        return len(tensors), note
    own = {}
    if naming == pretrained.OWN:
        text = json.dumps(_own(run.config(), model.seen))
        own[HEADER] = np.frombuffer(text.encode(), np.uint8)
    weight_files.write(file, {**tensors, **own})
    return len(tensors), ""


def _own(config: ConfigDict, seen: preprocessing.Preprocessing) -> dict[str, Any]:
    """What `import_run` needs to know of a run besides its tensors."""
    if seen.normalise.whitening is not None:
        raise runs.RunError(
            "a network that sees whitened images (data.normalise='gcn_zca') can't be exported: the "
            "file has no place for the whitening"
        )
    options = configs.builder_options(config.model)
    sizes = {"image_size": config.data.image_size, "Q": config.test.Q}
    return {
        "arch": config.model.arch,
        "options": {**options, **sizes},
        "class_names": seen.class_names,
        "mean": np.asarray(seen.normalise.mean).tolist(),
        "std": np.asarray(seen.normalise.std).tolist(),
        "of_view": seen.of_view,
        "resize": seen.resize,
        "warp": seen.warp,
        "mirror_ok": seen.mirror_ok,
        "frame": seen.frame,
        **({"several": True} if seen.several else {}),
    }


def _header(file: Path, content: np.ndarray | None) -> dict[str, Any]:
    """The header of a file with our own names; of others, nothing."""
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


def _seen(
    arch: str,
    naming: str,
    arguments: Mapping[str, Any],
    told: Mapping[str, Any],
    source: pretrained.Preprocessing | None,
) -> preprocessing.Preprocessing:
    """How the run's images are prepared: as was told, else as the source did."""
    views = {
        "resize": told.get("resize", "bilinear"),
        "warp": told.get("warp") is True,
        "of_view": told.get("of_view") is True,
        "mirror_ok": told.get("mirror_ok") is not False,
        "frame": told.get("frame", 0),
    }
    if source is not None:
        views = {"resize": source.resize, "warp": source.warp}
    return preprocessing.Preprocessing(
        normalise=_normalisation(arch, source, arguments["channels"], told),
        class_names=_class_names(arguments["classes"], naming, told.get("class_names")),
        channels=arguments["channels"],
        several=told.get("several") is True,
        **views,
    )


def _config(
    arch: str,
    arguments: dict[str, Any],
    options: dict[str, Any],
    source: pretrained.Preprocessing | None,
) -> tuple[ConfigDict, dict[str, Any]]:
    """The run's config, and the arguments of `cnn_arch.create` that agree with it."""
    own = {"image_size", "classes", "channels"}
    sizes = {key: arguments[key] for key in own}
    given = {key: value for key, value in arguments.items() if key not in own}
    config = configs.base()
    config.data.name = ""  # it was not trained here
    config.data.image_size = sizes["image_size"]
    if source is not None:  # in proportion, where the network is for other images
        config.test.Q = round(source.short_side * sizes["image_size"] / source.crop)
    config.model = configs.model(arch, **given)
    # Published figures were measured in float32. bfloat16 has no other precision than its own.
    dtype = options.get("dtype", config.model.get("dtype", "float32"))
    config.model.precision = "default" if dtype == "bfloat16" else "highest"
    keys = {"image_size": "data.image_size", "Q": "test.Q"}
    overrides = {keys.get(key, f"model.{key}"): value for key, value in options.items()}
    config = configs.override(config, overrides, "--set")
    sizes["image_size"] = config.data.image_size
    return config, {**sizes, **configs.builder_options(config.model)}


def _class_names(classes: int, naming: str, given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != classes:
            raise runs.RunError(f"the network has {classes} classes, and {len(given)} are named")
        odd = [name for name in given if not name.strip() or not name.isprintable()]
        if odd or len(set(given)) != classes:
            twice = next((name for name in given if list(given).count(name) > 1), "")
            raise runs.RunError(
                f"names of classes must be text, each once; got {(odd or [twice])[0]!r}"
            )
        return tuple(given)
    if classes == 1000:
        return image_files.imagenet_classes()[1]
    if classes == 10 and naming in ("cifar", "pytorch-cifar-models", "kuangliu", "chengyangfu"):
        return CIFAR10_CLASSES
    return tuple(map(str, range(classes)))


def _normalisation(
    arch: str, source: pretrained.Preprocessing | None, channels: int, told: Mapping[str, Any]
) -> resident.Normalisation:
    if source is None and not {"mean", "std"} <= told.keys():
        raise runs.RunError(
            f"the weights do not say how the images of {arch} were prepared; give the mean that "
            "was taken off and the deviation that was divided by, for pixels from 0 to 255 "
            "(--mean 0 --std 1 for pixels as they are)"
        )
    values = []
    for what in ("mean", "std"):
        value = np.asarray(told[what] if what in told else getattr(source, what), np.float32)
        fits = value.shape in ((), (1,), (channels,))
        if what == "mean" and value.ndim == 3:  # a mean image
            fits = value.shape[2] == channels
        if not fits or not np.isfinite(value).all():
            raise runs.RunError(
                f"{what} must be one number, or one for each of {channels} channels"
            )
        values.append(value)
    if not (values[1] > 0).all():
        raise runs.RunError("std must be above 0")
    return resident.Normalisation(*values)


def write_run(
    run: runs.Run,
    config: ConfigDict,
    imported: Mapping[str, Any],
    arrays: dict[str, Any],
    seen: preprocessing.Preprocessing,
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
        preprocessing.save(partial / preprocessing.FILE, seen)
        about = runs.description(run, config, fingerprint="", label={"imported": imported})
        runs.write_json(partial / "run.json", about)
        os.rename(partial, run.folder)
    except OSError as error:
        raise runs.RunError(f"{run.folder} can't be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
