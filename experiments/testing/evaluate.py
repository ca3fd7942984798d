"""Testing runs by the papers' protocols; what was tested once is kept.

A protocol's passes are kept apart in the run's folder, as predictions/PART-PASS.npz, so that other
protocols, fusions and comparisons take them from there. A pass that is stopped leaves what it has,
and goes on from it.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
from cnn_arch import execution
from cnn_arch.layers import BatchNorm
from experiments import data as data_lib
from experiments.config import ConfigError
from experiments.data import foreign as given_data
from experiments.data import preprocessing
from experiments.network import Flat, for_tests, is_frozen, skeleton
from experiments.runs import checkpoints, names, processes, runs
from experiments.statistics import error_rate
from experiments.testing import prediction_store, predictions, protocols
from experiments.testing.metrics import Interpolation
from experiments.testing.prediction_store import OWN, EvaluationSettings
from experiments.testing.predictions import Predictions
from experiments.testing.tester import Progress, Tester
from experiments.training import optimizer
from input_pipeline import DataError, crops
from input_pipeline.classes import Matched

Bar = Callable[[str], AbstractContextManager[Progress]]  # of what is being done
SAVE_SECONDS = 30.0  # between two savings of an unfinished pass, at least
SAVE_SHARE = 0.05  # of the time, at most
PARTIAL = "partial-"  # begins the names of unfinished passes, before the host's number


@dataclass(frozen=True)
class Evaluated:
    """A run tested by a protocol."""

    run: str  # its id
    row: str  # `study/row`, with the seed
    checkpoint: str
    data: str
    classes: str | None  # how those of other images than its own are the network's
    protocol: str
    crop: int
    scales: tuple[int, ...]
    left_out: int  # images that can't be used
    mirrored: bool  # whether mirrors were shown
    enlarged: int  # images that were smaller than what was shown of them
    reused: bool  # whether nothing had to be computed
    predictions: Predictions
    class_names: tuple[str, ...] = ()

    def to_json(self, precision: Interpolation = "all_points") -> dict[str, Any]:
        """What was tested, and what `error_counts` makes of the predictions."""
        excluded = ("predictions", "class_names")
        facts = {name: value for name, value in vars(self).items() if name not in excluded}
        return {**facts, **error_counts(self.predictions, self.class_names, precision)}


def no_bar(label: str) -> AbstractContextManager[Progress]:
    """A bar that shows nothing."""
    return nullcontext(lambda n, total: None)


def fuse(tested: Sequence[Evaluated]) -> Predictions:
    """The mean posteriors of several tests. PredictionsError: they are not of the same images."""
    labels = [f"{test.run} {test.protocol}" for test in tested]
    return predictions.mean([test.predictions for test in tested], labels)


def error_counts(
    tested: Predictions,
    class_names: Sequence[str] = (),
    precision: Interpolation = "all_points",
) -> dict[str, Any]:
    """n, and top-1 and top-5 errors: their number, percent and 95% Wilson interval in percent.

    Of boxes, whose class is given, the top-1 error is that of the boxes. Of images that may be of
    several classes it is the mean average precision, and that of each class, in percent; None for a
    class that no image shows. precision: how it is taken.
    """
    counts: dict[str, Any] = {"n": len(tested.labels)}
    if tested.targets is not None:
        by_class = dict(zip(class_names, tested.average_precisions(precision), strict=True))
        mean = tested.mean_average_precision(precision)
        return counts | {runs.AVERAGED: mean, "average_precision": by_class}
    for k in (1, 5) if tested.boxes is None else (1,):
        wrong = int(tested.topk_wrong(k).sum())
        counts[f"top{k}_errors_count"] = wrong
        rate = error_rate(wrong, len(tested.labels))
        counts[f"top{k}_error"] = rate.percent
        counts[f"top{k}_low"], counts[f"top{k}_high"] = rate.low, rate.high
    return counts


class Subject:
    """A run to be tested by one or more protocols.

    Its network and images are opened when the first pass needs them.

    bar: opens a progress bar with a label. reading: the same for what has to be read to know the
    images by their contents. on_bad: is called with why an image is left out. on_note: is called
    with what else people should know of the images.

    Raises RunError or CheckpointError where it can't be tested so.
    """

    def __init__(
        self,
        run: runs.Run,
        mesh: Mesh,
        settings: EvaluationSettings = OWN,
        bar: Bar = no_bar,
        on_bad: Callable[[str], None] = lambda reason: None,
        on_note: Callable[[str], None] = lambda note: None,
        reading: Bar = no_bar,
    ):
        config = run.config()
        if settings.data == "":
            raise runs.RunError("--data is empty; expected a folder, an .npz or a data set's name")
        if (
            settings.data is not None
            and config.data.split
            and _same(settings.data, config.data.path)
        ):
            raise runs.RunError(
                f"--data {settings.data} holds the images that {run.id} was trained on; without "
                "--data, those are tested that data.split keeps for it"
            )
        if settings.data is None and run.imported:
            raise runs.RunError(
                f"{run.id} was imported and has no data of its own; say what to test it on with "
                "--data"
            )
        if settings.statistics_images and run.imported:
            raise runs.RunError(f"{run.id} was imported: it has no training images")
        self.mesh = processes.own_mesh(mesh)
        self.run, self.config, self.settings = run, config, settings
        self.bar, self.on_bad = bar, on_bad
        self.on_note, self.reading = on_note, reading
        self.step = checkpoints.step_of(run.checkpoints, settings.which)

    def tested(
        self, protocol: str = "center", scales: str | None = None, *, flip: bool = False
    ) -> Evaluated:
        """The run tested by a protocol (`protocols.resolve` says what these are).

        Passes that are kept, of this checkpoint and these images, are not computed again. Mirrors
        are left out where the data say that a mirrored image is not an image of its class (a
        digit). With several processes, each tests a share of the images on its own devices.

        Raises RunError, CheckpointError, DataError, ConfigError or PredictionsError where something
        of it is missing or unfit.
        """
        passes = protocols.resolve(protocol, self.config, scales, flip=flip)
        if self.settings.data is not None and self.config.train.boxes != "none":
            raise runs.RunError(f"{self.run.id} says boxes, and those of other images are not read")
        if self.config.train.boxes != "none" and (protocol, flip) != ("center", False):
            raise ConfigError(
                f"{self.run.id} says boxes, whose own protocol is center without mirrors; "
                "`cnn-depth localise` tests boxes over whole images"
            )
        per_pass: list[Predictions] = []
        reused = True
        for part in passes:
            file = self.settings.file(self.run, part)
            saved = processes.read(partial(prediction_store.read, file, self.about(part)))
            if saved is None:
                reused, saved = False, self.test(part, file)
            per_pass.append(saved)
        about = predictions.about(file)
        enlarged = [int(p.enlarged.sum()) for p in per_pass if p.enlarged is not None]
        return Evaluated(
            run=self.run.id,
            row=names.labelled(self.run).row,
            checkpoint=f"{self.settings.which} (step {self.step})",
            data=self.settings.data or self.config.data.name,
            classes=None if self._matched is None else self._matched.how,
            protocol=protocol + ("+flip" if flip else ""),
            crop=self.config.data.image_size,
            scales=tuple(dict.fromkeys(Q for part in passes for Q in part.scales)),
            left_out=about["left_out"],
            mirrored=about["mirror"],
            enlarged=max(enlarged, default=0),
            reused=reused,
            predictions=predictions.mean(per_pass),
            class_names=() if per_pass[0].targets is None else self._class_names,
        )

    def about(self, part: protocols.Pass) -> dict[str, Any]:
        """What the file of a kept pass has to say of it."""
        about: dict[str, Any] = {
            "run": self.run.id,
            "step": self.step,
            "pass": part.name,
            "statistics_images": self.settings.statistics_images,
            "rounding": crops.ROUNDING,
        }
        if self._matched is None:
            return {**about, "data": (self.run.read("run") or {}).get("data")}
        return {**about, "data": self.data.fingerprint, "classes": self._matched.key}

    @property
    def _class_names(self) -> tuple[str, ...]:
        """The network's, in the order of its outputs."""
        return preprocessing.load(self.run.folder / preprocessing.FILE).class_names

    @property
    def _matched(self) -> Matched | None:
        """How the classes of other images than its own are the network's."""
        return None if self.settings.data is None else self.data.matched

    @cached_property
    def own(self) -> data_lib.Data:
        """The data of the run's config."""
        with self.reading(self.config.data.path or self.config.data.name) as on_read:
            opened = data_lib.open_data(self.config.data, on_read)
        for note in opened.notes:
            self.on_note(note)
        runs.check_data(self.run, opened.fingerprint)
        return data_lib.prepare(
            self.config,
            opened=opened,
            statistics_file=self.run.folder / "statistics.npz",
            prep=preprocessing.inherited(self.run, self.config),
            on_bad=self.on_bad,
        )

    @cached_property
    def data(self) -> data_lib.TestData:
        """The images that are tested."""
        if self.settings.data is None:
            return self.own
        prep = preprocessing.load(self.run.folder / preprocessing.FILE)
        with self.reading(self.settings.data) as on_read:
            return given_data.open_test(
                self.settings.data,
                prep,
                self.config,
                self.on_bad,
                self.on_note,
                on_read,
                in_order=self.settings.classes_in_order,
            )

    def test(self, part: protocols.Pass, file: Path) -> Predictions:
        """Computes a pass, or the images that are still missing in it, and keeps it in `file`."""
        tester, params, stats = self.network
        data, about = self.data, self.about(part)
        view = part.view(data.crop, square=data.square, warp=data.preprocessing.warp)
        mirror = part.mirror and data.preprocessing.mirror_ok
        if part.kind == "center" and part.mirror and not mirror:
            raise ConfigError(f"--flip: a mirrored image of {data.name} is not one of its class")
        total = data.counts["test"]
        label = f"{self.run.id} {part.name}"
        if not isinstance(data, data_lib.ResidentTests):
            with self.bar(f"{label}: sizes of images") as on_progress:
                data.prepare("test", view, on_progress)
        with self.bar(label) as on_progress:
            tested = collect(
                tester, params, stats, "test", view, file, about, on_progress, mirror=mirror
            )
        if tested is None:
            raise DataError(f"none of the {total} test images of {data.name} can be used")
        return tested

    @cached_property
    def network(self) -> tuple[Tester, Flat, Flat]:
        """The tester, and the network's parameters and statistics on the mesh."""
        step, arrays = checkpoints.load_network(self.run.checkpoints, self.settings.which)
        if step != self.step:
            raise runs.RunError(
                f"{self.run.id} is in training: checkpoint {step} took the place of {self.step}"
            )
        eval_skeleton = skeleton(self.config, self.data.classes, self.data.channels, train=False)
        params, stats = for_tests(arrays)
        eval_skeleton.check(params, stats, self.run.checkpoints)
        everywhere = NamedSharding(self.mesh, P())
        params, stats = jax.device_put((params, stats), everywhere)
        images = self.settings.statistics_images
        if images:
            with self.bar(f"{self.run.id}: statistics of batches") as on_progress:
                stats = batch_statistics(
                    self.config, self.own, self.mesh, params, stats, images, on_progress
                )
        tester = Tester(
            skeleton=eval_skeleton,
            data=self.data,
            constants=jax.device_put(self.data.constants, everywhere),
            mesh=self.mesh,
            batch=self.config.test.batch_size,
            deterministic=self.config.train.deterministic,
            boxes=self.config.train.boxes != "none",
        )
        return tester, params, stats


