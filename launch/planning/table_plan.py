"""The runs and tests that papers' tables need."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.planning import graph
from launch.planning.graph import Images, Job

if TYPE_CHECKING:
    import ml_collections

    from experiments.config import Study
    from experiments.papers.table import Net, Row, Table


@dataclass
class PlannedRow:
    """A row of a table with its jobs.

    replicates: of each seed, the jobs of each net, a tuple of members a net. asked: it is run by
    this command; request: why not, where it is run on request only.
    """

    row: Row
    replicates: dict[int, tuple[tuple[Job, ...], ...]] = field(default_factory=dict)
    asked: bool = False
    request: str = ""

    @property
    def jobs(self) -> list[Job]:
        """Its jobs, without those that seed them."""
        return [job for nets in self.replicates.values() for members in nets for job in members]


@dataclass
class PlannedTable:
    """A table whose rows have jobs.

    assumed: data sets that are not here, and were taken to be as published. shown: only as it is,
    because its paper's report holds it.
    """

    table: Table
    rows: list[PlannedRow]
    assumed: set[str] = field(default_factory=set)
    shown: bool = False


def plan(
    tables: Sequence[Table], others: Sequence[Table], args: argparse.Namespace, folder: Path
) -> list[PlannedTable]:
    """The jobs of all rows of tables. others: tables that are shown as they are, and not run.

    With --plan, data that were not named and are not here are taken to be as published.

    Raises:
        ConfigError, ArchitectureError, DataError: what can't be run; no row of that name.
    """
    from experiments import config as configs

    graph.forget_data()
    overrides = configs.parse_set(args.set)
    _check_patterns(args.rows, tables)
    planned = [PlannedTable(table, [_choose(row, args) for row in table.rows]) for table in tables]
    for table in others:
        rows = [PlannedRow(row, request="not among the tables asked for") for row in table.rows]
        planned.append(PlannedTable(table, rows, shown=True))
    wanted: dict[Source, dict[bool, dict[str, set[int]]]] = {}  # asked? -> row -> which seeds
    for one in planned:
        for row in one.rows:
            for net in _nets(row, args):
                rows_of = wanted.setdefault(_source(net, one.table), {True: {}, False: {}})
                numbers = rows_of[row.asked].setdefault(net.row, set())
                for number in range(_replicates(row.row, args)):
                    numbers.update(_members(net, number))
    found = {}
    for source, by_asked in wanted.items():
        study = configs.read(_spec(source.study, args))
        found[source] = _Jobs(study, by_asked, overrides, folder, _Finder(source.dataset, args))
    for one in planned:
        for row in one.rows:
            unfit = [found[_source(net, one.table)].unfit.get(net.row) for net in _nets(row, args)]
            row.request = next(filter(None, unfit), row.request)
            if not any(unfit):
                row.replicates = _jobs_of(row, one.table, args, found)
        for source, jobs in found.items():
            if source.dataset == one.table.dataset:
                one.assumed |= jobs.finder.assumed
    return planned


class Source(NamedTuple):
    """Where a net's rows come from: a study, for figures printed of a data set."""

    study: str
    dataset: str


def _source(net: Net, table: Table) -> Source:
    return Source(net.study or table.study, table.dataset)


class _Jobs:
    """The jobs of a study's rows. unfit: rows that need not be run, and can't be, and why."""

    def __init__(
        self,
        study: Study,
        by_asked: Mapping[bool, Mapping[str, set[int]]],
        overrides: Mapping[str, Any],
        folder: Path,
        finder: _Finder,
    ):
        self.finder = finder
        self.unfit: dict[str, str] = {}
        self.jobs = graph.jobs(study, by_asked[True], overrides, folder, finder.images)
        for name, numbers in by_asked[False].items():
            one = {name: numbers}
            try:
                others = graph.jobs(study, one, overrides, folder, finder.images, check=False)
            except Exception as error:
                if not getattr(error, "user_error", False):
                    raise
                self.unfit[name] = str(error)
            else:
                self.jobs = {**others, **self.jobs}


def _nets(row: PlannedRow, args: argparse.Namespace) -> tuple[Net, ...]:
    """The nets that a row can be run with in this profile."""
    return () if args.profile in row.row.not_in else row.row.nets


