"""A limit on what threads hold in memory together."""

import contextlib
import threading
from collections.abc import Iterator


class Room:
    """Lets threads in while what they hold together is at most `most`; more than that, alone."""

    def __init__(self, most: int):
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Waits for its share of the room, and gives it back in the end."""
        amount = min(amount, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + amount <= self._most)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()
