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


RunT = TypeVar("RunT", bound=Named)


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
    """A run with the study and row that first made it; if it can't be read, its id is its name."""
    content: dict[str, Any] = {}
    with suppress(RunError):
        content = run.read("run") or {}
    row, study = content.get("row") or content.get("name") or run.id, content.get("study") or ""
    name = with_seed(visible(str(row)), content.get("seed") or 0)
    return Labelled(run.folder, visible(str(study)), name)


def find_run(word: str, folder: Path) -> Run:
    """The one run that a word names: a path to its folder anywhere, or a run under `folder`.

    Raises RunError where it names none, or several.
    """
    return find_runs([word], folder, single=True)[0]


def find_runs(words: Sequence[str], folder: Path, *, single: bool = False) -> list[Run]:
    """The runs that words name, in the order of the words. See `find_run`.

    single: a word may name only one run.
    """
    listed: list[Labelled] | None = None
    runs: list[Run] = []
    for word in words:
        # `Path.is_file` would raise for a name that is too long.
        paths = [path for path in (Path(word), folder / word) if os.path.isfile(path / "run.json")]
        if word and paths:
            runs.append(Run(paths[0]))
            continue
        listed = of_folder(folder) if listed is None else listed
        matching = [find_one(word, listed, folder)] if single else find([word], listed, folder)
        runs += [Run(run.folder) for run in matching]
    return runs


def find(words: Sequence[str], runs: Sequence[RunT], folder: Path) -> list[RunT]:
    """The runs that words name, each once, in the order of `runs`.

    Raises RunError where a word fits none, or fits several and is no pattern.
    """
    folders: set[Path] = set()
    for word in words:
        matching = matches(word, runs)
        if not matching:
            raise RunError(_unknown(word, runs, folder))
        if len(matching) > 1 and not _is_pattern(word):
            raise RunError(
                f"'{word}' fits {len(matching)} runs, name one by its id: {_listed(matching)}"
            )
        folders.update(run.folder for run in matching)
    return [run for run in runs if run.folder in folders]


def find_one(word: str, runs: Sequence[RunT], folder: Path) -> RunT:
    """The one run that a word names. Raises RunError where it names none, or several."""
    matching = find([word], runs, folder)
    if len(matching) > 1:
        raise RunError(f"'{word}' fits {len(matching)} runs; expected one: {_listed(matching)}")
    return matching[0]


def of_study(study: str, runs: Sequence[RunT], folder: Path) -> list[RunT]:
    """The runs of a study. Raises RunError where there are none."""
    matching = [run for run in runs if run.study == study]
    if not matching:
        studies = list(dict.fromkeys(run.study for run in runs if run.study))
        hint = nearest("did you mean '{}'?", study, studies, 0.5)
        hint = hint or (f"there are: {', '.join(studies)}" if studies else "none has a study")
        raise RunError(f"no run in '{folder}' belongs to the study '{study}'; {hint}")
    return matching


def matches(word: str, runs: Sequence[RunT]) -> list[RunT]:
    """The runs that a word fits best: by id, else by name, else by a part of the id."""
    if _is_pattern(word):
        return [run for run in runs if any(fnmatch.fnmatchcase(n, word) for n in _names(run))]
    path = Path(word).resolve() if os.sep in word and os.path.isdir(word) else None
    tests: list[Callable[[Named], bool]] = [
        lambda run: run.folder.name == word or (path is not None and run.folder.resolve() == path),
        lambda run: word in _names(run),
        lambda run: bool(word) and word in run.folder.name,
    ]
    for test in tests:
        if matching := [run for run in runs if test(run)]:
            return matching
    return []


def _names(run: Named) -> tuple[str, str, str]:
    return run.folder.name, run.name, f"{run.study}/{run.name}"


def _is_pattern(word: str) -> bool:
    return "*" in word or "?" in word


def _listed(runs: Sequence[Named]) -> str:
    shown = "; ".join(f"{run.folder.name} ({run.study}/{run.name})" for run in runs[:5])
    return shown + (f"; and {len(runs) - 5} more" if len(runs) > 5 else "")


def _unknown(word: str, runs: Sequence[Named], folder: Path) -> str:
    if not runs:
        return f"no run is called '{word}': there are no runs in '{folder}'"
    names = list(dict.fromkeys(run.name for run in runs))
    all_names = [name for run in runs for name in _names(run)]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = nearest("did you mean '{}'?", word, all_names, 0.5) or f"there are: {shown}"
    return f"no run in '{folder}' is called '{word}'; {hint}"
