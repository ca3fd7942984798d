"""The error for data that cannot be used, and how to install packages that are missing."""

from collections.abc import Iterable
from difflib import get_close_matches

# The package is on no registry: extras are installed from the checkout.
INSTALL = "pip install -e '.[{0}]' in the checkout (or make sweep EXTRA={0})"


class DataError(ValueError):
    """Bad data or a view that cannot be taken of it; the message is for the user to read."""

    user_error = True  # the command line shows the message only


def nearest(hint: str, word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`hint`, as `did you mean {!r}?`, with the name that is nearest to `word`; '' without one.

    cutoff: how near it has to be, from 0 to 1.
    """
    matches = get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return hint.format(matches[0]) if matches else ""
