"""A file and overrides -> one checked config.

A config file is Python with `get_config(arg=None) -> ConfigDict`, built on `base()`, and, for a
study, `sweep()`, which yields `(row name, overrides)`. The reserved override `seed_from` names the
row whose trained network seeds this one. Files of `experiments/studies` are addressed by name
(`vgg_depth`), others by path; `name:arg` hands `arg` to `get_config`, and to a `sweep(arg)`.
"""

import ast
import difflib
import importlib.util
import inspect
import itertools
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

import cnn_arch
from cnn_arch import execution, seeding
from experiments.text import visible
from input_pipeline.sources import is_streamed

CONFIGS = Path(__file__).parent / "studies"

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer.kind": ("sgd", "sdlm"),
    "model.precision": execution.PRECISIONS,
    "train.scan": ("auto", "always", "never"),
    "seeding.kind": seeding.KINDS,
    "seeding.classifier": ("copy", "fresh", "in_order"),
    "seeding.normalise": ("inherit", "fit"),
    "data.view": ("scale", "square", "area"),
    "data.colour": (
        "none",
        "pca_public",
        "pca_fitted",
        "pca_paper",
        "photometric",
        "photometric+pca_public",
    ),
    "data.normalise": ("per_pixel", "per_channel", "fixed", "none", "gcn_zca", "lenet"),
    "data.bad": ("skip", "raise"),
    "schedule.kind": ("constant", "steps", "cosine", "plateau"),
    "schedule.warmup": ("none", "constant", "linear", "until_error"),
}


class Bounds(NamedTuple):
    """What a number may be: from `low` to `high`, these included unless told otherwise."""

    low: float
    high: float
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded

    def hold(self, value: float) -> bool:
        """Whether `value` lies within; NaN does not."""
        low, high = self.low, self.high
        return (low < value if self.above else low <= value) and (
            value < high if self.below else value <= high
        )

    def __str__(self) -> str:
        low, high = (int(v) if v == int(v) else v for v in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low} and " + (
            f"{'below' if self.below else 'at most'} {high}"
        )


