"""`cnn-depth table`: a paper's table as a program; printed and measured figures side by side."""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch import backend
from launch.patience import waiting
from launch.sweep import MOST_SEEDS

if TYPE_CHECKING:
    import ml_collections

    from experiments.config import Study
    from experiments.measured import TableResult, Wanted
    from experiments.papers.table import Net, Row, Table
    from launch.graph import Images, Job

HELP = """\
Train what a paper's table needs, test it as the paper did, and print the paper's figures beside the
measured ones. What is trained or tested already is not done again, and tables share their runs; an
interrupted command goes on where it stopped.

The profile is the size at which it is done:
  demo    scikit-learn's digits, narrow nets: minutes on two CPU cores
  cifar   CIFAR-10, or the small images that the paper itself used
  folder  any folder of images (--set data.path=FOLDER), at a small crop (--size)
  paper   as printed: data, sizes, widths and iterations of the paper (--set data.path=IMAGENET)

--recorded prints the figures that were measured by this project and are kept with it, beside the
printed ones and those of your last table.

Rows of other people's systems are printed only. Rows that are too costly for a profile, or that are
another paper's, are run where they are asked for: --rows NAME, or --all."""
EXAMPLE = """
cnn-depth table vgg-3 --profile demo
cnn-depth table vgg-3 vgg-4 vgg-5 --profile folder --set data.path=photographs --size 96
cnn-depth table resnet-6 --profile cifar --rows ResNet-20 ResNet-56 --seeds 5
cnn-depth table vgg --profile paper --plan --rate 40T --devices 8
cnn-depth table resnet-6 --profile cifar --backend slurm --partition gpu --gpus-per-node 1
cnn-depth table lenet-fig9 --recorded
cnn-depth list tables
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cnn-depth table`."""
    parser.add_argument(
        "table", nargs="+", help="a table of `cnn-depth list tables`, or a paper: all of its tables"
    )
    parser.add_argument(
        "--profile", default="demo", help="demo, cifar, folder or paper (default: demo)"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the networks' input; scales keep their ratio to it (default: the profile's)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="train each row with N seeds")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only rows with such names: 'ResNet-*'",
    )
    parser.add_argument("--all", action="store_true", help="also rows that are run on request only")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key in every row, such as data.path=imagenet",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would be run, and what it costs"
    )
    parser.add_argument(
        "--rate",
        metavar="MACS",
        help="with --plan: multiply-adds a second of a device, such as 40T (default: measured)",
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="with --plan: devices, a run on each (default: 1)"
    )
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="print what is recorded, and run nothing",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="record the rows whose runs are finished, with this project; run nothing",
    )
    backend.add_arguments(parser)
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where runs are kept (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


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


def main(args: argparse.Namespace) -> int:
    """Runs what is missing, or hands it to a cluster; 1 if a row failed."""
    if args.recorded:
        from experiments import runs
        from launch import recorded

        recorded.check(args)
        return recorded.show(args.table, runs.root(args.runs), args.json)
    with waiting("starting"):
        from rich.console import Console

        from experiments import papers, runs
        from experiments.config import ConfigError, one_of
        from experiments.profiles import PROFILES
        from launch import devices

    backend.check(args)
    one_of(args.profile, PROFILES, "profile")
    for name in ("seeds", "devices"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= MOST_SEEDS:
            raise ConfigError(f"--{name} {value}: expected 1 to {MOST_SEEDS:,}")
    if not args.plan and (args.rate is not None or args.devices is not None):
        raise ConfigError("--rate and --devices go with --plan")
    if args.plan and (args.backend != "local" or args.processes or args.parallel):
        raise ConfigError("--plan runs nothing: without --backend, --processes and --parallel")
    if args.record:
        _check_record(args)
    tables = papers.named(args.table)
    devices.use_cpu_only()  # planning must not take an accelerator from the runs
    folder = runs.root(args.runs)
    if args.plan:
        from launch import planning

        with waiting("planning the tables"):
            planned = plan(tables, [], args, folder)
        planning.show(planned, args.profile, folder, args.rate, args.devices or 1, args.json)
        return 0
    with waiting("planning the tables"):
        planned = plan(tables, _shown_before(tables, args, folder), args, folder)
    if args.record:
        return _record(planned, args, folder)
    screen = Console(stderr=args.json)
    jobs = merged(planned)
    reasons = backend.execute(list(jobs.values()), folder, args, screen) if jobs else {}
    if reasons is None:
        return 0
    write(planned, reasons, args, folder)
    return 1 if reasons else 0


def _check_record(args: argparse.Namespace) -> None:
    """Raises ConfigError where what was measured is not a paper's recipe as it ships."""
    from experiments.config import ConfigError, parse_set
    from experiments.recorded import PROFILES

    if args.profile not in PROFILES:
        raise ConfigError(
            f"--record keeps figures of the profiles {' and '.join(PROFILES)}, not of "
            f"{args.profile!r}; add --profile {PROFILES[0]}"
        )
    free = ("data.name", "data.path", "data.threads")
    changed = [key for key in parse_set(args.set) if key not in free]
    if changed or args.size is not None:
        what = f"--set {changed[0]}" if changed else "--size"
        raise ConfigError(f"--record keeps figures of recipes as they ship: leave out {what}")
    if args.plan or args.json or args.backend != "local":
        raise ConfigError("--record runs nothing: without --plan, --backend and --json")


def _record(planned: Sequence[PlannedTable], args: argparse.Namespace, folder: Path) -> int:
    """Records the rows that are asked for and measured; 1 where one of them is not."""
    from experiments import recorded

    told: dict[str, str] = {}
    for one in planned:
        if not one.shown:
            asked = [row.row.name for row in one.rows if row.asked]
            found = recorded.record(measure(one, args, {}, folder), asked)
            told |= {f"{one.table.name}, {row}": why for row, why in found.items()}
    for row, why in told.items():
        print(f"{row}: not recorded: {why}" if why else f"{row}: recorded")
    return 1 if any(told.values()) or not told else 0


def plan(
    tables: Sequence[Table], others: Sequence[Table], args: argparse.Namespace, folder: Path
) -> list[PlannedTable]:
    """The jobs of all rows of tables. others: tables that are shown as they are, and not run.

    With --plan, data that were not named and are not here are taken to be as published.

    Raises:
        ConfigError, ArchitectureError, DataError: what can't be run; no row of that name.
    """
    from experiments import config as configs
    from launch import graph

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
        from launch import graph

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


def _shown_before(tables: Sequence[Table], args: argparse.Namespace, folder: Path) -> list[Table]:
    """The other tables of these papers that their reports hold."""
    from experiments import papers

    asked = {table.name for table in tables}
    return [
        table
        for table in papers.tables().values()
        if table.paper in {t.paper for t in tables}
        and table.name not in asked
        and (_place(table.paper, args, folder) / f"{table.name}.json").is_file()
    ]


def _place(paper: str, args: argparse.Namespace, folder: Path) -> Path:
    """Where a paper's report lies: one a profile, and one for each set of changes to it."""
    changed = json.dumps([sorted(args.set), args.size]) if args.set or args.size else ""
    suffix = f"-{hashlib.sha256(changed.encode()).hexdigest()[:6]}" if changed else ""
    return folder / "reports" / f"{paper}-{args.profile}{suffix}"


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
    from experiments.kept import PlannedTest
    from experiments.measured import scales_here
    from experiments.papers.table import AfterEpochs, EpochsRatio

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
        if job.after is not None:
            add(job.after)
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
        from launch import graph

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


def measure(
    planned: PlannedTable, args: argparse.Namespace, reasons: Mapping[str, str], folder: Path
) -> TableResult:
    """The table from the runs that are there. reasons: of runs that failed now, by id."""
    from experiments import measured

    wanted = {row.row.name: _wanted(row, reasons) for row in planned.rows}
    _add_estimates(planned, wanted, folder)
    return measured.measure(planned.table, args.profile, about(planned, args), wanted)


def _wanted(planned: PlannedRow, reasons: Mapping[str, str]) -> Wanted:
    from experiments.measured import Wanted

    row = planned.row
    if row.measured is None:
        return Wanted(state="printed only", reason=row.note)
    replicates = {
        number: tuple(tuple(job.run for job in members) for members in nets)
        for number, nets in planned.replicates.items()
    }
    state, reason = ("ready", "") if planned.asked else ("on request", planned.request)
    for job in planned.jobs:
        failed = reasons.get(job.run.id) or (job.run.read("failed") or {}).get("reason")
        if failed and not job.done:
            state, reason = "failed", f"{job.name}: {failed}"
    return Wanted(replicates, state, reason)


def _add_estimates(planned: PlannedTable, wanted: dict[str, Wanted], folder: Path) -> None:
    """What rows on request would take, by the rate of runs that are finished."""
    from launch import estimate

    for row in planned.rows:
        told = wanted[row.row.name]
        if told.state == "on request":
            jobs = merged([replace(planned, rows=[row])], asked=False).values()
            left = [job for job in jobs if not job.done]
            seconds = estimate.measured_seconds(left, folder)
            wanted[row.row.name] = replace(told, seconds=seconds)


def about(planned: PlannedTable, args: argparse.Namespace) -> str:
    """On what, and at what sizes, a table's rows are measured, and what was changed by hand."""
    told: list[str] = []
    for row in planned.rows:
        there = row.jobs and all(job.run.state()[0] == "finished" for job in row.jobs)
        for job in row.jobs if row.asked or there else ():
            c = job.config
            width = c.model.get("width", 1.0)
            length = f"{c.train.steps:,} steps" if c.train.steps else f"{c.train.epochs:g} epochs"
            told.append(
                f"{c.data.name} at {c.data.image_size}x{c.data.image_size}, "
                f"{'full width' if width == 1 else f'width {width:g}'}, "
                f"{length} of batches of {c.train.batch_size}"
            )
    parts = list(dict.fromkeys(told)) or ["nothing is trained"]
    if args.set:
        parts.append(f"changed: {', '.join(sorted(args.set))}")
    return "; ".join([*parts, *_alike(planned)])


def _alike(planned: PlannedTable) -> list[str]:
    """Rows whose difference --set has taken away."""
    rows: dict[str, dict[str, None]] = {}
    for row in planned.rows:
        for job in row.jobs:
            rows.setdefault(job.run.id, {})[job.row] = None
    return [f"the same run: {' and '.join(names)}" for names in rows.values() if len(names) > 1]


def write(
    planned: Sequence[PlannedTable],
    reasons: Mapping[str, str],
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Prints the tables and writes the report of each paper."""
    from rich.console import Console

    from experiments import papers
    from experiments.report import paper as report
    from launch import progress

    order = {name: number for number, name in enumerate(papers.tables())}
    console = Console()
    documents = []
    for paper in dict.fromkeys(one.table.paper for one in planned):
        own = [one for one in planned if one.table.paper == paper]
        own.sort(key=lambda one: order[one.table.name])
        results = [measure(one, args, reasons, folder) for one in own]
        place = _place(paper, args, folder)
        written = report.write(results, place, papers.title(paper))
        shown = [result for one, result in zip(own, results, strict=True) if not one.shown]
        for result in shown:
            if args.json:
                documents.append(json.loads((place / f"{result.table.name}.json").read_text()))
            else:
                report.render(result, console)
        if not args.json:
            progress.say(console, f"report: {written['report']}")
    if args.json:
        print(json.dumps(documents, indent=1, ensure_ascii=False))
