"""A peer's process, which answers one question at a time; both are pickled."""

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
    """A Python program that answers questions; a context manager.

    name: what it measures, for messages. code: the program, which calls `serve`. variables: of its
    environment, besides those of all our processes. first: the first question; `description` is its
    answer. Raises PeerEnded where the program ends without an answer, or answers with that.
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
            self.description = self.ask(*first)
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
            lines = [line for line in self._errors.read().splitlines() if line.strip()]
            last = f" ({lines[-1].strip()[:200]})" if lines else ""
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

    start: gives the answer to the first question, and the function that answers the others. What
    either raises is an answer too. What the process prints goes to its errors.
    """
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer: Answer | None = None
    with contextlib.suppress(EOFError):
        while True:
            question = pickle.load(sys.stdin.buffer)
            try:
                if answer is None:
                    reply, answer = start(*question)
                else:
                    reply = answer(*question)
            except Exception as error:  # whatever a library says is why it is not measured
                lines = str(error).strip().splitlines() or [""]
                reply = PeerEnded(f"{type(error).__name__}: {lines[0][:300]}")
            channel.write(pickle.dumps(reply))
            channel.flush()
            if answer is None:
                return


def run(
    failure: str,
    code: str,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[dict[str, Any]]:
    """The JSON objects, a line each, that a Python program prints, given these arguments.

    Raises PeerEnded, with `failure` and the program's last words, where it fails.
    """
    environment = {**devices.environment(devices.Slot()), **(variables or {})}
    completed = devices.run_code(code, *arguments, environment=environment, seconds=timeout)
    if completed.returncode:
        raise PeerEnded(f"{failure}: {devices.last_words(completed)}")
    return [json.loads(line) for line in completed.stdout.splitlines() if line.startswith("{")]
