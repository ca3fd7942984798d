"""The runs and tests that papers' tables need."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_collections

from experiments import config as configs
from experiments.localisation import localised
from experiments.papers.heads import Head, Sets
from experiments.papers.measured import localisers_at, outrun, scales_here
from experiments.papers.table import (
    AfterEpochs,
    EpochsRatio,
    Located,
    Net,
    Row,
    Table,
    Transferred,
    records,
)
from experiments.testing.prediction_store import PlannedTest
from input_pipeline import DataError, must_be_downloaded
from input_pipeline.sources import is_streamed
from launch.planning import graph
from launch.planning.graph import Images, Job

OF_SETS = ("folder", "paper")  # profiles whose tables look for sets in `table --sets`


@dataclass
class PlannedRow:
    """A row of a table with its jobs."""

    row: Row
    # Replicate number -> for each net the jobs of its members.
    replicates: dict[int, tuple[tuple[Job, ...], ...]] = field(default_factory=dict)
    selected: bool = False  # whether this command runs it
    request: str = ""  # why this command does not run it

    @property
    def jobs(self) -> list[Job]:
        """Its jobs, without those that seed them."""
        return [job for nets in self.replicates.values() for members in nets for job in members]

    @property
    def needed(self) -> list[Job]:
        """Its jobs, without those whose result can't change the row's figure any more."""
        measured = self.row.measured
        if not isinstance(measured, EpochsRatio):
            return self.jobs
        slower: set[str] = set()
        for nets in self.replicates.values():
            slower.update(outrun(measured, [(job.run,) for (job,) in nets]))
        return [job for job in self.jobs if job.run.id not in slower]


@dataclass
class PlannedTable:
    """A table whose rows have jobs."""

    table: Table
    rows: list[PlannedRow]
    assumed: set[str] = field(default_factory=set)  # data sets not here, planned as published
    shown: bool = False  # only shown as it stands, because its paper's report holds it


def plan(
    tables: Sequence[Table], shown_tables: Sequence[Table], args: argparse.Namespace, folder: Path
) -> list[PlannedTable]:
    """The jobs of all rows of tables. shown_tables: those that are shown, and not run.

    With --plan, data sets that no option names and that are not here are planned as published.

    Raises ConfigError, ArchitectureError or DataError for what can't be run, or is no row.
    """
    graph.forget_data()
    overrides = configs.parse_set(args.set)
    _check_patterns(args.rows, tables)
    planned = [PlannedTable(table, [_choose(row, args) for row in table.rows]) for table in tables]
    for table in shown_tables:
        rows = [PlannedRow(row, request="not among the tables asked for") for row in table.rows]
        planned.append(PlannedTable(table, rows, shown=True))
    sources: dict[tuple[str, str, bool], _Source] = {}

    def sources_of(row: PlannedRow, table: Table) -> list[tuple[Net, _Source]]:
        """The nets of a row in this profile, each with the source of its jobs."""
        net_sources = []
        for net in () if args.profile in row.row.not_in else row.row.nets:
            study = table.study_of(net, args.profile)
            some_classes = args.profile != "paper" and study == table.small
            key = (study, table.trained_on or table.dataset, some_classes)
            first_set = table.more.get(study, "")
            net_sources.append((net, sources.setdefault(key, _Source(*key, args, first_set))))
        return net_sources

    rows_of_tables = [
        (row, planned_table) for planned_table in planned for row in planned_table.rows
    ]
    for row, planned_table in rows_of_tables:
        for net, source in sources_of(row, planned_table.table):
            numbers = source.seed_numbers[row.selected].setdefault(net.row, set())
            for number in range(_replicates(row.row, args)):
                numbers.update(_members(net, number))
    for source in sources.values():
        source.plan(overrides, folder)
    refused: list[str] = []
    for row, planned_table in rows_of_tables:
        nets = sources_of(row, planned_table.table)
        reasons = [source.unfit.get(net.row) for net, source in nets]
        row.request = next(filter(None, reasons), row.request)
        refused += [row.request] if row.selected and any(reasons) else []
        row.selected = row.selected and not any(reasons)
        if nets and not any(reasons):
            row.replicates = _jobs_of(row.row, planned_table.table, args, nets)
    if refused and not any(row.selected for row, _ in rows_of_tables):
        raise configs.ConfigError(refused[0])
    for planned_table in planned:
        dataset = planned_table.table.trained_on or planned_table.table.dataset
        dataset_sources = [source for source in sources.values() if source.dataset == dataset]
        planned_table.assumed.update(*(source.assumed for source in dataset_sources))
    return planned


class _Source:
    """A study whose rows tables need, for figures printed of a data set.

    some_classes: its nets learn some of the classes of a set, see `_learnt`. first_set: the name in
    --sets of another set, which they learn first.
    """

    def __init__(
        self,
        study: str,
        dataset: str,
        some_classes: bool,
        args: argparse.Namespace,
        first_set: str = "",
    ):
        self.study = f"{study}:profile={args.profile}"
        if args.size is not None:
            self.study += f",crop={args.size}"
        self.missing = ""  # a folder of --sets that its nets learn first
        if first_set and args.profile in OF_SETS:
            if args.sets is not None and (args.sets / first_set).is_dir():
                self.study += f",more={args.sets / first_set}"
            else:
                self.missing = first_set
        self.dataset, self.some_classes, self.args = dataset, some_classes, args
        # Whether this command runs the row -> row -> numbers of its seeds.
        self.seed_numbers: dict[bool, dict[str, set[int]]] = {True: {}, False: {}}
        self.jobs: dict[tuple[str, int], Job] = {}  # by row and seed number, once planned
        self.unfit: dict[str, str] = {}  # row -> why it can't be run
        self.assumed: set[str] = set()  # data sets not here, planned as published

    def plan(self, overrides: Mapping[str, Any], folder: Path) -> None:
        """Plans the jobs. Raises as `graph.jobs` does, for rows that this command runs."""
        study = configs.read(self.study)
        if self.some_classes:
            try:
                class_overrides, why = _learnt(study, overrides)
            except ValueError as error:
                if self.seed_numbers[True] or not getattr(error, "user_error", False):
                    raise
                class_overrides, why = {}, str(error)
            if why:
                self.unfit = {row: why for rows in self.seed_numbers.values() for row in rows}
                return
            overrides = {**overrides, **class_overrides}
        self.unfit |= _without_boxes(study, overrides)
        if self.missing:
            why = f"{study.name} learns another set first: --sets DIR, with {self.missing} in it"
            self.unfit |= {row.name: why for row in study.rows}
        self.seed_numbers = {
            is_selected: {name: numbers for name, numbers in rows.items() if name not in self.unfit}
            for is_selected, rows in self.seed_numbers.items()
        }
        self.jobs = graph.jobs(study, self.seed_numbers[True], overrides, folder, self.images)
        for name, numbers in self.seed_numbers[False].items():
            single = {name: numbers}
            try:
                shown = graph.jobs(study, single, overrides, folder, self.images, check=False)
            except Exception as error:
                if not getattr(error, "user_error", False):
                    raise
                self.unfit[name] = str(error)
            else:
                self.jobs = {**shown, **self.jobs}

    def images(self, config: ml_collections.ConfigDict) -> Images:
        """A config's images; with --plan, published facts stand in for those that are not here.

        Raises DataError where they are not here and have to be.
        """
        download = self.args.plan and must_be_downloaded(config.data.name, config.data.path)
        line = None
        if self.args.plan and (download or not config.data.path):
            line = self._published(config)
        if download and line is None:
            raise DataError(f"{config.data.name} is not here, and --plan downloads nothing")
        if not download:
            try:
                return graph.images_of(config)
            except DataError:
                if line is None:
                    raise
        assert line is not None
        self.assumed.add(line["dataset"])
        train = int(line["train"])
        return graph.Images(
            classes=int(line["classes"]),
            channels=int(line["channels"]),
            fingerprint=f"assumed {line['name']}",
            train=train - round(train * config.data.holdout),
            test=int(line["test"]),
            mirror_ok=line["dataset"] not in ("MNIST", "SVHN"),
        )

    def _published(self, config: ml_collections.ConfigDict) -> dict[str, str] | None:
        for line in records("datasets"):
            encoded = is_streamed(config.data.name) and self.args.profile == "paper"
            if line["name"] == config.data.name or (encoded and line["dataset"] == self.dataset):
                return line
        return None


def _without_boxes(study: configs.Study, overrides: Mapping[str, Any]) -> dict[str, str]:
    """The rows of a study that need boxes where no `data.boxes` is set -> why they can't be run."""
    why = "it needs boxes: --set data.boxes=FILE, a table or folder of annotations"
    return {
        row.name: why
        for row in study.rows
        if row.overrides.get("train.boxes", study.config.train.boxes) != "none"
        and not {**row.overrides, **overrides}.get("data.boxes", study.config.data.boxes)
    }


