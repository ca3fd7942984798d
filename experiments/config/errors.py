"""Errors of configs: one line each, with the nearest name that is known."""

import difflib
from collections.abc import Iterable
from typing import Any

from experiments.text import nearest


class ConfigError(ValueError):
    """A config file, key or value that can't be used; the message says which and what can."""

    user_error = True


def one_of(value: str, choices: Iterable[str], kind: str) -> None:
    """Raises ConfigError, with the nearest name, where `value` is not one of `choices`."""
    choices = list(choices)
    if value not in choices:
        hint = nearest("did you mean {!r}? ", value, choices, 0.4)
        raise ConfigError(f"unknown {kind} {value!r}; {hint}known: {', '.join(choices)}")


def unknown_key(key: str, keys: Iterable[str], where: str) -> str:
    """The message about a key that is not among `keys`, with those that are near to it."""
    keys = sorted(keys)
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
    word = difflib.get_close_matches(
        key.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in keys], n=1, cutoff=0.8
    )
    if word:  # 'batch_size' and 'data.batch_size' are near to each key that ends so
        near = [k for k in keys if k.rsplit(".", 1)[-1] == word[0]]
    hint = f"did you mean {' or '.join(map(repr, near))}?"
    hint = f"; {hint}" if near else f"; the keys are {', '.join(keys)}"
    return f"{where}: unknown key {key!r}{hint}"


def shown(value: Any) -> str:
    """A value as an error shows it, shortened where it is very long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
