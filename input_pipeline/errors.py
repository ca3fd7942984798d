"""What is raised when the data a user asked for cannot be used, and how to install what lacks."""

from collections.abc import Iterable
from difflib import get_close_matches

# The package is on no registry: extras are installed from the checkout.
INSTALL = "pip install -e '.[{0}]' in the checkout (or make sweep EXTRA={0})"


class DataError(ValueError):
    """Bad data or a view that cannot be taken of it; the message is for the user to read."""

    user_error = True  # the command line shows the message only


def nearest(hint: str, word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`hint` with the nearest of the known names in it, as `did you mean {!r}?`; '' without one.

    cutoff: how near it has to be, from 0 to 1.
    """
    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return hint.format(found[0]) if found else ""
