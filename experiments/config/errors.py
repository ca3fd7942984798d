"""What can't be meant is told in one line, with the nearest name that can."""

import difflib
from collections.abc import Iterable
from typing import Any

from experiments.text import nearest


class ConfigError(ValueError):
    """A config file, key or value that can't be used; the message says which and what would do."""

    user_error = True


def one_of(value: str, known: Iterable[str], what: str) -> None:
    """Raises ConfigError, with the nearest name, where `value` is not one of `known`."""
    known = list(known)
    if value not in known:
        hint = nearest("did you mean {!r}? ", value, known, 0.4)
        raise ConfigError(f"unknown {what} {value!r}; {hint}known: {', '.join(known)}")


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """What is said of a key that is not among `known`, with those that are near to it."""
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


def shown(value: Any) -> str:
    """A value as an error shows it, and not all of it where it is very long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
