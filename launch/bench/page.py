"""The page that `--page` writes: one Markdown file, with a section for each bench and device.

A section lies between two comments and is replaced as a whole when its bench is measured on that
device again; all else on the page stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline import DataError
from launch.bench.timing import cpu_ticks

HEAD = """\
# Measured speed

Every section was written by `cnn-depth bench NAME --page`, which replaces the section of the same
bench and device and leaves the others alone. Ratios are ours over the peer's, of measurements that
took turns in one run: the median of the repeats, then the lowest and the highest. A target that
was missed is shown as missed. A measurement whose process had less than 0.9 of its cores, or whose
repeats were more than 1.3 apart, is taken again, and is `not trusted` where it stays so.
"""


def write(
    bench: str,
    device: str,
    command: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, str | None],
    body_markdown: str,
    path: Path,
) -> None:
    """Writes what a bench measured on a device, with where, when and how it was measured.

    machine: as `frame.machine` tells it; versions: those that are None are not named; path: the
    page.

    Raises DataError for a page that can't be written or has a section without an end.
    """
    installed = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
    where = [
        f"{machine['processor']}, {machine['usable_cores']} usable cores",
        str(machine["platform"]),
        f"Python {machine['python']}",
    ]
    if machine["load_average"] is not None:
        where.append(f"load {machine['load_average']:.1f} when it began")
    taken = stolen(machine)
    if taken is not None and taken >= 0.01:
        where.append(f"its host gave {taken:.0%} of the time asked of the cores to others")
    begin, end = (f"<!-- {bench} on {device}: {word} -->" for word in ("begin", "end"))
    told = f"{str(machine['date'])[:10]}; {'; '.join(where)}.\n{installed}."
    head = f"## `{bench}` on {device}\n\n{told}\n\n```\n{command}\n```"
    section = f"{begin}\n{head}\n\n{body_markdown.strip()}\n{end}\n"
    try:
        page = path.read_text(encoding="utf-8") if path.exists() else HEAD
        found = re.search(f"{re.escape(begin)}\n.*?{re.escape(end)}\n?", page, re.DOTALL)
        if found:
            page = page[: found.start()] + section + page[found.end() :]
        elif begin in page or end in page:
            raise DataError(f"{path}: the section {begin!r} does not end with {end!r}; mend it")
        else:
            page = f"{page.rstrip()}\n\n{section}"
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--page {path}: {error}") from error


def stolen(machine: Mapping[str, Any]) -> float | None:
    """Of the time asked of a virtual machine's cores since `machine` was told, the share that its
    host gave to others; None where that is not known."""
    before, now = machine["cpu_ticks"], cpu_ticks().get("cpu")
    if before is None or now is None:
        return None
    spent, taken = (after - start for start, after in zip(before, now, strict=True))
    return taken / max(spent + taken, 1)