# Every number that a config has, and each part of a tuple of numbers. A high bound lies far beyond
# whatever is useful, so that a slip of the hand is told before any work.
MOST = 2**31 - 1  # steps, images, seeds: as JAX counts
SIDE, BATCH, EPOCHS = 16384, 2**20, 1e6
BOUNDS: dict[str, Bounds] = {
    "data.image_size": Bounds(1, SIDE),
    "data.S": Bounds(0, SIDE),
    "data.pad": Bounds(0, SIDE),
    "data.frame": Bounds(0, SIDE),
    "data.distort": Bounds(0, 1),
    "data.area": Bounds(0, 1, above=True),
    "data.aspect": Bounds(0.01, 100),
    "data.mean": Bounds(0, 255),
    "data.split": Bounds(0, 0.9),
    "data.holdout": Bounds(0, 0.9),
    "data.statistics_images": Bounds(0, MOST),
    "data.max_bad": Bounds(0, 1),
    "data.threads": Bounds(0, 1024),
    "optimizer.mu": Bounds(1e-9, 1e9),
    "optimizer.patterns": Bounds(1, MOST),
    "optimizer.momentum": Bounds(0, 0.9999),
    "optimizer.weight_decay": Bounds(0, 10),
    "optimizer.clip_norm": Bounds(0, 1e9),
    "optimizer.rates": Bounds(0, 1e4, above=True),
    "schedule.lr": Bounds(1e-12, 1e4),
    "schedule.milestones": Bounds(0, 1, above=True, below=True),
    "schedule.factor": Bounds(0, 1, above=True, below=True),
    "schedule.factors": Bounds(1e-9, 1e4),
    "schedule.drops": Bounds(0, 1000),
    "schedule.patience": Bounds(1, 1e6),
    "schedule.warmup_lr": Bounds(0, 1e4),
    "schedule.warmup_steps": Bounds(0, MOST),
    "schedule.warmup_part": Bounds(0, 1, below=True),
    "schedule.warmup_error": Bounds(0, 100, above=True, below=True),
    "train.batch_size": Bounds(1, BATCH),
    "train.epochs": Bounds(0, EPOCHS),
    "train.steps": Bounds(0, MOST),
    "train.accumulate": Bounds(1, BATCH),
    "train.label_smoothing": Bounds(0, 0.999),
    "train.until_error": Bounds(0, 100, below=True),
    "train.ema": Bounds(0, 0.999999),
    "train.steps_per_dispatch": Bounds(0, 1e6),
    "train.log_every_epochs": Bounds(1e-9, EPOCHS),
    "train.validate_every_epochs": Bounds(1e-9, EPOCHS),
    "test.Q": Bounds(0, SIDE),
    "test.batch_size": Bounds(1, BATCH),
    "test.curve_epochs": Bounds(0, EPOCHS),
    "checkpoint.every_seconds": Bounds(0, 1e9),
    "checkpoint.every_steps": Bounds(0, MOST),
    "seed": Bounds(0, MOST),
}
# What to write instead, where the number that was given shows what was meant.
HINTS = {
    "schedule.milestones": "they are parts of the training: epoch 30 of 90 is 30/90",
    "schedule.factor": "it is what the rate is multiplied by; schedule.kind=constant keeps a rate",
    "schedule.warmup_part": "it is a part of the training: 5 epochs of 90 are 5/90",
    "optimizer.rates": "optimizer.freeze keeps parameters as they are",
    "data.area": "it is a share of the image, such as 0.08,1",
}
# Where and how a run executes, not what it computes: no part of its identity.
# `data.path` is no part of it either: what the file holds is.
EXECUTION = (
    "checkpoint",
    "train.steps_per_dispatch",
    "train.scan",
    "train.remat",
    "train.deterministic",
    "train.log_every_epochs",
    "test.curve_epochs",
    "test.curve_seen",
    "data.path",
    "data.bad",
    "data.max_bad",
    "data.threads",
)
# Keys that are newer than the identity's format, and the values at which runs are what they were
# before: with these they are no part of the identity.
ADDED: dict[str, Any] = {
    "data.frame": 0,
    "data.distort": 0.0,
    "optimizer.kind": "sgd",
    "optimizer.mu": 0.02,
    "optimizer.patterns": 500,
    "schedule.factors": (),
    "train.until_error": 0.0,
    "data.exif": False,
    "optimizer.rates": (),
    "schedule.warmup_part": 0.0,
    "model.precision": "default",
    "seeding.normalise": "inherit",
    "model.head": "average",
    "model.head_dropout": 0.0,
    "data.split": 0.0,
}
# Of encoded images only: of small sets, they are no part of the identity.
STREAMED_ONLY = ("view", "area", "aspect", "colour", "mean", "statistics_images", "exif")
FITTED = ("pca_fitted", "pca_paper")  # colours whose constants the training images give
# What the parts of a tuple are.
PARTS: dict[str, type] = {
    "data.S": int,
    "data.area": float,
    "data.aspect": float,
    "data.mean": float,
    "optimizer.decay": str,
    "optimizer.freeze": str,
    "optimizer.rates": tuple,
    "schedule.milestones": float,
    "schedule.factors": float,
    "seeding.mapping": tuple,
}

# Tuples that always have so many parts; a single number stands for all of them.
LENGTHS = {"data.S": 2, "data.area": 2, "data.aspect": 2, "data.mean": 3}
# Of tuples of pairs: what the second part of a pair is, and what the pair is called.
PAIRS: dict[str, tuple[Any, str]] = {
    "seeding.mapping": (str, "patterns (old, new)"),
    "optimizer.rates": (int | float, "a pattern and a number (names, factor)"),
}


MOST_ROWS = 100_000  # of a sweep


class ConfigError(ValueError):
    """A config file, key or value that can't be used; the message says which and what would do."""

    user_error = True


