"""Text and numbers as the type that a key needs, and the options of an architecture."""

import ast
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict

import cnn_arch
from cnn_arch import registry
from experiments.config.errors import ConfigError, shown, unknown_key
from experiments.config.keys import ADDED, KEYS, Key, Pairs


def model(arch: str, **options: Any) -> ConfigDict:
    """The `model` part of a config: `arch` with all its keys, at their defaults or `options`."""
    arch = cnn_arch.full_name(arch)
    defaults = model_keys(arch)
    for key in options:
        if key not in defaults:
            raise ConfigError(unknown_key(f"model.{key}", [f"model.{k}" for k in defaults], arch))
    options = {k: as_type(f"model.{k}", v, defaults[k], arch) for k, v in options.items()}
    return ConfigDict({"arch": arch, **defaults, **options})


def model_keys(arch: str) -> dict[str, Any]:
    """The keys of `model` beside `arch`, with their defaults."""
    return {"precision": "default", **cnn_arch.origin(arch), **cnn_arch.options(arch)}


def network_keys(arch: str) -> dict[str, Key]:
    """The options of an architecture as keys such as `model.width`.

    Meanings are read from the docstring of its class, and choices from the types of its arguments.
    """
    family, variant = registry.find(arch)
    network = family.networks.get(variant, family.network)
    builder = network.__init__ if inspect.isclass(network) else network
    text, hints = inspect.getdoc(network) or "", get_type_hints(builder)
    docs = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w|^\S|\Z)", text, re.MULTILINE | re.DOTALL))
    keys = {}
    for option, default in family.options(variant).items():
        meaning = " ".join(docs.get(option, "").split())
        name = f"model.{option}"
        keys[name] = Key(
            name,
            default,
            meaning[:1].upper() + meaning[1:],
            choices=get_args(hints.get(option)),
            bounds=registry.RANGES.get(option),
            added=name in ADDED and ADDED[name] == default,
        )
    return keys


def older_options(arch: str) -> dict[str, Any]:
    """The newer options of a built-in architecture, with their values in runs and files that were
    written before they existed."""
    if arch not in cnn_arch.variants():  # a user's own
        return {}
    return {o: ADDED[f"model.{o}"] for o in cnn_arch.options(arch) if f"model.{o}" in ADDED}


def builder_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the `model` part of a config that the architecture's builder takes."""
    others = ("arch", "precision", "source", "folder")
    return {key: value for key, value in model.items() if key not in others}


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


def as_type(key: str, value: Any, like: Any, where: str) -> Any:
    """`value` as the type of `like`, the key's present value.

    Raises ConfigError where that would lose something.
    """
    raw = value
    if isinstance(value, str) and not isinstance(like, str):
        names = isinstance(like, tuple) and KEYS[key].part is str and "(" not in value
        value = tuple(filter(None, value.split(","))) if names else _literal(value)
    if isinstance(like, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(like, int):
        if isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() > 63:
                raise ConfigError(f"{where}: {key}={shown(value)} is beyond what a computer counts")
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif isinstance(like, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _as_float(value)
    elif isinstance(like, tuple):
        if isinstance(value, str) and "(" not in value:
            value = tuple(_literal(part) for part in value.split(",") if part)
        elif isinstance(value, int | float):
            value = (value,) * (KEYS[key].length or 1)
        if isinstance(value, tuple | list):
            return tuple(_part(key, part, raw, where) for part in value)
    elif isinstance(like, str) and isinstance(value, str):
        return value
    raise ConfigError(
        f"{where}: {key} must be of type {type(like).__name__} (as {like!r} is), not {shown(raw)}"
    )


def assign(config: ConfigDict, key: str, value: Any, like: Any, where: str) -> None:
    """Gives a dotted key of `config` this value, converted by `as_type`."""
    *part, last = key.split(".")
    (config[part[0]] if part else config)[last] = as_type(key, value, like, where)


def _as_float(value: float) -> float:
    """`value` as a float; infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def _part(key: str, part: Any, raw: Any, where: str) -> Any:
    """One part of a tuple, of the type that `key` needs."""
    kind = KEYS[key].part
    if kind is float and isinstance(part, int) and not isinstance(part, bool):
        return _as_float(part)
    if isinstance(kind, Pairs):
        pair = tuple(part) if isinstance(part, tuple | list) else ()
        if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], kind.second):
            return pair
        raise ConfigError(f"{where}: {key}={shown(raw)} must be pairs of {kind.meaning}")
    if isinstance(part, kind) and not isinstance(part, bool):
        return part
    raise ConfigError(f"{where}: {key}={shown(raw)} must hold values of type {kind.__name__} only")