def _learnt(
    study: configs.Study, overrides: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, ...]], str]:
    """The override of `data.classes` for nets whose features are tested on the set's other classes.

    It is empty where the study's own classes do, else the first four fifths. A set of fewer than
    four classes gives ({}, why not), others (override, ''). Raises DataError for a missing set.
    """
    config = configs.override(study.config, overrides, study.name)
    selected = config.data.classes
    if "data.classes" in overrides or (
        selected and not {"data.name", "data.path"} & overrides.keys()
    ):
        return {}, ""
    full = configs.override(config, {"data.classes": ()}, study.name)
    names = graph.images_of(full).class_names
    if selected and set(selected) <= set(names):
        return {}, ""
    if len(names) < 4:
        where = full.data.path or full.data.name
        need = "nets learn some, and their features tell two others apart: expected four at least"
        return {}, f"{where} has {len(names)} classes; {need}"
    return {"data.classes": names[: min(4 * len(names) // 5, len(names) - 2)]}, ""


def _replicates(row: Row, args: argparse.Namespace) -> int:
    """The number of seeds that a row's figure is the mean of."""
    return args.seeds or (row.runs if args.profile in ("paper", "cifar") else 1)


def _members(net: Net, replicate: int) -> range:
    """The seeds of a net's members: no two replicates share one."""
    return range(replicate * net.members, (replicate + 1) * net.members)


def _check_patterns(patterns: Sequence[str], tables: Sequence[Table]) -> None:
    names = [row.name for table in tables for row in table.rows if row.nets]
    if patterns and not names:
        table_names = ", ".join(table.name for table in tables)
        raise configs.ConfigError(f"--rows: {table_names} has no rows that can be run")
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            configs.one_of(pattern, names, "row that can be run")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name.lower(), pattern.lower())


def _choose(row: Row, args: argparse.Namespace) -> PlannedRow:
    """Whether a row is to be run."""
    if not row.nets:
        return PlannedRow(row)
    if args.profile in row.not_in:
        why = f": {row.note}" if row.note else ""
        return PlannedRow(row, request=f"not in the profile {args.profile}{why}")
    if args.rows:
        is_selected = any(_matches(row.name, pattern) for pattern in args.rows)
        return PlannedRow(
            row, selected=is_selected, request="" if is_selected else "not among --rows"
        )
    request = ""
    if row.borrowed:
        request = "another paper's net, run on request (--rows or --all)"
    elif args.profile in row.costly:
        request = f"too costly for the profile {args.profile}, run on request (--rows or --all)"
    return PlannedRow(row, selected=args.all or not request, request="" if args.all else request)


def _jobs_of(
    row: Row, table: Table, args: argparse.Namespace, nets: Sequence[tuple[Net, _Source]]
) -> dict[int, tuple[tuple[Job, ...], ...]]:
    """A row's jobs with the tests it needs, by replicate. nets: with the sources of their jobs."""

    def job(net: Net, source: _Source, number: int) -> Job:
        planned = source.jobs[net.row, number]
        if isinstance(row.measured, EpochsRatio | AfterEpochs | Transferred | Located):
            return planned
        scales = scales_here(net, planned.config.data.image_size, table.crop)
        return replace(planned, tests=(PlannedTest(net.protocol, scales),))

    return {
        number: tuple(tuple(job(*net, n) for n in _members(net[0], number)) for net in nets)
        for number in range(_replicates(row, args))
    }


def merged(planned: Sequence[PlannedTable], selected_only: bool = True) -> dict[str, Job]:
    """Each run once, with all tests that rows ask of it, those that seed others first.

    selected_only: only what this command runs.
    """
    jobs: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.seeding is not None:
            add(job.seeding)
        previous = jobs.get(job.run.id, replace(job, tests=()))
        tests = tuple(dict.fromkeys((*previous.tests, *job.tests)))
        jobs[job.run.id] = replace(previous, tests=tests)

    for table in planned:
        for row in table.rows:
            if row.selected or not selected_only:
                for job in row.needed:
                    add(job)
    return jobs


def needless(planned: Sequence[PlannedTable]) -> dict[str, str]:
    """The runs that no row needs to its end any more: id -> why."""
    needed = merged(planned)
    reasons: dict[str, str] = {}
    for row in (row for table in planned for row in table.rows):
        if row.selected and isinstance(row.row.measured, EpochsRatio):
            why = f"another rate has come below {row.row.measured.error:g}% in as many epochs"
            reasons |= {job.run.id: why for job in row.jobs if job.run.id not in needed}
    return reasons


def transferred(planned: PlannedTable) -> list[tuple[PlannedRow, Transferred]]:
    """The rows with heads on features that this command asks for."""
    return [
        (row, row.row.measured)
        for row in planned.rows
        if row.selected and isinstance(row.row.measured, Transferred)
    ]


def located(planned: PlannedTable) -> list[tuple[PlannedRow, Located]]:
    """The rows of boxes of whole images that this command asks for."""
    return [
        (row, row.row.measured)
        for row in planned.rows
        if row.selected and isinstance(row.row.measured, Located)
    ]


def boxes(planned: Sequence[PlannedTable]) -> list[list[localised.LocaliserAt]]:
    """The groups of localisers whose boxes this command is to merge, each test once: those that are
    trained and were not tested together."""
    localisers: dict[str, list[localised.LocaliserAt]] = {}
    for table in planned:
        for row, measured in located(table):
            for nets in row.replicates.values():
                runs = [job.run for members in nets for job in members]
                if all(run.trained for run in runs):
                    at = localisers_at(measured.nets, runs, table.table.crop)
                    about = localised.about(at)
                    if localised.load(runs[0], about) is None:
                        localisers[repr(about)] = at
    return list(localisers.values())


def heads(planned: Sequence[PlannedTable], profile: str, sets: Sets) -> list[Head]:
    """The heads that this command asks for, each once, whose networks and images are here."""
    unique: dict[Head, None] = {}
    for table in planned:
        for row, measured in transferred(table):
            for nets in row.replicates.values():
                runs = [job.run for members in nets for job in members]
                if all(run.trained for run in runs):
                    candidates = sets.heads(measured, profile, runs, table.table.crop).values()
                    ready = [h for h in candidates if isinstance(h, Head) and h.fingerprint]
                    unique |= dict.fromkeys(ready)
    return list(unique)
