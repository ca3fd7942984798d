"""The graph of runs behind studies: which runs their rows need, and which seeds which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import ml_collections
from rich.console import Console

import cnn_arch
from cnn_arch import curvature
from cnn_arch.census import Census, census
from experiments import config as configs
from experiments import data, network
from experiments.data import preprocessing
from experiments.runs import runs
from experiments.runs.names import with_seed
from experiments.testing import prediction_store
from experiments.testing.prediction_store import PlannedTest
from experiments.training import optimizer
from input_pipeline import DataError, classes
from input_pipeline.sources import is_streamed
from launch import row_states
from launch.console import reading, say


@dataclass(frozen=True)
class Images:
    """What a plan has to know of a data set."""

    classes: int
    channels: int
    fingerprint: str
    train: int  # number of images to train on
    test: int
    mirror_ok: bool = True
    # Height and width of the images of a set that lies on the device, if the set is here.
    stored: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()  # in label order; empty for a set that is not here


@dataclass(frozen=True)
class Net:
    """A network as a config makes it for some data."""

    model: tuple[tuple[str, Any], ...]  # that part of the config, as sorted pairs
    image_size: int
    classes: int
    channels: int
    boxes: str = "none"  # `train.boxes`

    @staticmethod
    def of(config: ml_collections.ConfigDict, classes: int, channels: int) -> Net:
        model = tuple(sorted(config.model.items()))
        return Net(model, config.data.image_size, classes, channels, config.train.boxes)

    @property
    def arch(self) -> str:
        return dict(self.model)["arch"]

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The keys of a config that define it."""
        data, train = {"image_size": self.image_size}, {"boxes": self.boxes}
        return ml_collections.ConfigDict({"model": dict(self.model), "data": data, "train": train})

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of its builder."""
        outputs = network.outputs(self.config, self.classes)
        sizes = {"image_size": self.image_size, "classes": outputs, "channels": self.channels}
        return {**sizes, **configs.builder_options(dict(self.model))}


# Facts that are traced from a network, once for all jobs that have it.


@cache
def census_of(net: Net) -> Census:
    """The layers of a network. Raises ArchitectureError where it can't be built."""
    return census(net.arch, **net.options)


@cache
def _check_curvature(net: Net) -> None:
    """Raises ArchitectureError where a network's second derivatives aren't known."""
    curvature.check(net.arch, **net.options)


@cache
def _check_loss(net: Net, loss: str) -> None:
    """Raises ConfigError where a network can't be trained with this loss."""
    network.skeleton(net.config, net.classes, net.channels, train=True, loss=loss)


@cache
def _arrays(net: Net) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name -> shape and type of a network's parameters, and of its running statistics."""
    bones = network.skeleton(net.config, net.classes, net.channels, train=True)
    return cnn_arch.flat_state(bones.params), cnn_arch.flat_state(bones.stats)


@cache
def _seed_shapes(shallow: Net, deep: Net, seeding: tuple[tuple[str, Any], ...]) -> bool:
    """Seeds one network by the other, in shapes only; whether the last layer is copied.

    seeding: that part of the config, as pairs.
    """
    config, shape = deep.config, (deep.classes, deep.channels)
    config.seeding = ml_collections.ConfigDict(dict(seeding))
    copied: set[str] = set()

    def seed(shallow_arrays: dict[str, Any], deep_arrays: dict[str, Any]) -> dict[str, Any]:
        seeded, report = network.seed(shallow_arrays, shallow.arch, deep_arrays, config, *shape)
        copied.update(name for _, name in report.copied)
        return seeded

    arrays = [{**params, **stats} for params, stats in (_arrays(shallow), _arrays(deep))]
    jax.eval_shape(seed, *arrays)
    return bool(copied & network.classifier(config, *shape))


