"""A peer's process, which is asked a question at a time: a JSON object a line, and one back."""

from __future__ import annotations

import contextlib
import json
import os
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
    `told`.

    Raises PeerEnded where it ends without an answer, or answers with an `error`.
    """

    def __init__(
        self, name: str, code: str, variables: Mapping[str, str], first: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [*devices.PYTHON, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**devices.environment(devices.Slot()), **variables},
        )
        try:
            self.told = self.ask(first)
        except BaseException:
            self.__exit__()
            raise

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith("\n"):
            status = self._process.wait()
            self._errors.seek(0)
            said = [text for text in self._errors.read().splitlines() if text.strip()]
            last = f" ({said[-1].strip()[:200]})" if said else ""
            raise PeerEnded(f"{self.name}'s process ended with status {status}{last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerEnded(answer["error"])
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


Answer = Callable[[dict[str, Any]], dict[str, Any]]


def serve(start: Callable[[dict[str, Any]], tuple[dict[str, Any], Answer]]) -> None:
    """In such a process: answers until there are no more questions.

    start: of the first question, its answer and the function that answers the others. What either
    raises is an answer too. What else the process prints goes to its errors.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answer: Answer | None = None
    for line in sys.stdin:
        try:
            if answer is None:
                told, answer = start(json.loads(line))
            else:
                told = answer(json.loads(line))
        except Exception as error:  # whatever a library says is why it is not measured
            words = str(error).strip().splitlines() or [""]
            told = {"error": f"{type(error).__name__}: {words[0][:300]}"}
        channel.write(json.dumps(told) + "\n")
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
    done = subprocess.run(
        [*devices.PYTHON, "-c", code, *words],
        env={**devices.environment(devices.Slot()), **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerEnded(f"{failed}: {said[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
