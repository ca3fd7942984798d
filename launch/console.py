"""A verb's output for people: lines, tables of figures, and bars while images are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from experiments.text import clock, visible

SOON_SECONDS = 2.0  # before a long step says what it does
PLAIN_SECONDS = 15.0  # between lines about one row where bars can't be drawn


def say(console: Console, text: str, style: str = "") -> None:
    """Prints one line as it is, with control characters escaped."""
    console.print(
        visible(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def figures_table(names: Sequence[str], figures: Sequence[str]) -> Table:
    """A table with columns of names, which fold where they are long, and columns of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in names:
        table.add_column(header, overflow="fold")
    for header in figures:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def bars(console: Console, *columns: ProgressColumn) -> Progress:
    """Bars that vanish in the end, and are drawn on a terminal only."""
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def at_times(
    console: Console, pause: float = PLAIN_SECONDS, soon: float | None = None
) -> Callable[[str], None]:
    """Returns `tell(text)`, which prints a line now and then where bars can't be drawn.

    pause: seconds between two lines; soon: until the first, `pause` if not given.
    """
    due = time.monotonic() + (pause if soon is None else soon)

    def tell(text: str) -> None:
        nonlocal due
        if not console.is_terminal and time.monotonic() >= due:
            due = time.monotonic() + pause
            say(console, text)

    return tell


@contextmanager
def images_bar(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of images with rate and time left; yields `on_progress(done, total)`.

    Where bars can't be drawn, it prints a plain line now and then.
    """
    bar = bars(
        console,
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} images  {task.fields[state]}"),
    )
    task = bar.add_task(escape(visible(label)), total=None, state="", visible=False)
    started, tell = time.monotonic(), at_times(console)

    def on_progress(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - started, 1e-9)
        seconds_left = (total - done) / rate if done else None
        state = f"{rate:,.0f} images/s  {clock(seconds_left)} left"
        bar.update(task, completed=done, total=total, state=state, visible=True)
        tell(f"{label}: {done:,} of {total:,} images, {state}")

    with bar:
        yield on_progress


@contextmanager
def reading(console: Console, source: str) -> Iterator[Callable[[int, int], None]]:
    """A line that changes while data in `source` are looked for; yields `on_progress(done, total)`
    for what is read of them.

    Where it can't be drawn, it prints plain lines if reading takes more than seconds.
    """
    part: tuple[float, int] = time.monotonic(), 0  # (when this total was first given, total)
    tell = at_times(console, soon=SOON_SECONDS)

    def on_progress(done: int, total: int) -> None:
        nonlocal part
        now = time.monotonic()
        if part[1] != total:
            part = now, total
        state = (
            f"reading {source} to know it by its contents, once: {100 * done / max(total, 1):.0f}%"
        )
        if done:
            state += f", {clock((now - part[0]) * (total - done) / done)} left"
        status.update(escape(visible(state)))
        tell(state)

    with console.status(f"looking through {escape(visible(source))}") as status:
        yield on_progress