@dataclass(frozen=True)
class Job:
    """One run that a row needs."""

    study: str
    row: str
    run: runs.Run
    config: ml_collections.ConfigDict
    seeding: Job | None  # the job whose network seeds it
    steps: int  # of its whole training
    data: Images
    tests: tuple[PlannedTest, ...] = ()  # beside the test that ends its training

    @property
    def net(self) -> Net:
        return Net.of(self.config, self.data.classes, self.data.channels)

    @property
    def census(self) -> Census:
        """The layers of its network, for one image."""
        return census_of(self.net)

    @property
    def done(self) -> bool:
        """Whether it is trained, and tested as it should be."""
        return self.run.trained and not self.missing_tests()

    def missing_tests(self) -> list[PlannedTest]:
        """Those of its tests whose results are not kept yet."""
        return [test for test in self.tests if not prediction_store.is_complete(self.run, test)]

    def create(self) -> None:
        label: dict[str, Any] = {"study": self.study, "row": self.row, "seed_from": None}
        if self.seeding is not None:
            label["seed_from"] = {"row": self.seeding.row, "run": self.seeding.run.id}
        runs.create(self.config, self.data.fingerprint, self.run.folder.parent, label)

    @property
    def name(self) -> str:
        """`row`, or `row (seed 3)` for another seed than 0."""
        return with_seed(self.row, self.config.seed)

    @property
    def modules(self) -> str:
        """The folder of the user's module that its network is of; '' if that is the project's."""
        return str(self.config.model.get("folder", ""))

    @property
    def images(self) -> int:
        """Images that its whole training sees."""
        return self.steps * self.config.train.batch_size

    @property
    def training_macs(self) -> int:
        """Multiply-adds of the training: forward once, backward twice."""
        return 3 * self.census.macs * self.images


@dataclass(frozen=True)
class StudyRow:
    """A row of a study with its jobs, one a seed."""

    study: configs.Study
    name: str
    seed_from: str | None
    jobs: dict[int, Job]


OPENED = (
    "split",
    "holdout",
    "classes",
    "balanced",
    "boxes",
)  # further keys of `data` that decide which images a part has


@cache
def _opened(name: str, path: str, *others: Any) -> data.Opened:
    """The data of a config; long reads and images left out are told on standard error.

    others: values of OPENED.
    """
    keys = {"name": name, "path": path, **dict(zip(OPENED, others, strict=True))}
    config = ml_collections.ConfigDict(keys)
    screen = Console(stderr=True)
    with reading(screen, path or name) as on_read:
        opened = data.open_data(config, on_read)
    for note in opened.notes:
        say(screen, note)
    return opened


def images_of(config: ml_collections.ConfigDict) -> Images:
    """The data of a config. Raises DataError or ConfigError where it can't be used so."""
    d = config.data
    opened = _opened(d.name, d.path, *(d[key] for key in OPENED))
    data.check(config, opened)
    return Images(
        classes=opened.classes,
        class_names=opened.class_names,
        channels=opened.channels,
        fingerprint=opened.fingerprint,
        train=opened.train,
        test=len(opened.parts["test"]),
        mirror_ok=opened.dataset.mirror_ok,
        stored=data.stored_size(config, opened),
    )


Find = Callable[[ml_collections.ConfigDict], Images]


def forget_data() -> None:
    """Makes the next plan read its files anew: they may have changed since the last one."""
    _opened.cache_clear()


def plan(
    specs: Iterable[str],
    overrides: Mapping[str, Any],
    seeds: int | None,
    folder: Path,
    change: Callable[[configs.Study], configs.Study] = lambda study: study,
) -> list[StudyRow]:
    """The rows of studies in the order of their files, each with its runs under `folder`.

    overrides: of every row, on top of its own. seeds: how many, counted from the config's `seed`.
    change: applied to each study first. Everything that can be checked without training is checked
    here, so that bad input is told before any work.

    Raises ConfigError, ArchitectureError and DataError, with the row's name.
    """
    forget_data()
    rows: list[StudyRow] = []
    for spec in specs:
        study = change(configs.read(spec))
        numbers = range(seeds or 1)
        planned = jobs(study, {row.name: numbers for row in study.rows}, overrides, folder)
        row_of = {row.name: StudyRow(study, row.name, row.seed_from, {}) for row in study.rows}
        for (name, _), job in planned.items():
            row_of[name].jobs[job.config.seed] = job
        rows += row_of.values()
    return rows


