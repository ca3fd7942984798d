"""Which runs a user names: one resolver for all verbs.

A word is a run's id or folder, `study/row`, a row's name (`B`, `B (seed 2)`) or a part that only
one run's id has; with a * or ? in it, all runs whose id, name or `study/name` fits.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.runs.runs import Run, RunError
from experiments.text import nearest, visible


class Named(Protocol):
    """A run's folder, its study ('' if none made it), and its row's name with the seed."""

    @property
    def folder(self) -> Path: ...
    @property
    def study(self) -> str: ...
    @property
    def name(self) -> str: ...


Known = TypeVar("Known", bound=Named)


@dataclass(frozen=True)
class Labelled:
    """A run as `of_folder` lists it."""

    folder: Path
    study: str
    name: str

    @property
    def row(self) -> str:
        """`study/row (seed 2)`; the name alone where no study made it."""
        return f"{self.study}/{self.name}" if self.study else self.name


def with_seed(row: str, seed: int) -> str:
    """`row`, or `row (seed 3)` for another seed than 0."""
    return f"{row} (seed {seed})" if seed else row


def of_folder(folder: Path) -> list[Labelled]:
    """The runs under `folder`, those of imported weights too."""
    return [labelled(Run(path.parent)) for path in sorted(folder.glob("*/run.json"))]


def labelled(run: Run) -> Labelled:
    """A run with the study and the row that made it first; one that can't be read has no name but
    its id."""
    made: dict[str, Any] = {}
    with suppress(RunError):
        made = run.read("run") or {}
    row, study = made.get("row") or made.get("name") or run.id, made.get("study") or ""
    name = with_seed(visible(str(row)), made.get("seed") or 0)
    return Labelled(run.folder, visible(str(study)), name)


def find_run(word: str, folder: Path) -> Run:
    """The one run that a word names: a path to its folder anywhere, or a run under `folder`.

    Raises RunError where it names none, or several.
    """
    return find_runs([word], folder, one=True)[0]


def find_runs(words: Sequence[str], folder: Path, *, one: bool = False) -> list[Run]:
    """The runs that words name, in the order of the words. See `find_run`.

    one: a word may name only one run.
    """
    known: list[Labelled] | None = None
    found: list[Run] = []
    for word in words:
        paths = [path for path in (Path(word), folder / word) if (path / "run.json").is_file()]
        if word and paths:
            found.append(Run(paths[0]))
            continue
        known = of_folder(folder) if known is None else known
        fits = [find_one(word, known, folder)] if one else find([word], known, folder)
        found += [Run(fit.folder) for fit in fits]
    return found


def find(words: Sequence[str], known: Sequence[Known], folder: Path) -> list[Known]:
    """Those that words name, each once, in the order of `known`.

    Raises RunError where a word fits none; or several, and it is no pattern.
    """
    named: set[Path] = set()
    for word in words:
        fits = matches(word, known)
        if not fits:
            raise RunError(_unknown(word, known, folder))
        if len(fits) > 1 and not _is_pattern(word):
            raise RunError(f"'{word}' fits {len(fits)} runs, name one by its id: {_listed(fits)}")
        named.update(one.folder for one in fits)
    return [one for one in known if one.folder in named]


def find_one(word: str, known: Sequence[Known], folder: Path) -> Known:
    """The one that a word names. Raises RunError where it names none, or several."""
    fits = find([word], known, folder)
    if len(fits) > 1:
        raise RunError(f"'{word}' fits {len(fits)} runs; expected one: {_listed(fits)}")
    return fits[0]


def of_study(study: str, known: Sequence[Known], folder: Path) -> list[Known]:
    """The runs of a study. Raises RunError where there are none."""
    fits = [one for one in known if one.study == study]
    if not fits:
        studies = list(dict.fromkeys(one.study for one in known))
        hint = nearest("did you mean '{}'?", study, studies, 0.5)
        hint = hint or f"there are: {', '.join(studies)}"
        raise RunError(f"no run in '{folder}' belongs to the study '{study}'; {hint}")
    return fits


def matches(word: str, known: Sequence[Known]) -> list[Known]:
    """Those that a word fits best: by id, else by name, else by a part of the id."""
    if _is_pattern(word):
        return [one for one in known if any(fnmatch.fnmatchcase(n, word) for n in _names(one))]
    path = Path(word).resolve() if os.sep in word and Path(word).is_dir() else None
    tests: list[Callable[[Named], bool]] = [
        lambda one: one.folder.name == word or (path is not None and one.folder.resolve() == path),
        lambda one: word in _names(one),
        lambda one: bool(word) and word in one.folder.name,
    ]
    for fits in tests:
        if found := [one for one in known if fits(one)]:
            return found
    return []


def _names(one: Named) -> tuple[str, str, str]:
    return one.folder.name, one.name, f"{one.study}/{one.name}"


def _is_pattern(word: str) -> bool:
    return "*" in word or "?" in word


def _listed(some: Sequence[Named]) -> str:
    named = "; ".join(f"{one.folder.name} ({one.study}/{one.name})" for one in some[:5])
    return named + (f"; and {len(some) - 5} more" if len(some) > 5 else "")


def _unknown(word: str, known: Sequence[Named], folder: Path) -> str:
    if not known:
        return f"no run is called '{word}': there are no runs in '{folder}'"
    names = list(dict.fromkeys(one.name for one in known))
    all_names = [name for one in known for name in _names(one)]
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = nearest("did you mean '{}'?", word, all_names, 0.5) or f"there are: {some}"
    return f"no run in '{folder}' is called '{word}'; {hint}"
