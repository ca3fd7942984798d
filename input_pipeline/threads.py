"""Work that threads share, and a limit on the memory that they use together."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait


class MemoryBudget:
    """Lets threads in while they use at most `limit` together. Who needs more is let in alone."""

    def __init__(self, limit: int):
        self._limit, self._used, self._changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Waits until `amount` is free, and gives it back at the end."""
        amount = min(amount, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self._limit)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


def run_in_threads(
    work: Callable[[int], None], numbers: Iterable[int], threads: int
) -> Generator[int]:
    """Calls `work` with each number, and yields now and then how many are done.

    An error of a thread is raised here. Closed before its end, it starts no more work.
    """
    remaining, lock = iter(numbers), threading.Lock()
    stop, counts = threading.Event(), [0] * threads

    def loop(thread: int) -> None:
        while not stop.is_set():
            with lock:
                number = next(remaining, None)
            if number is None:
                return
            work(number)
            counts[thread] += 1

    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(loop, thread) for thread in range(threads)}
        try:
            while running:
                finished, running = wait(running, timeout=0.1)
                for future in finished:
                    future.result()
                yield sum(counts)
        finally:
            stop.set()
