"""A study: a Python file with a config and the rows of its sweep.

The file has `get_config(arg=None) -> ConfigDict`, built on `base()`, and, for several rows,
`sweep()`, which yields `(row name, overrides)`. Two overrides are reserved: `seed_from` names the
row whose trained network seeds this one; `own_data` has values of `data` for a row that learns from
another set than the others, and which no override of all rows changes. Files of
`experiments/studies` are addressed by name (`vgg_depth`), others by path; `name:arg` hands `arg` to
`get_config`, and to a `sweep(arg)`.
"""

import importlib.util
import inspect
import itertools
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import cnn_arch
from experiments.config.errors import ConfigError, shown, unknown_key
from experiments.config.keys import base, flatten
from experiments.config.overrides import override
from experiments.config.values import assign, model
from experiments.text import nearest, visible

CONFIGS = Path(__file__).parents[1] / "studies"
MOST_ROWS = 100_000  # of a sweep


def arguments(arg: str | None, **defaults: str) -> dict[str, str]:
    """The parts of a `get_config` argument such as `18,data=folder`.

    The first one needs no name. Raises ConfigError for a name that is not among `defaults`, and
    for any argument of a study that takes none.
    """
    if arg and not defaults:
        raise ConfigError(f"config argument {arg!r} is not understood; this study takes none")
    values = dict(defaults)
    for i, part in enumerate((arg or "").split(",") if arg else ()):
        key, equals, value = part.partition("=")
        if not equals and i == 0:
            key, value = next(iter(defaults)), part
        if key not in defaults or not value:
            hint = nearest("did you mean {!r}?", key, defaults)
            hint = hint or f"there are {', '.join(defaults)}"
            raise ConfigError(f"config argument {part!r} is not understood; {hint}")
        values[key] = value
    return values


@dataclass(frozen=True)
class Row:
    """One row of a sweep."""

    name: str
    overrides: Mapping[str, Any]  # of the study's config, by dotted keys
    seed_from: str | None = None  # the row that seeds it
    # Overrides of `data` that the overrides of all rows do not touch, such as `data.path`.
    own_data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study as it is read from its file: its base config and the rows of its sweep."""

    name: str
    title: str
    config: ConfigDict
    rows: tuple[Row, ...]

    def config_of(self, row: Row, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
        """The config of a row. overrides: of all rows, on top of its own.

        Raises ConfigError, with the row's name, as `override` does.
        """
        where = f"{self.name}, row {row.name!r}"
        config = override(self.config, row.overrides, where)
        for more in (overrides, row.own_data):
            if more:  # a copy takes time, which a sweep of a thousand rows would notice
                config = override(config, more, where)
        return config


def names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def _module(spec: str) -> tuple[ModuleType, str | None]:
    """The Python file behind `name`, `name:arg`, `path.py` or `path.py:arg`, and the arg."""
    target, _, arg = spec.partition(":")
    path = Path(target)
    if path.suffix != ".py":
        path = CONFIGS / f"{target}.py"
        if not path.is_file():
            hint = nearest("did you mean {!r}?", target, names())
            hint = hint or f"there are {', '.join(names())}"
            raise ConfigError(
                f"no study is called {target!r}; {hint} (or give a path that ends in .py)"
            )
    elif not path.is_file():
        raise ConfigError(f"config file {target!r} does not exist")
    cnn_arch.look_in(path.absolute().parent)  # for networks in files beside the study's
    module_spec = importlib.util.spec_from_file_location(f"cnn_depth_config_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    with _config_errors(path):
        module_spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config file {path} has no function get_config(arg)")
    return module, arg or None


@contextmanager
def _config_errors(path: Path) -> Iterator[None]:
    """Turns whatever the code of a config file raises into a ConfigError with its file and line.

    path: the file. The line is the innermost one in it, or the line of a syntax error.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(path) and f.lineno]
        where, message = f"config file {path}", f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename and not lines:
            where, message = f"config file {error.filename}", error.msg
            lines = [error.lineno or 1]
        elif isinstance(error, SystemExit):
            message = f"ends the program (SystemExit: {error})"
        elif getattr(error, "user_error", False):
            message = str(error)
        elif isinstance(error, TypeError) and "cannot be casted to type <class 'tuple'>" in message:
            message += "; write a tuple, such as (0.5,)"
        line = f" line {lines[-1]}" if lines else ""
        raise ConfigError(f"{where}{line}: {' '.join(message.split())}") from error