def base() -> ml_collections.ConfigDict:
    """Every key that a config has, with its default. Sizes are pixels, errors percent."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            # `arch` and the options of its builder (see `cnn_arch.options`); fill with `model()`.
            # precision: at which float32 is multiplied, in training and in tests. `default` is
            # the device's own: float32 on a CPU, TF32 on an NVIDIA GPU, one pass in bfloat16 on a
            # TPU. `high` is TF32 and three passes; `highest` is float32 (on a TPU, six passes).
            "model": {"arch": "", "precision": "default"},
            "data": {
                "name": "digits",
                "path": "",  # file or folder of a data set that is read from there
                # Of a folder of classes without train and val: the share of each class that is the
                # test. File names alone decide which images these are, not `seed`. 0 is off.
                "split": 0.0,
                "image_size": 32,  # the network's input: the train and test crop
                "S": (0, 0),  # short side in training, drawn from S[0]..S[1]; 0 is the crop's size
                "pad": 0,  # shift: pad by this much, then crop at random
                "mirror": False,
                # Of small sets: so many black pixels are put around each image, which is not
                # scaled; 2 makes MNIST's 28 pixels the 32 that LeNet-5 sees.
                "frame": 0,
                # Of small sets: this share of the training images is shown distorted by a random
                # planar affine map (translation, scale, squeeze, shear), drawn anew in each pass.
                "distort": 0.0,
                # Of encoded images: a crop at scale S, one of AlexNet's square, or GoogLeNet's.
                "view": "scale",
                "area": (0.08, 1.0),  # view "area": share of the image, drawn from area[0]..area[1]
                "aspect": (3 / 4, 4 / 3),  # and width / height
                "colour": "none",  # how the colours of training views are changed
                # Mean that is taken off; gcn_zca whitens; lenet: black is -0.1 and white 1.175.
                "normalise": "per_channel",
                "mean": (123.68, 116.779, 103.939),  # normalise "fixed": VGG's of ILSVRC, R, G, B
                "divide_by_std": False,  # one deviation over all pixels
                "statistics_images": 10000,  # encoded images that means are taken from; 0: all
                # Whether images are turned as their EXIF orientation says. ImageNet's published
                # networks saw them as they are stored.
                "exif": False,
                "holdout": 0.1,  # part of the training set kept for `best` and the plateaus
                "bad": "skip",  # files that are no images: skip or raise
                "max_bad": 0.001,  # share of the images that may be skipped
                "threads": 0,  # that decode images; 0: one a core
            },
            "optimizer": {
                # sgd; or sdlm, stochastic diagonal Levenberg-Marquardt, LeNet-5's: each weight's
                # rate is divided by `mu` plus its second derivative, over so many training images.
                "kind": "sgd",
                "mu": 0.02,
                "patterns": 500,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,  # L2, added to the gradient
                "decay": ("*kernel",),  # name patterns of the parameters that it touches
                "lr_in_velocity": False,  # v <- mu v - lr g, as AlexNet's paper has it
                "clip_norm": 0.0,  # global norm; 0 is off
                # Name patterns of the parameters that stay as they are, such as ("stage*",): their
                # gradients are not computed. A batch normalisation whose scale and bias are both
                # frozen keeps its running statistics, and is normalised with them in training too.
                "freeze": (),
                # ((name pattern, factor), ...): what the rate is multiplied by for parameters that
                # a pattern matches; of several, all.
                "rates": (),
            },
            "schedule": {
                "kind": "steps",
                "lr": 0.1,
                "milestones": (0.5, 0.75),  # steps: where lr drops, as parts of the training
                "factor": 0.1,
                # Steps: what lr is multiplied by from each milestone on, instead of by powers of
                # `factor`; as many numbers as milestones.
                "factors": (),
                "drops": 3,  # plateau: lr drops at most this often
                "patience": 5,  # plateau: validations without a better error
                "warmup": "none",
                "warmup_lr": 0.01,
                "warmup_steps": 0,  # where it ends; until_error: at latest (0: no end)
                # Where it ends as a part of the training; if not 0, counts instead of warmup_steps.
                "warmup_part": 0.0,
                "warmup_error": 80.0,  # until_error: training error below which it ends
            },
            "train": {
                "batch_size": 128,
                "epochs": 10.0,
                "steps": 0,  # if not 0, counts instead of epochs
                # If not 0, training ends where a line of the log has a lower training error, in
                # percent: the mean over the `log_every_epochs` before it, in training.
                "until_error": 0.0,
                "accumulate": 1,  # micro-batches a step
                "label_smoothing": 0.0,
                # Decay of the averages of parameters and of batch normalisation's running
                # statistics, which are tested; 0 is off. After t steps the decay is at most
                # (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage: until `ema` is
                # reached, the average is of about the last tenth of the steps. Dividing by
                # 1 - ema^t, as Adam does, would average all steps of a short training, its bad
                # beginning too (measured: 4.4% against 2.8% on digits, 0.9999 over 219 steps).
                "ema": 0.0,
                "steps_per_dispatch": 0,  # 0: 1 on CPU, where a scan is slow, else 32
                "scan": "auto",  # stages of equal blocks as a loop: compiled faster, slower steps
                "remat": False,  # stages' inner maps computed again for the gradients: less memory
                "deterministic": False,  # on GPU: the same bits each time, by slower kernels
                "log_every_epochs": 1.0,
                "validate_every_epochs": 1.0,
            },
            "test": {
                "Q": 0,  # short side of the test image; 0 is the crop's size
                "batch_size": 128,
                "curve_epochs": 0.0,  # if not 0: epochs between test errors that are only logged
                "curve_seen": False,  # whether the training images are tested too, each time
            },
            "checkpoint": {"every_seconds": 60.0, "every_steps": 0},
            "seeding": {
                "run": "",  # set by `seed_from`: the run whose network seeds this one
                "weights": "",  # and, where that was imported, what its weights are
                "kind": "copy",  # or "grow": new layers start as the identity
                # What is copied, ((old pattern, new pattern), ...); none: all of the same
                # architecture, and of a shallower VGG what its paper copies.
                "mapping": (),
                # "copy": the last layer too, and the classes must be the same in the same order;
                # "in_order": whatever they are called; "fresh": not the last layer.
                "classifier": "copy",
                # "inherit": mean, deviation, whitening and resizing of images are the seeding
                # run's, whose network learnt with them, and data.normalise, data.mean and
                # data.divide_by_std do not count. "fit": as these say, from this run's own images.
                "normalise": "inherit",
            },
        }
    ).lock()


def model(arch: str, **options: Any) -> ml_collections.ConfigDict:
    """The `model` part of a config: `arch` with all its keys, some of them given."""
    arch = cnn_arch.full_name(arch)
    known = _model_keys(arch)
    for key in options:
        if key not in known:
            raise ConfigError(_unknown(f"model.{key}", [f"model.{k}" for k in known], arch))
    options = {k: _typed(f"model.{k}", v, known[k], arch) for k, v in options.items()}
    return ml_collections.ConfigDict({"arch": arch, **known, **options})


def _model_keys(arch: str) -> dict[str, Any]:
    """The keys of `model` beside `arch`, with their defaults."""
    return {"precision": "default", **cnn_arch.options(arch)}


def builder_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """What of the `model` part of a config the architecture's builder takes."""
    return {key: value for key, value in model.items() if key not in ("arch", "precision")}


