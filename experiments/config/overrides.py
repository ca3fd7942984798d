"""A config with some of its keys changed, and one that a run saved."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import cnn_arch
from experiments.config.checks import check
from experiments.config.errors import ConfigError, unknown_key
from experiments.config.keys import base, flatten
from experiments.config.values import assign, builder_options, model, model_keys, older_options


def override(config: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of `config` with `overrides` (dotted keys). where: their origin, for errors.

    A change of `model.arch` keeps the options that differ from the old architecture's defaults and
    that the new one also has. The rest, and those that would change nothing, get its defaults.

    Raises ConfigError for an unknown key (with the nearest one) or a value of the wrong type.
    """
    config = config.copy_and_resolve_references().unlock()
    arch = overrides.get("model.arch", config.model.arch)
    if not isinstance(arch, str):
        raise ConfigError(f"{where}: model.arch must be a name such as 'vgg:E', not {arch!r}")
    arch = cnn_arch.full_name(arch)
    if arch != config.model.arch:
        keys = model_keys(arch)
        old_keys = model_keys(config.model.arch) if config.model.arch else {}
        shared = {
            key: value
            for key, value in config.model.items()
            if key in keys and value != old_keys.get(key)
        }
        idle = cnn_arch.idle(arch, builder_options({**keys, **shared}))
        config.model = model(arch, **{k: v for k, v in shared.items() if k not in idle})
    flat = flatten(config)
    for key, value in {**overrides, "model.arch": arch}.items():
        if key not in flat:
            raise ConfigError(unknown_key(key, flat, where))
        assign(config, key, value, flat[key], where)
    check(config, where)
    return config


def from_json(content: Mapping[str, Any]) -> ConfigDict:
    """A config as a run saved it: JSON turned every tuple into a list."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    config = ConfigDict(tuples(content))
    older = older_options(config.model.arch)
    config.model = ConfigDict({"precision": "default", **older, **config.model})
    for part, usual in base().items():  # a run of an older version lacks the newer keys
        if isinstance(usual, ConfigDict) and part != "model":
            config[part] = ConfigDict({**usual, **config.get(part, {})})
    if config.seeding.run and "normalise" not in content["seeding"]:  # before there was a choice
        config.seeding.normalise = "fit"
    return config
