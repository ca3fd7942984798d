"""A file and overrides -> one checked config.

A config file is Python with `get_config(arg=None) -> ConfigDict`, built on `base()`, and, for a
study, `sweep()`, which yields `(row name, overrides)`. The reserved override `seed_from` names the
row whose trained network seeds this one. Files of `experiments/configs` are addressed by name
(`vgg_depth`), others by path; `name:arg` hands `arg` to `get_config`, and to a `sweep(arg)`.
"""

import ast
import difflib
import importlib.util
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

import cnn_arch
from cnn_arch import seeding
from input_pipeline.sources import is_streamed

CONFIGS = Path(__file__).parent / "configs"

CHOICES: dict[str, tuple[str, ...]] = {
    "train.scan": ("auto", "always", "never"),
    "seeding.kind": seeding.KINDS,
    "seeding.classifier": ("copy", "fresh", "in_order"),
    "data.view": ("scale", "square", "area"),
    "data.colour": (
        "none",
        "pca_public",
        "pca_fitted",
        "pca_paper",
        "photometric",
        "photometric+pca_public",
    ),
    "data.normalise": ("per_pixel", "per_channel", "fixed", "none", "gcn_zca"),
    "data.bad": ("skip", "raise"),
    "schedule.kind": ("constant", "steps", "cosine", "plateau"),
    "schedule.warmup": ("none", "constant", "linear", "until_error"),
}
# Inclusive bounds; None is open.
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "data.image_size": (1, None),
    "data.pad": (0, None),
    "data.split": (0, 0.9),
    "data.holdout": (0, 0.9),
    "data.statistics_images": (0, None),
    "data.max_bad": (0, 1),
    "data.threads": (0, 1024),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.weight_decay": (0, None),
    "optimizer.clip_norm": (0, None),
    "schedule.lr": (1e-12, None),
    "schedule.factor": (0, 1),
    "schedule.drops": (0, None),
    "schedule.patience": (1, None),
    "schedule.warmup_steps": (0, None),
    "schedule.warmup_part": (0, 1),
    "train.batch_size": (1, None),
    "train.epochs": (0, None),
    "train.steps": (0, None),
    "train.accumulate": (1, None),
    "train.label_smoothing": (0, 0.999),
    "train.ema": (0, 0.999999),
    "train.steps_per_dispatch": (0, None),
    "train.log_every_epochs": (1e-9, None),
    "train.validate_every_epochs": (1e-9, None),
    "test.batch_size": (1, None),
    "test.curve_epochs": (0, None),
    "checkpoint.every_seconds": (0, None),
    "checkpoint.every_steps": (0, None),
    "seed": (0, 2**31 - 1),
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
    "data.path",
    "data.bad",
    "data.max_bad",
    "data.threads",
)
# Keys that are newer than the identity's format, and the values at which runs are what they were
# before: with these they are no part of the identity.
ADDED: dict[str, Any] = {
    "optimizer.rates": (),
    "schedule.warmup_part": 0.0,
    "model.head": "average",
    "model.head_dropout": 0.0,
    "data.split": 0.0,
}
# Of encoded images only: of small sets, they are no part of the identity.
STREAMED_ONLY = ("view", "area", "aspect", "colour", "mean", "statistics_images")
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
    "seeding.mapping": tuple,
}


# Of tuples of pairs: what the second part of a pair is, and what the pair is called.
PAIRS: dict[str, tuple[Any, str]] = {
    "seeding.mapping": (str, "patterns (old, new)"),
    "optimizer.rates": (int | float, "a pattern and a number (names, factor)"),
}


class ConfigError(ValueError):
    """A config file, key or value that can't be used; the message says which and what would do."""

    user_error = True