def jobs(
    study: configs.Study,
    requested: Mapping[str, Collection[int]],
    overrides: Mapping[str, Any],
    folder: Path,
    find: Find | None = None,
    check: bool = True,
) -> dict[tuple[str, int], Job]:
    """The jobs of some rows, and of those that seed them, which come first.

    requested: row -> numbers of its seeds, counted from its config's `seed`. check: whether their
    networks are checked; rows that are not to be run need none. Returns jobs by row and number.

    Raises as `plan` does.
    """
    rows = {row.name: row for row in study.rows}
    numbers: dict[str, set[int]] = {name: set(seeds) for name, seeds in requested.items()}
    for row in reversed(study.rows):
        if row.seed_from and row.name in numbers:
            numbers.setdefault(row.seed_from, set()).update(numbers[row.name])
    planned: dict[tuple[str, int], Job] = {}
    for name, row in rows.items():
        if name not in numbers:
            continue
        config = study.config_of(row, overrides)
        for number in sorted(numbers[name]):
            seed = config.seed + number
            seeding = planned[row.seed_from, number] if row.seed_from else None
            if seeding is not None and seeding.config.seed != seed:
                raise configs.ConfigError(
                    f"{study.name}, row {name!r}: seed {seed} has no counterpart in row "
                    f"{row.seed_from!r}, which seeds it; both rows need the same `seed`"
                )
            planned[name, number] = _job(
                study, name, config, seed, seeding, folder, find=find, check=check
            )
    return planned


def job_of_row(
    spec: str,
    row: str | None,
    overrides: Mapping[str, Any],
    folder: Path,
    seeding_run: runs.Run | None = None,
) -> Job:
    """The job of a study's row or, without `row`, of its config.

    seeding_run: a trained or imported run under `folder` whose network seeds the config's.

    Raises ConfigError where there is no such row, or the seeding run is of no use.
    """
    study = configs.read(spec)
    forget_data()
    if row is None:
        config = configs.override(study.config, overrides, study.name)
        return _job(study, config.model.arch, config, config.seed, None, folder, seeding_run)
    if seeding_run is not None:
        raise configs.ConfigError("a row is seeded by what its sweep says, not by another run")
    rows = [r.name for r in study.rows]
    if row not in rows:
        message = f"{study.name} has no row {row!r}; its rows are {', '.join(rows)}"
        raise configs.ConfigError(message)
    return jobs(study, {row: range(1)}, overrides, folder)[row, 0]


def _job(
    study: configs.Study,
    row: str,
    config: ml_collections.ConfigDict,
    seed: int,
    seeding: Job | None,
    folder: Path,
    seeding_run: runs.Run | None = None,
    find: Find | None = None,
    check: bool = True,
) -> Job:
    seeding_run = seeding_run if seeding is None else seeding.run
    if config.seeding.run:
        message = f"{row}: seeding.run is set by the row's `seed_from`, not by hand"
        raise configs.ConfigError(message)
    if seeding_run is None:
        for key, usual in _unseeded().items():
            if config.seeding[key] != usual:
                raise configs.ConfigError(f"{row}: seeding.{key} needs a `seed_from`")
    changes: dict[str, Any] = {"seed": seed}
    if seeding_run is not None:
        changes["seeding.run"] = seeding_run.id
        changes["seeding.weights"] = seeding_run.imported
    if config.data.path:
        changes["data.path"] = str(Path(config.data.path).expanduser().absolute())
    changes = {key: value for key, value in changes.items() if _at(config, key) != value}
    if changes:  # a copy takes time, which a sweep of a thousand rows would notice
        config = configs.override(config, changes, row)
    try:
        images = (find or images_of)(config)
        job = Job(
            study=study.name,
            row=row,
            run=runs.run_of(config, images.fingerprint, folder),
            config=config,
            seeding=seeding,
            steps=data.total_steps(config, images.train),
            data=images,
        )
        if check:
            _check(job, seeding_run if seeding is None else None)
    except (cnn_arch.ArchitectureError, configs.ConfigError, DataError) as error:
        overrides = next((r.overrides for r in study.rows if r.name == row), None)
        own_data = any(key.startswith("data.") for key in overrides or ())
        if overrides is None or (isinstance(error, DataError) and not own_data):
            raise  # of the config alone, or of images that all rows have
        raise type(error)(f"{study.name}, row {row!r}: {error}") from error
    return job


@cache
def _unseeded() -> dict[str, Any]:
    """The keys of `seeding` with their values in a config that is not seeded."""
    return configs.base().seeding.to_dict()


def _at(config: ml_collections.ConfigDict, key: str) -> Any:
    part, _, name = key.rpartition(".")
    return config[part][name] if part else config[name]