def read(spec: str) -> Study:
    """Reads a config file; a file without `sweep()` is a study of one row.

    Raises ConfigError where it is missing or broken, or a row's seed is no earlier row.
    """
    module, arg = _module(spec)
    path = Path(module.__file__ or spec)
    with _config_errors(path):
        config = module.get_config(arg)
    title = visible(((module.__doc__ or "").strip() or path.stem).splitlines()[0].rstrip("."))
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"config file {path}: get_config must return a ConfigDict, not {shown(config)}"
        )
    config = _complete(config, f"config file {path}")
    rows: list[Row] = []
    for name, overrides in _pairs(module, config, spec, arg):
        seed_from = overrides.pop("seed_from", None)
        own_data = _own_data(overrides.pop("own_data", {}), f"{spec}: row {name!r}")
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
        rows.append(Row(name, overrides, seed_from, own_data))
    return Study(visible(path.stem), title, config, tuple(rows))


def _own_data(values: Any, where: str) -> dict[str, Any]:
    """A row's `own_data`, with dotted keys."""
    if not isinstance(values, Mapping):
        expected = "expected values of `data` by their names, such as {'path': 'FOLDER'}"
        raise ConfigError(f"{where}: own_data is {shown(values)}; {expected}")
    return {f"data.{key}": value for key, value in values.items()}


def _complete(config: ConfigDict, where: str) -> ConfigDict:
    """The config of `get_config`, with each value as its key's type. Whether the values make sense
    is checked once the overrides are known."""
    flat, usual = flatten(config), flatten(base())
    missing = set(usual) - {"model.arch"} - set(flat)
    if missing:
        raise ConfigError(f"{where}: get_config lacks {min(missing)}; build it on config.base()")
    options = {key.removeprefix("model."): v for key, v in flat.items() if key[:6] == "model."}
    others = {key: value for key, value in flat.items() if key[:6] != "model."}
    complete = base()
    for key, value in others.items():
        if key not in usual:
            raise ConfigError(unknown_key(key, usual, where))
        assign(complete, key, value, usual[key], where)
    arch = options.pop("arch", "")
    if not isinstance(arch, str):
        raise ConfigError(f"{where}: model.arch must be a name such as 'vgg:E', not {shown(arch)}")
    try:
        complete.model = model(arch, **options) if arch else ConfigDict({"arch": ""})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return complete


def _pairs(
    module: ModuleType, config: ConfigDict, spec: str, arg: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """The pairs that `sweep()` yields; of a file without one, its config as the only row."""
    if not hasattr(module, "sweep"):
        if not config.model.arch:
            raise ConfigError(f"{spec}: get_config sets no config.model; use configs.model(name)")
        return [(config.model.arch, {})]
    path = Path(module.__file__ or spec)
    with _config_errors(path):
        takes_arg = bool(inspect.signature(module.sweep).parameters)
        items = module.sweep(arg) if takes_arg else module.sweep()
        listed = list(itertools.islice(items, MOST_ROWS + 1))
    if len(listed) > MOST_ROWS:
        raise ConfigError(f"{spec}: sweep() yields more than {MOST_ROWS:,} rows")
    pairs = []
    for pair in listed:
        try:
            name, overrides = pair
            pairs.append((str(name), dict(overrides)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{spec}: sweep() must yield (row name, overrides) pairs, not {shown(pair)}"
            ) from error
    return pairs