def _same(a: str, b: str) -> bool:
    return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def collect(
    tester: Tester,
    params: Any,
    stats: Any,
    part: str,
    view: crops.TestView,
    file: Path,
    about: dict[str, Any],
    on_progress: Progress,
    *,
    mirror: bool = False,
) -> Predictions | None:
    """A pass over the images of a part, kept in `file`; None where no image can be used.

    What `on_progress` or a signal stops is kept too, and the next call with the same `about` goes
    on from there. With several processes, which all call this, each tests its share. The posteriors
    are those of the file, which rounds them; ranks and losses are exact.
    """
    data = tester.data
    total, folder = data.counts[part], file.parent
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise runs.RunError(f"{folder} can't be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise runs.RunError(f"{folder} can't be written, and what is tested is kept there")
    shape = (total, tester.columns)
    partials = _partials(file, about, shape)
    processes.meet("all hosts have read what there is")
    untested = np.setdiff1d(np.arange(total), [i for p in partials.values() for i in p.ids])
    host, hosts = jax.process_index(), jax.process_count()
    places = untested[host::hosts]
    own_file = file.with_name(f"{PARTIAL}{host}-{file.name}")
    collected = _Collected(own_file, about, partials.get(own_file))
    count, share = collected.count, collected.count + len(places)
    batches = tester.batches(params, stats, part, view, mirror=mirror, places=places)
    try:
        for batch in batches:
            collected.add(batch)
            count += len(batch.labels)
            on_progress(count, share)
    except BaseException:
        batches.close()  # type: ignore[attr-defined]
        collected.save()
        raise
    if hosts > 1:
        collected.save()
    processes.meet("all hosts have tested their images")
    tested = None
    if host == 0:
        others = (f for p, f in _partials(file, about, shape).items() if p != own_file)
        tested = _together([*collected.parts, *others])
        if tested is not None:
            left_out = total - len(tested.ids)
            predictions.save(file, tested, {**about, "mirror": mirror, "left_out": left_out})
        for path in folder.glob(f"{PARTIAL}*-{file.name}"):
            path.unlink(missing_ok=True)
    if not processes.from_first(tested is not None):
        return None
    return processes.wait_for(lambda: prediction_store.read(file, about)) or predictions.load(file)


def _partials(file: Path, about: dict[str, Any], shape: tuple[int, int]) -> dict[Path, Predictions]:
    """The kept parts of an unfinished pass, each image once, by file. shape: (images, classes)."""
    partials: dict[Path, Predictions] = {}
    total, classes = shape
    for path in sorted(file.parent.glob(f"{PARTIAL}*-{file.name}")):
        part = prediction_store.read(path, about, ended=False)
        if part and part.posteriors.shape[1] == classes and part.ids.max() < total:
            ids = [i for p in partials.values() for i in p.ids]
            partials[path] = part.take(~np.isin(part.ids, ids))
    return partials


def _together(parts: Sequence[Predictions]) -> Predictions | None:
    """All images in the order of their ids; None without any."""
    if not parts:
        return None
    tested = predictions.concatenate(parts)
    return tested.take(np.argsort(tested.ids))


class _Collected:
    """The posteriors of an unfinished pass, saved now and then."""

    def __init__(self, file: Path, about: dict[str, Any], saved: Predictions | None):
        self.file, self.about = file, about
        self.parts = [] if saved is None else [saved]
        self.count = 0 if saved is None else len(saved.ids)
        self._unsaved = False
        self._saved_at, self._pause = time.monotonic(), SAVE_SECONDS

    def add(self, batch: Predictions) -> None:
        """More images, each for the first time."""
        if len(batch.ids):
            self.parts.append(batch)
            self.count += len(batch.ids)
            self._unsaved = True
        if time.monotonic() - self._saved_at > self._pause:
            self.save()

    def save(self) -> None:
        """Keeps all images so far in the file, from which a later call goes on."""
        tested = _together(self.parts) if self._unsaved else None
        if tested is not None:
            start = time.monotonic()
            predictions.save(self.file, tested, self.about)
            self._saved_at, self._unsaved = time.monotonic(), False
            self._pause = max(SAVE_SECONDS, (self._saved_at - start) / SAVE_SHARE)
            self.parts = [tested]


def batch_statistics(
    config: ml_collections.ConfigDict,
    data: data_lib.Data,
    mesh: Mesh,
    params: Flat,
    stats: Flat,
    images: int,
    on_progress: Progress = lambda n, total: None,
) -> Flat:
    """Means and variances for batch normalisation from `images` training images, rounded up to
    whole batches.

    Each is the mean over training batches (views, sizes and groups as in training, each layer's
    inputs normalised with their batch's own statistics) of the batch's mean and unbiased variance,
    as He et al. took them after training. Dropout is off. Layers that were frozen in training keep
    theirs, as they did there.

    Raises ConfigError where the network has no batch normalisation, or all of it was frozen.
    """
    frozen = optimizer.frozen(config, params)
    fixed = {name for name in stats if is_frozen(name.rpartition("/")[0], frozen)}
    if len(fixed) == len(stats):
        which = "that was not frozen in training " if fixed else ""
        raise ConfigError(
            f"{config.model.arch} has no batch normalisation {which}to take statistics for"
        )
    add = _statistics_adder(config, data, frozen)
    batch = config.train.batch_size
    steps = -(-images // batch)
    constants = jax.device_put(data.constants, NamedSharding(mesh, P()))
    feed, total = data.feed(config, mesh, 0), jax.tree.map(jnp.zeros_like, stats)
    try:
        for k in range(steps):
            inputs = feed.next(range(k, k + 1))
            sums = add(total, params, stats, constants, np.int32(config.seed), inputs)
            total = jax.block_until_ready(sums)
            on_progress((k + 1) * batch, steps * batch)
    finally:
        feed.close()
    return {name: stats[name] if name in fixed else total[name] / steps for name in total}


def _statistics_adder(
    config: ml_collections.ConfigDict, data: data_lib.Data, frozen: Collection[str]
) -> Callable[..., Flat]:
    """`add(total, params, stats, constants, seed, inputs)`: the sums with a batch's own added."""
    shape = (data.classes, data.channels)
    eval_skeleton = skeleton(config, *shape, train=False, batch_statistics=True, frozen=frozen)
    momentum = BatchNorm.momentum
    options = execution.compiler_options(deterministic=config.train.deterministic)

    @partial(jax.jit, compiler_options=options)
    def add(total: Flat, params: Flat, stats: Flat, constants: Any, seed: Any, inputs: Any) -> Flat:
        x, _ = data.train_views(constants, seed, jax.tree.map(lambda x: x[0], inputs))
        net = eval_skeleton.merge(params, stats)
        with eval_skeleton.multiplying():
            net(x, tape=execution.tape())
        updated = cnn_arch.flat_state(nnx.state(net, nnx.BatchStat))
        # A running statistic moves by one minus its momentum towards the batch's.
        return {k: total[k] + (updated[k] - momentum * stats[k]) / (1 - momentum) for k in total}

    return add
