"""A peer's process, which is asked a question at a time: pickled, and so is its answer."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Self

from launch import devices


class PeerEnded(RuntimeError):
    """A process that can't measure, or ended before it answered; the message says why."""

    user_error = True


class Process:
    """A Python program that answers; a context manager.

    name: of what it measures, for messages. code: the program, which calls `serve`. variables: of
    its environment, besides those of all our processes. first: the first question, whose answer is
    `told`. Raises PeerEnded where it ends without an answer, or answers with that.
    """

    def __init__(self, name: str, code: str, variables: Mapping[str, str], *first: Any) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [*devices.PYTHON, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**devices.environment(devices.Slot()), **variables},
        )
        try:
            self.told = self.ask(*first)
        except BaseException:
            self.__exit__()
            raise

    def ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(pickle.dumps(question))
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            self._errors.seek(0)
            said = [text for text in self._errors.read().splitlines() if text.strip()]
            last = f" ({said[-1].strip()[:200]})" if said else ""
            raise PeerEnded(f"{self.name}'s process ended with status {status}{last}") from None
        if isinstance(answer, PeerEnded):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._process.communicate(timeout=10)  # closes its input: it then leaves
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


Answer = Callable[..., Any]


def serve(start: Callable[..., tuple[Any, Answer]]) -> None:
    """In such a process: answers until there are no more questions.

    start: of the first question, its answer and the function that answers the others. What either
    raises is an answer too. What else the process prints goes to its errors.
    """
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer: Answer | None = None
    with contextlib.suppress(EOFError):
        while True:
            question = pickle.load(sys.stdin.buffer)
            try:
                if answer is None:
                    told, answer = start(*question)
                else:
                    told = answer(*question)
            except Exception as error:  # whatever a library says is why it is not measured
                words = str(error).strip().splitlines() or [""]
                told = PeerEnded(f"{type(error).__name__}: {words[0][:300]}")
            channel.write(pickle.dumps(told))
            channel.flush()
            if answer is None:
                return


def run(
    failed: str,
    code: str,
    *words: str,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[dict[str, Any]]:
    """The JSON objects, a line each, that a Python program prints, given these arguments.

    Raises PeerEnded, with `failed` and the program's last words, where it does not end well.
    """
    own = {**devices.environment(devices.Slot()), **(variables or {})}
    done = devices.run_code(code, *words, environment=own, seconds=timeout)
    if done.returncode:
        raise PeerEnded(f"{failed}: {devices.last_words(done)}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
