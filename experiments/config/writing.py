"""A config as a study file that can be edited and run."""

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.config.errors import one_of
from experiments.config.keys import DEFAULTS, KEYS, flatten
from experiments.config.overrides import override
from experiments.config.study import Study
from experiments.config.values import model_keys, network_keys

# Keys that `seed_from` sets, and nobody writes.
SET_BY_SEEDING = ("seeding.run", "seeding.weights")

_FILE = '''\
"""{head}
"""

{imports}from ml_collections import ConfigDict

from experiments import config as configs


def get_config(arg: str | None = None) -> ConfigDict:
    configs.arguments(arg)
    config = configs.base()
    config.model = configs.model("{arch}")
{settings}    return config
'''
_SWEEP = """

def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
"""


def resolved(
    study: Study, row: str | None, overrides: Mapping[str, Any]
) -> list[tuple[str, ConfigDict]]:
    """The names and configs of a row and of those that seed it, which come first.

    Without `row` it is the study's config alone, named by its architecture.

    Raises ConfigError for an unknown row or an impossible override.
    """
    if row is None:
        config = override(study.config, overrides, study.name)
        return [(config.model.arch, config)]
    rows = {r.name: r for r in study.rows}
    one_of(row, rows, f"row of {study.name}")
    chain = []
    name: str | None = row
    while name is not None:
        chain.append((name, study.config_of(rows[name], overrides)))
        name = rows[name].seed_from
    return chain[::-1]


def settings(config: ConfigDict, full: bool) -> dict[str, Any]:
    """The keys of a config that differ from their defaults, or all of them, flat and in the order
    of KEYS. full: all keys."""
    flat, usual = flatten(config), _defaults(config)
    options = [key for key in flat if key in usual and key not in KEYS]
    first = list(KEYS).index("data.name")  # options follow what all models have
    names = [*list(KEYS)[:first], *options, *list(KEYS)[first:]]
    return {
        key: flat[key]
        for key in names
        if key not in SET_BY_SEEDING and (full or flat[key] != usual[key])
    }


def study_file(
    study: Study, chain: list[tuple[str, ConfigDict]], command: str, file: str, full: bool = False
) -> str:
    """The text of a study file that has the last config of `chain`, and seeds it by the others.

    chain: as `resolved` returns it. command: that the file is written by. file: its name.
    full: whether keys at their defaults are written, too.
    """
    name, config = chain[-1]
    title = f"{study.title}: row '{name}'"
    run = [f"cnn-depth train {shlex.quote(file)}"]
    if len(chain) > 1:
        run = [f"cnn-depth sweep {shlex.quote(file)}", f"{run[0]} --row {shlex.quote(name)}"]
    keys = {**KEYS, **network_keys(config.model.arch)}
    lines = []
    for key, value in settings(config, full).items():
        if key != "model.arch":
            lines += textwrap.wrap(f"# {keys[key].meaning}", 94, subsequent_indent="# ")
            lines.append(f"config.{key} = {_literal(value)}")
    paragraph = f"Written by `{command}`. `cnn-depth list keys` shows what other keys there are."
    head = "\n".join([f"{title}.", "", *(f"    {line}" for line in run), ""])
    text = f"{head}\n" + "\n".join(textwrap.wrap(paragraph, 98, break_on_hyphens=False))
    text = _FILE.format(
        head=text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"'),
        imports="from collections.abc import Iterator\nfrom typing import Any\n\n"
        if len(chain) > 1
        else "",
        arch=config.model.arch,
        settings=textwrap.indent("".join(f"{line}\n" for line in lines), "    "),
    )
    if len(chain) == 1:
        return text
    return text + _SWEEP + textwrap.indent("".join(_rows(chain)), "    ")


def _rows(chain: list[tuple[str, ConfigDict]]) -> Iterable[str]:
    """The lines of `sweep()`: each row with its changes of the last config."""
    seed_from: str | None = None
    for name, config in chain:
        changes = _changes(chain[-1][1], config)
        if seed_from is not None:
            changes["seed_from"] = seed_from
        yield f"yield {_literal(name)}, {_literal(changes)}\n"
        seed_from = name


def _changes(config: ConfigDict, target: ConfigDict) -> dict[str, Any]:
    """The overrides that turn one config into another. An override of `model.arch` keeps options
    that are not at their defaults, so these are written out."""
    before, after, defaults = flatten(config), flatten(target), _defaults(target)
    if before["model.arch"] != after["model.arch"]:
        usual = _defaults(config)
        non_default = [key for key, value in before.items() if value != usual.get(key)]
        before |= {key: value for key, value in defaults.items() if key.startswith("model.")}
        before |= {key: None for key in non_default if key.startswith("model.")}
    return {key: value for key, value in after.items() if key in defaults and value != before[key]}


def _defaults(config: ConfigDict) -> dict[str, Any]:
    """The default of each key, and of the options of the config's architecture."""
    options = model_keys(config.model.arch).items()
    return {**DEFAULTS, **{f"model.{name}": value for name, value in options}}


def _literal(value: Any) -> str:
    """A value as Python code, with double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    plain = isinstance(value, str) and not {'"', "'", "\\"} & set(value) and value.isprintable()
    return f'"{value}"' if plain else repr(value)
