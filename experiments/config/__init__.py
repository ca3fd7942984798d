"""Configs: what a run is. A study's file and overrides become one checked config."""

from experiments.config.errors import ConfigError, one_of, unknown_key
from experiments.config.keys import KEYS, Key, base, flatten, identity_part, inherits
from experiments.config.overrides import from_json, override
from experiments.config.study import Row, Study, arguments, names, read
from experiments.config.values import (
    builder_options,
    model,
    network_keys,
    older_options,
    parse_set,
)

__all__ = [
    "KEYS",
    "ConfigError",
    "Key",
    "Row",
    "Study",
    "arguments",
    "base",
    "builder_options",
    "flatten",
    "from_json",
    "identity_part",
    "inherits",
    "model",
    "names",
    "network_keys",
    "older_options",
    "one_of",
    "override",
    "parse_set",
    "read",
    "unknown_key",
]
