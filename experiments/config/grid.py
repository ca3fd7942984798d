"""Rows of a study at several values of some keys."""

import fnmatch
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from experiments.config.errors import ConfigError
from experiments.config.study import MOST_ROWS, Study
from experiments.text import nearest, visible

Axis = tuple[str, tuple[str, ...]]  # a key and its values, as text


def axes(texts: Sequence[str]) -> list[Axis]:
    """`KEY=VALUE,VALUE,...` texts as keys and values. Commas in brackets separate no values.

    Raises ConfigError for a text of another form, and for a key that comes twice.
    """
    axes: list[Axis] = []
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        values = tuple(_parts(listed))
        if not equals or not key or not all(values):
            raise ConfigError(
                f"--grid {text!r}: expected KEY=VALUE,VALUE,..., such as schedule.lr=0.01,0.1"
            )
        if key in dict(axes):
            raise ConfigError(f"--grid {key} is given twice; list all of its values after one =")
        axes.append((key, values))
    return axes


def _parts(listed: str) -> list[str]:
    """The parts between commas outside of brackets, without spaces around them."""
    parts, depth = [""], 0
    for sign in listed:
        depth = max(0, depth + (sign in "([") - (sign in ")]"))
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def expanded(study: Study, axes: Sequence[Axis], *, together: bool = False) -> Study:
    """The study with a row for each of its rows and each combination of values.

    Rows are called `ROW, lr=0.01, width=2`, by the last parts of the keys where these differ. A row
    is seeded by the one with the same values. together: the first values of all keys are a
    combination, the second ones, and so on.

    Raises ConfigError where values come twice, `together` has other numbers of them, or rows are
    too many.
    """
    if not axes:
        return study
    lengths = {len(values) for _, values in axes}
    if together and len(lengths) > 1:
        counts = ", ".join(f"{key}: {len(values)}" for key, values in axes)
        raise ConfigError(f"--zip needs as many values of each key ({counts})")
    n = max(lengths) if together else math.prod(len(values) for _, values in axes)
    if n * len(study.rows) > MOST_ROWS:
        raise ConfigError(f"--grid makes {n * len(study.rows):,} rows; at most {MOST_ROWS:,}")
    keys = [key for key, _ in axes]
    last = [key.rpartition(".")[2] for key in keys]
    short = [part if last.count(part) == 1 else key for part, key in zip(last, keys, strict=True)]
    lists = [values for _, values in axes]
    combinations = list(zip(*lists, strict=True) if together else itertools.product(*lists))
    if repeated := [values for values, count in Counter(combinations).items() if count > 1]:
        raise ConfigError(f"--grid {', '.join(keys)}: {', '.join(repeated[0])!r} comes twice")
    rows = []
    for values in combinations:
        label = visible(", ".join(map("=".join, zip(short, values, strict=True))))
        changes = dict(zip(keys, values, strict=True))
        rows += [
            replace(
                row,
                name=f"{row.name}, {label}",
                overrides={**row.overrides, **changes},
                seed_from=row.seed_from and f"{row.seed_from}, {label}",
            )
            for row in study.rows
        ]
    return replace(study, rows=tuple(rows))


def selected(study: Study, patterns: Sequence[str]) -> Study:
    """The study with the rows that patterns such as 'resnet-*' name, and those that seed them.

    'resnet-8' also names its rows at all values of a grid. Without patterns it has all rows.
    """
    if not patterns:
        return study
    names = [row.name for row in study.rows]
    selected = {name for pattern in patterns for name in _fitting(pattern, names)}
    for row in reversed(study.rows):
        if row.name in selected and row.seed_from:
            selected.add(row.seed_from)
    return replace(study, rows=tuple(row for row in study.rows if row.name in selected))


def check_some(studies: Sequence[Study], patterns: Sequence[str]) -> None:
    """Raises ConfigError for a pattern that fits no row of any of the studies."""
    names = [row.name for study in studies for row in study.rows]
    for pattern in patterns:
        if not _fitting(pattern, names):
            hint = nearest("did you mean {!r}?", pattern, names)
            some_names = [*map(repr, names[:8]), *["..."] * (len(names) > 8)]
            hint = hint or f"there are {', '.join(some_names)}"
            where = " or ".join(study.name for study in studies)
            raise ConfigError(f"--rows {pattern!r} fits no row of {where}; {hint}")


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    exact = [name for name in names if name == pattern]
    return exact or fnmatch.filter(names, pattern) or fnmatch.filter(names, f"{pattern}, *")