def _spec(study: str, args: argparse.Namespace) -> str:
    crop = f",crop={args.size}" if args.size is not None else ""
    return f"{study}:profile={args.profile}{crop}"


def _replicates(row: Row, args: argparse.Namespace) -> int:
    """Of how many seeds a row's figure is the mean."""
    return args.seeds or (row.runs if args.profile in ("paper", "cifar") else 1)


def _members(net: Net, replicate: int) -> range:
    """The seeds of a net's members: no two replicates share one."""
    return range(replicate * net.members, (replicate + 1) * net.members)


def _check_patterns(patterns: Sequence[str], tables: Sequence[Table]) -> None:
    from experiments.config import ConfigError, one_of

    names = [row.name for table in tables for row in table.rows if row.nets]
    if patterns and not names:
        told = ", ".join(table.name for table in tables)
        raise ConfigError(f"--rows: {told} has no rows that can be run")
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            one_of(pattern, names, "row that can be run")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name.lower(), pattern.lower())


def _choose(row: Row, args: argparse.Namespace) -> PlannedRow:
    """Whether a row is to be run."""
    if not row.nets:
        return PlannedRow(row)
    if args.profile in row.not_in:
        return PlannedRow(row, request=f"not in the profile {args.profile}: {row.note}")
    if args.rows:
        asked = any(_matches(row.name, pattern) for pattern in args.rows)
        return PlannedRow(row, asked=asked, request="" if asked else "not among --rows")
    request = ""
    if row.borrowed:
        request = "another paper's net, run on request (--rows or --all)"
    elif args.profile in row.costly:
        request = f"too costly for the profile {args.profile}, run on request (--rows or --all)"
    return PlannedRow(row, asked=args.all or not request, request="" if args.all else request)


def _jobs_of(
    planned: PlannedRow,
    table: Table,
    args: argparse.Namespace,
    found: Mapping[Source, _Jobs],
) -> dict[int, tuple[tuple[Job, ...], ...]]:
    """A row's jobs with the tests it needs, seed by seed."""
    from experiments.papers.measured import scales_here
    from experiments.papers.table import AfterEpochs, EpochsRatio
    from experiments.testing.kept import PlannedTest

    row = planned.row

    def job(net: Net, number: int) -> Job:
        planned_job = found[_source(net, table)].jobs[net.row, number]
        if isinstance(row.measured, EpochsRatio | AfterEpochs):
            return planned_job
        scales = scales_here(net, planned_job.config.data.image_size, table.crop)
        return replace(planned_job, tests=(PlannedTest(net.protocol, scales),))

    nets = _nets(planned, args)
    if not nets:
        return {}
    return {
        number: tuple(tuple(job(net, n) for n in _members(net, number)) for net in nets)
        for number in range(_replicates(row, args))
    }


def merged(planned: Sequence[PlannedTable], asked: bool = True) -> dict[str, Job]:
    """Each run once, with all tests that rows ask of it, those that seed others first.

    asked: only what this command runs.
    """
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.seeding is not None:
            add(job.seeding)
        before = found.get(job.run.id, replace(job, tests=()))
        tests = tuple(dict.fromkeys((*before.tests, *job.tests)))
        found[job.run.id] = replace(before, tests=tests)

    for table in planned:
        for row in table.rows:
            if row.asked or not asked:
                for job in row.jobs:
                    add(job)
    return found


class _Finder:
    """The images of configs; with --plan, published facts stand in for those that are not here."""

    def __init__(self, dataset: str, args: argparse.Namespace):
        self.dataset, self.args = dataset, args
        self.assumed: set[str] = set()

    def images(self, config: ml_collections.ConfigDict) -> Images:
        """Raises DataError where they are not here and have to be."""
        from input_pipeline import DataError, must_be_downloaded

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
        from experiments.papers.table import records
        from input_pipeline.sources import is_streamed

        for line in records("datasets"):
            encoded = is_streamed(config.data.name) and self.args.profile == "paper"
            if line["name"] == config.data.name or (encoded and line["dataset"] == self.dataset):
                return line
        return None