def base() -> ml_collections.ConfigDict:
    """Every key that a config has, with its default. Sizes are pixels, errors percent."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            # `arch` and the options of its builder (see `cnn_arch.options`); fill with `model()`.
            "model": {"arch": ""},
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
                # Of encoded images: a crop at scale S, one of AlexNet's square, or GoogLeNet's.
                "view": "scale",
                "area": (0.08, 1.0),  # view "area": share of the image, drawn from area[0]..area[1]
                "aspect": (3 / 4, 4 / 3),  # and width / height
                "colour": "none",  # how the colours of training views are changed
                "normalise": "per_channel",  # mean that is taken off; gcn_zca whitens
                "mean": (123.68, 116.779, 103.939),  # normalise "fixed": VGG's of ILSVRC, R, G, B
                "divide_by_std": False,  # one deviation over all pixels
                "statistics_images": 10000,  # encoded images that means are taken from; 0: all
                "holdout": 0.1,  # part of the training set kept for `best` and the plateaus
                "bad": "skip",  # files that are no images: skip or raise
                "max_bad": 0.001,  # share of the images that may be skipped
                "threads": 0,  # that decode images; 0: one a core
            },
            "optimizer": {
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,  # L2, added to the gradient
                "decay": ("*kernel",),  # name patterns of the parameters that it touches
                "lr_in_velocity": False,  # v <- mu v - lr g, as AlexNet's paper has it
                "clip_norm": 0.0,  # global norm; 0 is off
                "freeze": (),  # name patterns of the parameters that stay as they are
                # ((name pattern, factor), ...): what the rate is multiplied by for parameters that
                # a pattern matches; of several, all.
                "rates": (),
            },
            "schedule": {
                "kind": "steps",
                "lr": 0.1,
                "milestones": (0.5, 0.75),  # steps: where lr drops, as parts of the training
                "factor": 0.1,
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
                "accumulate": 1,  # micro-batches a step
                "label_smoothing": 0.0,
                "ema": 0.0,  # decay of the averaged parameters that are tested; 0 is off
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
            },
        }
    ).lock()


def model(arch: str, **options: Any) -> ml_collections.ConfigDict:
    """The `model` part of a config: `arch` with all options of its builder, some of them given."""
    arch = cnn_arch.full_name(arch)
    known = cnn_arch.options(arch)
    for key in options:
        if key not in known:
            raise ConfigError(_unknown(f"model.{key}", [f"model.{k}" for k in known], arch))
    options = {k: _typed(f"model.{k}", v, known[k], arch) for k, v in options.items()}
    return ml_collections.ConfigDict({"arch": arch, **known, **options})


def arguments(arg: str | None, **defaults: str) -> dict[str, str]:
    """The parts of a `get_config` argument such as `18,data=folder`.

    The first one needs no name. Raises ConfigError for a name that is not among `defaults`.
    """
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
    try:
        found.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"config file {path} line {error.lineno}: {error.msg}") from error
    except (ImportError, NameError) as error:
        raise ConfigError(f"config file {path}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path} has no function get_config(arg)")
    return module, arg or None


def read(spec: str) -> Study:
    """Reads a config file; a file without `sweep()` is a study of one row.

    Raises:
        ConfigError: the file is missing or broken, or a row's seed is no earlier row.
    """
    module, arg = _module(spec)
    try:
        config = module.get_config(arg)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config file {module.__file__}: {error}") from error
    study = Path(module.__file__ or spec).stem
    title = ((module.__doc__ or "").strip() or study).splitlines()[0].rstrip(".")
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{spec}: get_config must return a ConfigDict, not {config!r}")
    missing = set(flatten(base())) - {"model.arch"} - set(flatten(config))
    if missing:
        raise ConfigError(f"{spec}: get_config lacks {min(missing)}; build it on config.base()")
    rows: list[Row] = []
    for name, overrides in _pairs(module, config, spec, arg):
        seed_from = overrides.pop("seed_from", None)
        earlier = [row.name for row in rows]
        if name in earlier:
            raise ConfigError(f"{spec}: two rows of the sweep are called {name!r}")
        if seed_from is not None and seed_from not in earlier:
            raise ConfigError(
                f"{spec}: row {name!r} is seeded from {seed_from!r}, which is no row before it; "
                f"there are {', '.join(earlier) or 'none'}"
            )
        rows.append(Row(name, overrides, seed_from))
    return Study(study, title, config, tuple(rows))


def _pairs(
    module: ModuleType, config: ml_collections.ConfigDict, spec: str, arg: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """What `sweep()` yields; of a file without one, its config as the only row."""
    if not hasattr(module, "sweep"):
        return [(config.model.arch, {})]
    try:
        takes = bool(inspect.signature(module.sweep).parameters)
        pairs = module.sweep(arg) if takes else module.sweep()
        return [(str(name), dict(overrides)) for name, overrides in pairs]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{spec}: sweep() must yield (row name, overrides) pairs ({error})"
        ) from error


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
    except (ValueError, SyntaxError):
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
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif isinstance(like, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(like, tuple):
        if isinstance(value, str) and "(" not in value:
            value = tuple(_literal(part) for part in value.split(",") if part)
        if isinstance(value, tuple | list):
            return tuple(_part(key, part, given, where) for part in value)
    elif isinstance(like, str) and isinstance(value, str):
        return value
    raise ConfigError(
        f"{where}: {key} must be of type {type(like).__name__} (as {like!r} is), not {given!r}"
    )


def _part(key: str, part: Any, given: Any, where: str) -> Any:
    """One part of a tuple, of the type that `key` needs."""
    kind = PARTS[key]
    if kind is float and isinstance(part, int) and not isinstance(part, bool):
        return float(part)
    if kind is tuple:
        pair = tuple(part) if isinstance(part, tuple | list) else ()
        second, told = PAIRS[key]
        if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], second):
            return pair
        raise ConfigError(f"{where}: {key}={given!r} must be pairs of {told}")
    if isinstance(part, kind) and not isinstance(part, bool):
        return part
    raise ConfigError(f"{where}: {key}={given!r} must hold values of type {kind.__name__} only")


def override(
    config: ml_collections.ConfigDict, overrides: Mapping[str, Any], where: str
) -> ml_collections.ConfigDict:
    """A copy of `config` with `overrides` (dotted keys). `where` says in errors whose they are.

    A change of `model.arch` keeps the options that the new architecture also has and gives the
    rest their defaults there.

    Raises:
        ConfigError: an unknown key (with the nearest one) or a value of the wrong type.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    arch = overrides.get("model.arch", config.model.arch)
    if not isinstance(arch, str):
        raise ConfigError(f"{where}: model.arch must be a name such as 'vgg:E', not {arch!r}")
    arch = cnn_arch.full_name(arch)
    if arch != config.model.arch:
        known = cnn_arch.options(arch)
        config.model = model(arch, **{k: v for k, v in config.model.items() if k in known})
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
    for key, (low, high) in BOUNDS.items():
        value = flat[key]
        too_low, too_high = low is not None and value < low, high is not None and value > high
        if not math.isfinite(value) or too_low or too_high:
            bounds = f"at least {low:g}" + (f" and at most {high:g}" if high is not None else "")
            raise ConfigError(f"{where}: {key}={value!r} must be {bounds}")
    batch, parts = flat["train.batch_size"], flat["train.accumulate"]
    if batch % parts:
        raise ConfigError(
            f"{where}: train.batch_size={batch} is not divisible by train.accumulate={parts}"
        )
    for key, count in (("data.area", 2), ("data.aspect", 2), ("data.mean", 3)):
        if len(flat[key]) != count:
            raise ConfigError(f"{where}: {key}={flat[key]!r} must be {count} numbers")
    low_s, high_s = _pair(flat["data.S"], "data.S", where)
    if low_s > high_s or (low_s and low_s < flat["data.image_size"]):
        raise ConfigError(
            f"{where}: data.S={flat['data.S']!r} must be (smallest, largest) short side, neither "
            f"below the crop data.image_size={flat['data.image_size']} (or (0, 0) for that size)"
        )
    if flat["test.Q"] and flat["test.Q"] < flat["data.image_size"]:
        raise ConfigError(
            f"{where}: test.Q={flat['test.Q']} is smaller than the crop "
            f"data.image_size={flat['data.image_size']} (0 is the crop's size)"
        )
    if not flat["train.steps"] and not flat["train.epochs"]:
        raise ConfigError(f"{where}: train.epochs and train.steps are both 0: nothing to train")
    if flat["schedule.kind"] == "plateau" and not flat["data.holdout"]:
        raise ConfigError(
            f"{where}: schedule.kind='plateau' is judged on held-out training images, and "
            "data.holdout=0 keeps none; set it to 0.1, say"
        )


