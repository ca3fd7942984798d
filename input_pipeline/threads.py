"""Work that threads share, and a limit on what they hold in memory together."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait


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


def each(work: Callable[[int], None], numbers: Iterable[int], threads: int) -> Generator[int]:
    """Calls `work` with each number, and tells now and then how many are done.

    Raises what one of the threads raised. Closed before its end, it starts no more work.
    """
    waiting, lock = iter(numbers), threading.Lock()
    stop, done = threading.Event(), [0] * threads

    def loop(thread: int) -> None:
        while not stop.is_set():
            with lock:
                number = next(waiting, None)
            if number is None:
                return
            work(number)
            done[thread] += 1

    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(loop, thread) for thread in range(threads)}
        try:
            while running:
                ended, running = wait(running, timeout=0.1)
                for future in ended:
                    future.result()
                yield sum(done)
        finally:
            stop.set()