def _check(job: Job, seeding_run: runs.Run | None) -> None:
    """Raises ArchitectureError, ConfigError or RunError where the job's network can't be built,
    trained or seeded as it should be. seeding_run: one that the command line names."""
    _ = job.census  # where the network can't be built, this says why
    params, _ = _arrays(job.net)
    optimizer.create(job.config, params)
    if job.config.optimizer.kind == "sdlm":
        _check_curvature(job.net)
    if job.config.train.loss != "network":
        _check_loss(job.net, job.config.train.loss)
    optimizer.Schedule(job.config, job.steps)  # refuses a warm-up longer than the training
    if seeding_run is not None:
        folder = job.run.folder.parent
        if not seeding_run.trained:
            state = row_states.of_runs([seeding_run])[seeding_run.id].state
            raise runs.RunError(f"{seeding_run.id} can't seed another run: it is {state}")
        if seeding_run.folder.resolve().parent != folder.resolve():
            message = f"{seeding_run.folder} can't seed a run of {folder}: it lies elsewhere"
            raise runs.RunError(message)
        prep = preprocessing.load(seeding_run.folder / preprocessing.FILE)
        name, class_names = seeding_run.id, tuple(prep.class_names)
        net = Net.of(seeding_run.config(), len(class_names), prep.channels)
    elif job.seeding is not None:
        prep = _preprocessing(job.seeding)
        name, class_names, net = job.seeding.name, job.seeding.data.class_names, job.seeding.net
    else:
        return
    if _copies_classifier(net, job):
        _check_classes(job, name, class_names)
    _check_dropout(job, name, net)
    is_size_known = job.data.stored is not None or is_streamed(job.config.data.name)
    if configs.inherits(job.config) and is_size_known:
        data.inherited(prep, job.config, job.data.channels, job.data.stored)


def _preprocessing(job: Job) -> preprocessing.Preprocessing:
    """The preprocessing of a job's images; zeros stand for what is yet to be computed."""
    if job.seeding is not None and configs.inherits(job.config):
        return _preprocessing(job.seeding)
    return data.expected(job.config, job.data.channels, job.data.stored)


def _copies_classifier(shallow: Net, job: Job) -> bool:
    """Whether the last layer, that of the classes, is copied from `shallow` into a job's network.

    Raises ArchitectureError or ConfigError where the one can't seed the other.
    """
    seeding = {key: job.config.seeding[key] for key in ("kind", "mapping", "classifier")}
    try:
        return _seed_shapes(shallow, job.net, tuple(seeding.items()))
    except cnn_arch.ArchitectureError as error:
        if shallow.classes == job.data.classes or seeding["classifier"] == "fresh":
            raise
        raise configs.ConfigError(
            f"{error} These are networks of {shallow.classes} and {job.data.classes} classes; with "
            "seeding.classifier=fresh only the layers before the last one are copied"
        ) from None


def _check_dropout(job: Job, seeded_by: str, shallow: Net) -> None:
    """Raises ConfigError where copied weights expect inputs that dropout scales otherwise."""
    key = "inverted_dropout"
    theirs, own = dict(shallow.model), dict(job.net.model)
    drops = any(model.get(rate) for model in (theirs, own) for rate in ("dropout", "head_dropout"))
    if drops and key in theirs and key in own and theirs[key] != own[key]:
        raise configs.ConfigError(
            f"{seeded_by}, which seeds it, has model.{key}={theirs[key]}, and with {own[key]} its "
            f"weights compute something else; add --set model.{key}={theirs[key]}"
        )


def _check_classes(job: Job, seeded_by: str, theirs: Sequence[str]) -> None:
    """Raises ConfigError where a last layer that is copied would stand for other classes."""
    own, mode = job.data.class_names, job.config.seeding.classifier
    if mode == "in_order" or not own or not theirs:  # unknown: images that are not here
        return
    name, fault = job.config.data.name, ""
    try:
        match = classes.match(name, own, theirs, insist="seeding.classifier=in_order")
    except DataError as error:
        fault = str(error)
    else:
        if match.labels != tuple(range(len(theirs))):
            fault = f"{name} has its classes in another order"
    if fault:
        raise configs.ConfigError(
            f"the last layer of {seeded_by} is copied (seeding.classifier={mode}), but "
            f"{fault}; with seeding.classifier=fresh only the layers before the last one are copied"
        )
