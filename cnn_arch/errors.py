"""What goes wrong when a network is asked for that cannot be built."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class ArchitectureError(ValueError):
    """A network cannot be built, fed or seeded as asked; the message is meant for the user."""

    user_error = True  # the command line shows the message only


class WeightsError(ArchitectureError):
    """A file of weights cannot be read or written; the message names the file and what is wrong."""


def unknown(kind: str, name: object, choices: Iterable[str], meant: str = "") -> ArchitectureError:
    """The error for a name that does not exist: the nearest name first, then all of them.

    meant: the nearest, where it is known.
    """
    choices = list(choices)
    near = [meant] if meant else get_close_matches(str(name), choices, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ArchitectureError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}.")


def choose(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """What has the name that was given. Raises `unknown` where there is no such name."""
    if name not in choices:
        raise unknown(kind, name, choices)
    return choices[name]