def arguments(arg: str | None, **defaults: str) -> dict[str, str]:
    """The parts of a `get_config` argument such as `18,data=folder`.

    The first one needs no name. Raises ConfigError for a name that is not among `defaults`, and
    for any argument of a study that takes none.
    """
    if arg and not defaults:
        raise ConfigError(f"config argument {arg!r} is not understood; this study takes none")
    found = dict(defaults)
    for i, part in enumerate((arg or "").split(",") if arg else ()):
        key, equals, value = part.partition("=")
        if not equals and i == 0:
            key, value = next(iter(defaults)), part
        if key not in defaults or not value:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(defaults)}"
            raise ConfigError(f"config argument {part!r} is not understood; {hint}")
        found[key] = value
    return found


def one_of(value: str, known: Iterable[str], what: str) -> None:
    """Raises ConfigError, with the nearest name, where `value` is not one of `known`."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown {what} {value!r}; {hint}known: {', '.join(known)}")


@dataclass(frozen=True)
class Row:
    """One row of a sweep: what it changes in the study's config, and the row that seeds it."""

    name: str
    overrides: Mapping[str, Any]
    seed_from: str | None = None


@dataclass(frozen=True)
class Study:
    """A config file, read: its base config and the rows of its sweep."""

    name: str
    title: str
    config: ml_collections.ConfigDict
    rows: tuple[Row, ...]


def names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def _unknown(key: str, known: Iterable[str], where: str) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    word = difflib.get_close_matches(
        key.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known], n=1, cutoff=0.8
    )
    if word:  # 'batch_size' and 'data.batch_size' are near to each key that ends so
        near = [k for k in known if k.rsplit(".", 1)[-1] == word[0]]
    hint = f"did you mean {' or '.join(map(repr, near))}?"
    hint = f"; {hint}" if near else f"; the keys are {', '.join(known)}"
    return f"{where}: unknown key {key!r}{hint}"