def _pair(value: Any, key: str, where: str) -> tuple[int, int]:
    if len(value) != 2 or not all(isinstance(v, int) for v in value):
        raise ConfigError(f"{where}: {key}={value!r} must be two whole numbers")
    return value[0], value[1]


def identity_part(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What of a config can change a run's result, flat and JSON-ready."""
    flat = flatten(config)
    skip = [k for k in flat if any(k == e or k.startswith(e + ".") for e in EXECUTION)]
    skip += _unused(config.data)
    skip += [k for k, usual in ADDED.items() if flat.get(k) == usual]
    return {k: v for k, v in sorted(flat.items()) if k not in skip}


def _unused(d: ml_collections.ConfigDict) -> list[str]:
    """Keys of the data that change nothing for data of this kind."""
    if not is_streamed(d.name):
        return [f"data.{key}" for key in STREAMED_ONLY]
    fitted = d.normalise in ("per_pixel", "per_channel") or d.colour in FITTED or d.divide_by_std
    used = {
        "mean": d.normalise == "fixed",
        "area": d.view == "area",
        "aspect": d.view == "area",
        "S": d.view != "area",
        "statistics_images": fitted,
    }
    return [f"data.{key}" for key, matters in used.items() if not matters]


def from_json(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config as a run saved it: JSON turned every tuple into a list."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = ml_collections.ConfigDict(tuples(content))
    for part, usual in base().items():  # a run of an older version lacks the newer keys
        if isinstance(usual, ml_collections.ConfigDict) and part != "model":
            config[part] = ml_collections.ConfigDict({**usual, **config.get(part, {})})
    return config
