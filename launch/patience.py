"""A word to whoever waits at a terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1.0  # of silence


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on standard error, if that is a terminal, what takes longer than SECONDS.

    It imports nothing heavy, so that it can hold the imports that take so long.
    """

    def say() -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(SECONDS, say)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
