"""A message for a person who waits at a terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1.0  # of silence


@contextmanager
def waiting(activity: str) -> Iterator[None]:
    """Prints the activity on standard error, if that is a terminal and it takes over SECONDS.

    The module imports nothing heavy, so that slow imports can be inside.
    """

    def say() -> None:
        print(f"{activity} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(SECONDS, say)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
