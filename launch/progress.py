"""What a person sees while runs are trained: a bar for each active row, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from experiments.runs.runs import AVERAGED, error_of
from experiments.text import clock, visible
from launch.console import at_times, bars, say
from launch.planning.estimate import Remaining
from launch.planning.graph import Job

WHOLE_SECONDS = 60.0  # between lines about all runs where bars can't be drawn
RECKONED_SECONDS = 5.0  # between computations of the time left of all runs


class _Left(ProgressColumn):
    """Time left: of a row by its estimate, once it trains by its own rate; or of all rows."""

    max_refresh = 0.5

    def render(self, task: Task) -> RenderableType:
        eta = task.fields["left"]
        eta = eta() if callable(eta) else eta
        return Text(f"{clock(eta)} left" if eta is not None else "", style="progress.remaining")


class Watch:
    """Shows events of jobs. Use as a context manager, and hand `on_event` to the executor.

    estimates: run id -> expected seconds, empty without estimates. slots: jobs at once.
    """

    def __init__(
        self, console: Console, jobs: Sequence[Job], estimates: dict[str, float], slots: int = 1
    ):
        self.console = console
        self.estimates = estimates
        self.total = len(jobs)
        self.remaining = Remaining(jobs, estimates, slots) if estimates else None
        self.line_time = time.monotonic()  # of the last line about all runs
        self.reckoned: tuple[float, float] | None = (
            None  # (seconds left of all runs, when computed)
        )
        self.total_task: TaskID | None = None
        self.ended = 0
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.tell: dict[str, Callable[[str], None]] = {}  # run id -> prints a line at times
        state = TextColumn("{task.fields[state]}")
        description = TextColumn("{task.description}")
        self.bars = bars(console, description, BarColumn(bar_width=24), state, _Left())

    def __enter__(self) -> Watch:
        if self.total > 1:
            self.total_task = self.bars.add_task(
                f"all {self.total} runs", total=self.total, state="0 done", left=self.left
            )
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def on_event(self, job: Job, event: dict[str, Any]) -> None:
        """Takes one event of `local.run`."""
        kind = event["event"]
        if self.remaining is not None:
            if kind == "launched":
                self.remaining.begin(job.run.id)
            elif kind == "progress":
                self.remaining.tell(job.run.id, event["left"])
            elif kind in ("finished", "failed", "blocked", "ended"):
                self.remaining.end(job.run.id, finished=kind == "finished")
        getattr(self, "_" + kind)(job, event)
        if not self.console.is_terminal and time.monotonic() - self.line_time > WHOLE_SECONDS:
            self.line_time = time.monotonic()
            if self.total > 1 and self.left() is not None:
                say(
                    self.console,
                    f"{self.ended} of {self.total} runs done, {clock(self.left())} left",
                )

    def left(self) -> float | None:
        """Seconds until all jobs have ended; None without estimates."""
        if self.remaining is None:
            return None
        now = time.monotonic()
        if self.reckoned is None or now - self.reckoned[1] > RECKONED_SECONDS:
            self.reckoned = self.remaining.seconds(), now
        seconds, when = self.reckoned
        return max(0.0, seconds - (now - when))

    def _launched(self, job: Job, event: dict[str, Any]) -> None:
        estimate = self.estimates.get(job.run.id)
        self.started[job.run.id] = time.monotonic()
        self.tell[job.run.id] = at_times(self.console)
        self.tasks[job.run.id] = self.bars.add_task(
            escape(visible(job.name)), total=job.steps, state="starting", left=estimate
        )
        if not self.console.is_terminal:
            about = "" if estimate is None else f", about {clock(estimate)}"
            say(self.console, f"{job.name}: starting{about}")

    def _locked(self, job: Job, event: dict[str, Any]) -> None:
        state = "another process trains it; waiting"
        self.bars.update(self.tasks[job.run.id], state=state)
        if not self.console.is_terminal:
            say(self.console, f"{job.name}: {state}")

    def _start(self, job: Job, event: dict[str, Any]) -> None:
        state = f"resuming at step {event['step']}" if event["step"] else "compiling"
        self.bars.update(self.tasks[job.run.id], completed=event["step"], state=state)

    def _statistics(self, job: Job, event: dict[str, Any]) -> None:
        state = f"means of the training images: {event['images']:,} of {event['of']:,} read"
        self.bars.update(self.tasks[job.run.id], state=state)
        self.tell[job.run.id](f"{job.name}: {state}")

    def _testing(self, job: Job, event: dict[str, Any]) -> None:
        state = f"test {event['what']}: {event['images']:,} of {event['of']:,} images"
        self.bars.update(self.tasks[job.run.id], state=state, left=None)
        self.tell[job.run.id](f"{job.name}: {state}")

    def _bad_image(self, job: Job, event: dict[str, Any]) -> None:
        say(self.console, f"{job.name}: left out: {event['reason']}")

    def _note(self, job: Job, event: dict[str, Any]) -> None:
        say(self.console, f"{job.name}: {event['text']}")

    def _seeded(self, job: Job, event: dict[str, Any]) -> None:
        seeding = job.seeding.name if job.seeding is not None else job.config.seeding.run
        say(self.console, f"{job.name}, seeded by {seeding}:")
        self.console.print(Text(event["summary"], style="dim"))

    def _progress(self, job: Job, event: dict[str, Any]) -> None:
        step, seconds_left = event["step"], event["left"]
        state = f"{event['images_per_s']:,.0f} images/s"
        if event["loss"] is not None:
            state += f"  loss {event['loss']:.3f}"
        if event["error"] is not None:
            state += f"  error {event['error']:.1f}%"
        if event["bottleneck"]:
            state += f"  slowest: {event['bottleneck']}"
        self.bars.update(self.tasks[job.run.id], completed=step, state=state, left=seconds_left)
        shown = f"step {step} of {event['steps']}, {state}, {clock(seconds_left)} left"
        self.tell[job.run.id](f"{job.name}: {shown}")

    def _finished(self, job: Job, event: dict[str, Any]) -> None:
        result = job.run.read("result") or {}
        duration = clock(time.monotonic() - self.started[job.run.id])
        figure = f"test error {error_of(result):.1f}%"
        if AVERAGED in result:
            figure = f"mean average precision {result[AVERAGED]:.1f}%"
        self._close(job, f"{figure}, loss {result['train_loss']:.3f}, {duration}")

    def _failed(self, job: Job, event: dict[str, Any]) -> None:
        self._close(job, f"failed: {event['reason']}")

    def _blocked(self, job: Job, event: dict[str, Any]) -> None:
        self._close(job, f"not run: {event['reason']}")

    def _ended(self, job: Job, event: dict[str, Any]) -> None:
        self._close(job, f"ended: {event['reason']}")

    def _close(self, job: Job, outcome: str) -> None:
        self.ended += 1
        if job.run.id in self.tasks:
            self.bars.remove_task(self.tasks.pop(job.run.id))
        if self.total_task is not None:
            self.bars.update(self.total_task, completed=self.ended, state=f"{self.ended} done")
        say(self.console, f"[{self.ended}/{self.total}] {job.name}: {outcome}")
