"""What a verb says to a person: a line, a table of figures, and bars while images are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from experiments.text import clock, visible

SOON_SECONDS = 2.0  # after which whatever takes longer says what it does
PLAIN_SECONDS = 15.0  # between lines about one row where bars can't be drawn


def say(console: Console, text: str, style: str = "") -> None:
    """Prints one line to the letter, what steers terminals escaped."""
    console.print(
        visible(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def figures_table(names: Sequence[str], figures: Sequence[str]) -> Table:
    """A table with columns of names, which are folded where they are long, and of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in names:
        table.add_column(header, overflow="fold")
    for header in figures:
        table.add_column(header, justify="right", no_wrap=True)
    return table


@contextmanager
def images_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of images with rate and time left: gives `on_progress(done, total)`.

    Where bars can't be drawn, a plain line now and then.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} images  {task.fields[state]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(escape(visible(what)), total=None, state="", visible=False)
    started = said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        rate = done / max(time.monotonic() - started, 1e-9)
        left = (total - done) / rate if done else None
        state = f"{rate:,.0f} images/s  {clock(left)} left"
        bar.update(task, completed=done, total=total, state=state, visible=True)
        if not console.is_terminal and time.monotonic() - said > PLAIN_SECONDS:
            said = time.monotonic()
            say(console, f"{what}: {done:,} of {total:,} images, {state}")

    with bar:
        yield on_progress


@contextmanager
def reading(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """While data are found in `what`: gives `on_progress(done, total)` for what is read of them.

    A line that changes; where it can't be drawn, plain lines when it takes more than seconds.
    """
    started = said = time.monotonic()
    part: tuple[float, int] = started, 0  # when its total was first heard of

    def on_progress(done: int, total: int) -> None:
        nonlocal said, part
        now = time.monotonic()
        if part[1] != total:
            part = now, total
        state = (
            f"reading {what} to know it by its contents, once: {100 * done / max(total, 1):.0f}%"
        )
        if done:
            state += f", {clock((now - part[0]) * (total - done) / done)} left"
        status.update(escape(visible(state)))
        pause = SOON_SECONDS if said == started else PLAIN_SECONDS
        if not console.is_terminal and now - said > pause:
            said = now
            say(console, state)

    with console.status(f"looking through {escape(visible(what))}") as status:
        yield on_progress