def _module(spec: str) -> tuple[ModuleType, str | None]:
    """The Python file behind `name`, `name:arg`, `path.py` or `path.py:arg`, and the arg."""
    target, _, arg = spec.partition(":")
    path = Path(target)
    if path.suffix != ".py":
        path = CONFIGS / f"{target}.py"
        if not path.is_file():
            near = difflib.get_close_matches(target, names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
            raise ConfigError(
                f"no study is called {target!r}; {hint} (or give a path that ends in .py)"
            )
    elif not path.is_file():
        raise ConfigError(f"config file {target!r} does not exist")
    found = importlib.util.spec_from_file_location(f"cnn_depth_config_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    with _told_of(path):
        found.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config file {path} has no function get_config(arg)")
    return module, arg or None


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Whatever the code of a config file raises becomes a ConfigError with the file and its line.

    `path` is the file; the line is the innermost one of it, or the error's own where it names one.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(path) and f.lineno]
        where, said = f"config file {path}", f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename and not lines:
            where, said = f"config file {error.filename}", error.msg
            lines = [error.lineno or 1]
        elif isinstance(error, SystemExit):
            said = f"ends the program (SystemExit: {error})"
        elif getattr(error, "user_error", False):
            said = str(error)
        elif isinstance(error, TypeError) and "cannot be casted to type <class 'tuple'>" in said:
            said += "; write a tuple, such as (0.5,)"
        line = f" line {lines[-1]}" if lines else ""
        raise ConfigError(f"{where}{line}: {' '.join(said.split())}") from error


def read(spec: str) -> Study:
    """Reads a config file; a file without `sweep()` is a study of one row.

    Raises:
        ConfigError: the file is missing or broken, or a row's seed is no earlier row.
    """
    module, arg = _module(spec)
    path = Path(module.__file__ or spec)
    with _told_of(path):
        config = module.get_config(arg)
    title = visible(((module.__doc__ or "").strip() or path.stem).splitlines()[0].rstrip("."))
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"config file {path}: get_config must return a ConfigDict, not {_told(config)}"
        )
    config = _complete(config, f"config file {path}")
    rows: list[Row] = []
    for name, overrides in _pairs(module, config, spec, arg):
        seed_from = overrides.pop("seed_from", None)
        earlier = [row.name for row in rows]
        if not name.strip() or visible(name) != name:
            raise ConfigError(
                f"{spec}: a row of the sweep is called '{visible(name)}'; expected a name without "
                "control characters"
            )
        if name in earlier:
            raise ConfigError(f"{spec}: two rows of the sweep are called {name!r}")
        if seed_from is not None and seed_from not in earlier:
            raise ConfigError(
                f"{spec}: row {name!r} is seeded from {seed_from!r}, which is no row before it; "
                f"there are {', '.join(earlier) or 'none'}"
            )
        rows.append(Row(name, overrides, seed_from))
    return Study(visible(path.stem), title, config, tuple(rows))


def _complete(config: ml_collections.ConfigDict, where: str) -> ml_collections.ConfigDict:
    """What `get_config` gave, each value of its key's type. Whether the values can be meant is
    checked once the overrides are known."""
    flat, usual = flatten(config), flatten(base())
    missing = set(usual) - {"model.arch"} - set(flat)
    if missing:
        raise ConfigError(f"{where}: get_config lacks {min(missing)}; build it on config.base()")
    options = {key.removeprefix("model."): v for key, v in flat.items() if key[:6] == "model."}
    others = {key: value for key, value in flat.items() if key[:6] != "model."}
    for key in others:
        if key not in usual:
            raise ConfigError(_unknown(key, usual, where))
    found = base()
    for key, value in others.items():
        *part, last = key.split(".")
        (found[part[0]] if part else found)[last] = _typed(key, value, usual[key], where)
    arch = options.pop("arch", "")
    if not isinstance(arch, str):
        raise ConfigError(f"{where}: model.arch must be a name such as 'vgg:E', not {_told(arch)}")
    try:
        found.model = model(arch, **options) if arch else ml_collections.ConfigDict({"arch": ""})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return found


def _pairs(
    module: ModuleType, config: ml_collections.ConfigDict, spec: str, arg: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """What `sweep()` yields; of a file without one, its config as the only row."""
    if not hasattr(module, "sweep"):
        if not config.model.arch:
            raise ConfigError(f"{spec}: get_config sets no config.model; use configs.model(name)")
        return [(config.model.arch, {})]
    path = Path(module.__file__ or spec)
    with _told_of(path):
        takes = bool(inspect.signature(module.sweep).parameters)
        found = module.sweep(arg) if takes else module.sweep()
        given = list(itertools.islice(found, MOST_ROWS + 1))
    if len(given) > MOST_ROWS:
        raise ConfigError(f"{spec}: sweep() yields more than {MOST_ROWS:,} rows")
    pairs = []
    for pair in given:
        try:
            name, overrides = pair
            pairs.append((str(name), dict(overrides)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{spec}: sweep() must yield (row name, overrides) pairs, not {_told(pair)}"
            ) from error
    return pairs


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.batch_size": 128, ...}` of a config or a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def parse_set(assignments: Iterable[str]) -> dict[str, str]:
    """`--set a.b=c` texts as a dict; the values stay text until the key's type is known."""
    overrides = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected KEY=VALUE, such as train.epochs=3")
        overrides[key.strip()] = value
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of deep nesting
        return {"true": True, "false": False}.get(text.lower(), text)


def _typed(key: str, value: Any, like: Any, where: str) -> Any:
    """`value` as the type of `like`, the key's present value; only loss-free changes of type."""
    given = value
    if isinstance(value, str) and not isinstance(like, str):
        value = _literal(value)
    if isinstance(like, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(like, int):
        if isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() > 63:
                raise ConfigError(f"{where}: {key}={_told(value)} is beyond what a computer counts")
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif isinstance(like, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _float(value)
    elif isinstance(like, tuple):
        if isinstance(value, str) and "(" not in value:
            value = tuple(_literal(part) for part in value.split(",") if part)
        elif isinstance(value, int | float):
            value = (value,) * LENGTHS.get(key, 1)
        if isinstance(value, tuple | list):
            return tuple(_part(key, part, given, where) for part in value)
    elif isinstance(like, str) and isinstance(value, str):
        return value
    raise ConfigError(
        f"{where}: {key} must be of type {type(like).__name__} (as {like!r} is), not {_told(given)}"
    )


def _float(value: float) -> float:
    """What no float holds is as good as infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def _told(value: Any) -> str:
    """A value as an error shows it, and not all of it where it is very long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def _part(key: str, part: Any, given: Any, where: str) -> Any:
    """One part of a tuple, of the type that `key` needs."""
    kind = PARTS[key]
    if kind is float and isinstance(part, int) and not isinstance(part, bool):
        return _float(part)
    if kind is tuple:
        pair = tuple(part) if isinstance(part, tuple | list) else ()
        second, told = PAIRS[key]
        if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], second):
            return pair
        raise ConfigError(f"{where}: {key}={_told(given)} must be pairs of {told}")
    if isinstance(part, kind) and not isinstance(part, bool):
        return part
    raise ConfigError(
        f"{where}: {key}={_told(given)} must hold values of type {kind.__name__} only"
    )


def override(
    config: ml_collections.ConfigDict, overrides: Mapping[str, Any], where: str
) -> ml_collections.ConfigDict:
    """A copy of `config` with `overrides` (dotted keys). `where` says in errors whose they are.

    A change of `model.arch` keeps the options that differ from the old architecture's defaults and
    that the new one also has. The rest, and those that would change nothing, get its defaults.

    Raises:
        ConfigError: an unknown key (with the nearest one) or a value of the wrong type.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    arch = overrides.get("model.arch", config.model.arch)
    if not isinstance(arch, str):
        raise ConfigError(f"{where}: model.arch must be a name such as 'vgg:E', not {arch!r}")
    arch = cnn_arch.full_name(arch)
    if arch != config.model.arch:
        known = _model_keys(arch)
        before = _model_keys(config.model.arch) if config.model.arch else {}
        shared = {
            key: value
            for key, value in config.model.items()
            if key in known and value != before.get(key)
        }
        idle = cnn_arch.idle(arch, builder_options({**known, **shared}))
        config.model = model(arch, **{k: v for k, v in shared.items() if k not in idle})
    flat = flatten(config)
    for key, value in {**overrides, "model.arch": arch}.items():
        if key not in flat:
            raise ConfigError(_unknown(key, flat, where))
        typed = _typed(key, value, flat[key], where)
        node = config
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = typed
    check(config, where)
    return config


def check(config: ml_collections.ConfigDict, where: str) -> None:
    """Raises ConfigError where a value lies outside what its key can mean."""
    flat = flatten(config)
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            near = difflib.get_close_matches(str(flat[key]), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: {key}={flat[key]!r} is none of {', '.join(choices)}{hint}")
    for key, bounds in BOUNDS.items():
        _check_numbers(key, flat[key], bounds, where)
    for key, count in LENGTHS.items():
        if len(flat[key]) != count:
            raise ConfigError(f"{where}: {key}={_told(flat[key])} must be {count} numbers")
    _check_model(config.model, where)
    _check_sizes(flat, where)
    _check_schedule(flat, where)
    _check_training(flat, where)


def _check_numbers(key: str, value: Any, bounds: Bounds, where: str) -> None:
    """Raises ConfigError where a number, or a part of a tuple of them, is out of bounds."""
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        number = part[1] if isinstance(part, tuple) else part  # of a pair: a pattern and a number
        if not bounds.hold(number):
            each = "each number of it " if isinstance(value, tuple) else ""
            hint = f"; {HINTS[key]}" if key in HINTS else ""
            raise ConfigError(f"{where}: {key}={_told(value)}: {each}must be {bounds}{hint}")


def _check_model(model: ml_collections.ConfigDict, where: str) -> None:
    """Raises ConfigError where an option of the network is out of bounds or changes nothing."""
    options = builder_options(model)
    try:
        cnn_arch.check(model.arch, **options)
    except cnn_arch.ArchitectureError as error:
        raise ConfigError(f"{where}: model.{error}") from error
    if model.get("dtype") == "bfloat16" and model.precision != "default":
        raise ConfigError(
            f"{where}: model.precision={model.precision!r} changes nothing with "
            "model.dtype='bfloat16', which is multiplied in bfloat16; set it to 'default', or "
            "model.dtype='float32'"
        )


def _check_sizes(flat: Mapping[str, Any], where: str) -> None:
    crop = flat["data.image_size"]
    low_s, high_s = flat["data.S"]
    if low_s > high_s or (low_s and low_s < crop):
        raise ConfigError(
            f"{where}: data.S={flat['data.S']!r} must be (smallest, largest) short side, neither "
            f"below the crop data.image_size={crop} (or (0, 0) for that size)"
        )
    if flat["test.Q"] and flat["test.Q"] < crop:
        raise ConfigError(
            f"{where}: test.Q={flat['test.Q']} is smaller than the crop "
            f"data.image_size={crop} (0 is the crop's size)"
        )
    if flat["data.pad"] >= crop:
        raise ConfigError(
            f"{where}: data.pad={flat['data.pad']} leaves crops of data.image_size={crop} that "
            "show nothing of the image; pad by less"
        )
    for key in ("data.area", "data.aspect"):
        if flat[key][0] > flat[key][1]:
            raise ConfigError(f"{where}: {key}={flat[key]!r} must be (smallest, largest)")


def _check_schedule(flat: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where parts of the schedule contradict each other."""
    milestones = flat["schedule.milestones"]
    if any(a >= b for a, b in itertools.pairwise(milestones)):
        raise ConfigError(f"{where}: schedule.milestones={milestones!r} must rise")
    kind, warmup = flat["schedule.kind"], flat["schedule.warmup"]
    factors = flat["schedule.factors"]
    if factors and kind == "steps" and len(factors) != len(milestones):
        raise ConfigError(
            f"{where}: schedule.factors={factors!r} must be as many numbers as "
            f"schedule.milestones={milestones!r}, one from each on"
        )
    if kind == "steps" and not milestones:
        raise ConfigError(
            f"{where}: schedule.kind='steps' without schedule.milestones is "
            "schedule.kind='constant'; write that"
        )
    if kind == "plateau" and not flat["schedule.drops"]:
        raise ConfigError(
            f"{where}: schedule.kind='plateau' with schedule.drops=0 is "
            "schedule.kind='constant'; write that"
        )
    if kind == "plateau" and not flat["data.holdout"]:
        raise ConfigError(
            f"{where}: schedule.kind='plateau' is judged on held-out training images, and "
            "data.holdout=0 keeps none; set it to 0.1, say"
        )
    if warmup in ("constant", "linear") and not (
        flat["schedule.warmup_steps"] or flat["schedule.warmup_part"]
    ):
        raise ConfigError(
            f"{where}: schedule.warmup={warmup!r} has no end; set schedule.warmup_steps, or "
            "schedule.warmup_part to a part of the training (5 epochs of 90 are 5/90)"
        )
    if warmup in ("constant", "until_error") and not flat["schedule.warmup_lr"]:
        raise ConfigError(
            f"{where}: schedule.warmup={warmup!r} at schedule.warmup_lr=0 trains nothing; "
            "set a rate above 0"
        )


def _check_training(flat: Mapping[str, Any], where: str) -> None:
    batch, parts = flat["train.batch_size"], flat["train.accumulate"]
    if batch % parts:
        raise ConfigError(
            f"{where}: train.batch_size={batch} is not divisible by train.accumulate={parts}"
        )
    if flat["optimizer.kind"] == "sdlm":
        sgd = {"momentum": 0, "weight_decay": 0, "lr_in_velocity": False, "nesterov": False}
        for key, usual in sgd.items():
            if flat[f"optimizer.{key}"] != usual:
                raise ConfigError(
                    f"{where}: optimizer.{key}={flat[f'optimizer.{key}']!r} is for "
                    f"optimizer.kind='sgd'; set it to {usual}, 'sdlm' has none"
                )
        if is_streamed(flat["data.name"]):
            raise ConfigError(
                f"{where}: optimizer.kind='sdlm' is for small data sets that are kept on the "
                f"device, and data.name is {flat['data.name']!r}"
            )
    if not flat["train.steps"] and not flat["train.epochs"]:
        raise ConfigError(f"{where}: train.epochs and train.steps are both 0: nothing to train")


def identity_part(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What of a config can change a run's result, flat and JSON-ready."""
    flat = flatten(config)
    crop = flat["data.image_size"]
    for key, usual in (("data.S", (0, 0)), ("test.Q", 0)):  # two spellings of the crop's size
        if flat[key] == (crop if usual == 0 else (crop, crop)):
            flat[key] = usual
    skip = {k for k in flat if any(k == e or k.startswith(e + ".") for e in EXECUTION)}
    skip |= _unused(config) | _idle(flat)
    skip |= {k for k, usual in ADDED.items() if flat.get(k) == usual}
    if flat.get("train.until_error"):
        skip.discard("train.log_every_epochs")
    return {k: v for k, v in sorted(flat.items()) if k not in skip}


def inherits(config: ml_collections.ConfigDict) -> bool:
    """Whether a config's network sees images as the one that seeds it did."""
    return bool(config.seeding.run) and config.seeding.normalise == "inherit"


def _unused(config: ml_collections.ConfigDict) -> set[str]:
    """Keys of the data that change nothing for data of this kind."""
    d, own = config.data, not inherits(config)
    skip = set() if own else {"data.normalise", "data.divide_by_std"}
    if not is_streamed(d.name):
        return {*skip, *(f"data.{key}" for key in STREAMED_ONLY)}
    fitted = d.normalise in ("per_pixel", "per_channel") or d.divide_by_std
    fitted = (fitted and own) or d.colour in FITTED
    used = {
        "mean": d.normalise == "fixed" and own,
        "area": d.view == "area",
        "aspect": d.view == "area",
        "S": d.view != "area",
        "statistics_images": fitted,
    }
    return {*skip, *(f"data.{key}" for key, matters in used.items() if not matters)}


def _idle(flat: Mapping[str, Any]) -> set[str]:
    """Keys of the training that change nothing beside the others."""
    kind, warmup = flat["schedule.kind"], flat["schedule.warmup"]
    used = {
        "train.epochs": not flat["train.steps"],
        "optimizer.decay": flat["optimizer.weight_decay"] > 0,
        "optimizer.mu": flat.get("optimizer.kind") == "sdlm",
        "optimizer.patterns": flat.get("optimizer.kind") == "sdlm",
        "optimizer.momentum": flat.get("optimizer.kind") != "sdlm",
        "optimizer.nesterov": flat.get("optimizer.kind") != "sdlm",
        "schedule.milestones": kind == "steps",
        "schedule.factors": kind == "steps",
        "schedule.factor": kind == "plateau"
        or (kind == "steps" and not flat.get("schedule.factors")),
        "schedule.drops": kind == "plateau",
        "schedule.patience": kind == "plateau",
        "schedule.warmup_lr": warmup != "none",
        "schedule.warmup_steps": warmup != "none" and not flat.get("schedule.warmup_part"),
        "schedule.warmup_part": warmup != "none",
        "schedule.warmup_error": warmup == "until_error",
    }
    return {key for key, matters in used.items() if not matters}


def from_json(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config as a run saved it: JSON turned every tuple into a list."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = ml_collections.ConfigDict(tuples(content))
    config.model = ml_collections.ConfigDict({"precision": "default", **config.model})
    for part, usual in base().items():  # a run of an older version lacks the newer keys
        if isinstance(usual, ml_collections.ConfigDict) and part != "model":
            config[part] = ml_collections.ConfigDict({**usual, **config.get(part, {})})
    if config.seeding.run and "normalise" not in content["seeding"]:  # before there was a choice
        config.seeding.normalise = "fit"
    return config
