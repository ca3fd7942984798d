"""Testing a trained network: every example exactly once, posteriors kept.

`load(run)` is the way in for programs: it gives a `Classifier` that maps images to posteriors.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import cnn_arch
import input_pipeline
from cnn_arch import execution
from experiments import checkpoints, runs
from experiments import config as configs
from experiments import data as data_lib
from experiments.network import Skeleton, skeleton
from experiments.predictions import Predictions, save
from experiments.statistics import topk_wrong
from input_pipeline import DataError, image_files, order, resident

Progress = Callable[[int, int], None]  # images tested, of how many


@dataclass(frozen=True)
class PartResult:
    """The test of one part: natural logarithms (n, classes) float32, labels and indices (n,)."""

    log_posteriors: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats."""
        picked = self.log_posteriors[np.arange(len(self.labels)), self.labels]
        return float(-picked.mean(dtype=np.float64))

    @property
    def error(self) -> float:
        """Top-1 error in percent."""
        return 100 * float(topk_wrong(self.log_posteriors, self.labels).mean())

    @property
    def predictions(self) -> Predictions:
        """What is saved of a test: example ids in the test set's order, labels, posteriors."""
        return Predictions(self.indices, self.labels, np.exp(self.log_posteriors))


@dataclass(frozen=True)
class Tester:
    """The jitted test of one architecture on the parts of its data, in batches of a fixed size.

    constants: the data's, on every device of `mesh`. The batch is spread over the mesh.
    """

    skeleton: Skeleton  # in eval mode
    data: data_lib.Data
    constants: Any
    mesh: Mesh
    batch: int

    @functools.cached_property
    def _forward(self) -> Any:
        def forward(params: Any, stats: Any, constants: Any, inputs: data_lib.Arrays) -> jax.Array:
            x = self.data.test_views(constants, inputs)
            net = self.skeleton.merge(params, stats)
            return jax.nn.log_softmax(net(x, tape=execution.tape()))

        return jax.jit(forward, out_shardings=NamedSharding(self.mesh, P()))

    def run(
        self,
        params: Any,
        stats: Any,
        part: str,
        on_progress: Progress = lambda done, total: None,
    ) -> PartResult:
        """The images of a part, each once, in order; unusable files are left out."""
        size = -(-self.batch // self.mesh.size) * self.mesh.size
        done: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        waiting: list[tuple[jax.Array, data_lib.Tested]] = []

        def fetch() -> None:
            logs, batch = waiting.pop(0)
            mask = batch.mask
            done.append((np.asarray(logs)[mask], batch.labels[mask], batch.indices[mask]))
            on_progress(sum(len(labels) for _, labels, _ in done), self.data.counts[part])

        for batch in self.data.tested(part, self.mesh, size):
            waiting.append((self._forward(params, stats, self.constants, batch.inputs), batch))
            if len(waiting) > 1:  # so that the device has the next batch already
                fetch()
        fetch()
        if not any(len(labels) for _, labels, _ in done):
            raise DataError(f"none of the {self.data.counts[part]} images of {part!r} can be used")
        return PartResult(*map(np.concatenate, zip(*done, strict=True)))


@dataclass(frozen=True)
class Preprocessing:
    """What a network needs to see images as in its training.

    channels: of the images. resize: how image files are scaled. of_view: a mean image is that of
    the view, not of the images as they are stored.
    """

    normalise: resident.Normalisation
    class_names: tuple[str, ...]
    channels: int
    resize: image_files.Resize = "bilinear"
    of_view: bool = False

    @property
    def of_stored(self) -> bool:
        """Whether a mean image is that of the stored images, all of one size."""
        return self.normalise.mean.ndim == 3 and not self.of_view


@dataclass(frozen=True)
class Classifier:
    """A trained network and its preprocessing: uint8 images in, posteriors out."""

    network: cnn_arch.Network  # in eval mode
    preprocessing: Preprocessing
    view: resident.TestView
    step: int  # of the checkpoint

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.preprocessing.class_names

    def __call__(self, images: np.ndarray, batch: int = 128) -> np.ndarray:
        """Posteriors (n, classes) float32 of images (n, H, W, C) or (n, H, W), uint8.

        They are scaled and cropped on the device, without rounding; where a network was not trained
        so, as image files are.
        """
        images = images[..., None] if images.ndim == 3 else images
        if self.preprocessing.resize != "bilinear" or self.preprocessing.of_view:
            return np.exp(self.log_posteriors(np.stack(list(map(self.see, images))), batch))
        return np.exp(self._batches(self._forward(self.view), images, batch))

    def see(self, image: np.ndarray) -> np.ndarray:
        """The central view of an image (H, W, C) uint8 of any size, for `log_posteriors`."""
        kind, mean = self.preprocessing.resize, self.preprocessing.normalise.mean
        if self.preprocessing.of_stored:  # a mean image belongs to images of its size
            side = min(mean.shape[:2])
            return image_files.central_view(image, side, side, kind)
        return image_files.central_view(image, self.view.scale, self.view.crop, kind)

    def read(self, path: str | Path) -> np.ndarray:
        """The view of an image file. Raises DataError, naming the file."""
        return self.see(image_files.read_image(path, self.preprocessing.channels))

    def log_posteriors(self, views: np.ndarray, batch: int = 128) -> np.ndarray:
        """(n, classes) float32 natural logarithms for views (n, h, w, C) uint8 of `see`."""
        seen = self.view
        if not self.preprocessing.of_stored:
            seen = resident.TestView(crop=self.view.crop)
        return self._batches(self._forward(seen), views, batch)

    @staticmethod
    def _batches(
        forward: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int
    ) -> np.ndarray:
        parts = range(0, len(images), batch)
        return np.concatenate([forward(images[at : at + batch]) for at in parts])

    @functools.cache  # noqa: B019  a classifier lives as long as its program
    def _forward(self, view: resident.TestView) -> Callable[[Any], np.ndarray]:
        graphdef, state = nnx.split(self.network)

        @jax.jit
        def forward(state: Any, images: jax.Array) -> jax.Array:
            places = jnp.arange(len(images))
            x = resident.test_batch(images, places, view, self.preprocessing.normalise)
            return jax.nn.log_softmax(nnx.merge(graphdef, state)(x, tape=execution.tape()))

        return lambda images: np.asarray(forward(state, images))


def load(run: str | Path, which: str = "last", Q: int | None = None) -> Classifier:
    """The trained network of a run: its folder, its id or the id's unique part.

    which: the `last` checkpoint, or the `best` on held-out images. A run that averages its
    parameters gives the averages. Q: test scale, pixels; the run's by default.

    Raises:
        RunError, CheckpointError: no such run, or nothing that can be read in it.
        ConfigError: Q is smaller than the crop.
    """
    found = runs.find(str(run), runs.root())
    config = found.config()
    if Q is not None:
        config = configs.override(config, {"test.Q": Q}, f"--Q {Q}")
    step, arrays = checkpoints.load_network(found.checkpoints, which)
    preprocessing = load_preprocessing(found.folder / "preprocessing.npz")
    classes, channels = len(preprocessing.class_names), preprocessing.channels
    bones = skeleton(config, classes, channels, train=False)
    params = arrays.get("ema") or arrays["params"]
    bones.check(params, arrays["stats"], found.checkpoints)
    _, view = data_lib.resident_views(config)
    return Classifier(bones.merge(params, arrays["stats"]), preprocessing, view, step)


def evaluate(
    run: runs.Run,
    mesh: Mesh,
    which: str = "last",
    Q: int | None = None,
    data: str | None = None,
    on_progress: Progress = lambda done, total: None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> dict[str, Any]:
    """Tests a run on its data's test images, or on others: central crop at test scale Q (pixels).

    data: a folder of images (`input_pipeline.image_files.image_folder`), an .npz, or the name of a
    data set; an imported run has none of its own.

    Saves the posteriors as predictions/test-center[-best][-Q].npz, with `data` as
    predictions/other-center[-best][-Q]-<its name and a digest of its path>.npz. Returns n, the
    numbers of top-1 and top-5 errors, what was tested and how many images were left out, of which
    `on_bad` hears.

    Raises:
        RunError, CheckpointError, DataError, ConfigError: something of it is missing or unfit.
    """
    if data == "":
        raise runs.RunError("--data is empty; expected a folder, an .npz or a data set's name")
    if data is None and run.imported:
        raise runs.RunError(
            f"{run.id} was imported and has no data of its own; say what to test it on with --data"
        )
    if data is None:
        tested = _on_own_data(run, mesh, which, Q, on_progress, on_bad)
    else:
        tested = _on_other_data(run, mesh, which, Q, data, on_progress)
    parts = ["test" if data is None else "other", "center"]
    parts += (["best"] if which == "best" else []) + ([f"Q{Q}"] if Q else [])
    if data is not None:
        place = str(Path(data).resolve()) if Path(data).exists() else data
        digest = hashlib.sha256(place.encode()).hexdigest()[:8]
        parts.append(f"{re.sub(r'[^A-Za-z0-9.]+', '_', Path(data).name)}-{digest}")
    save(run.folder / "predictions" / f"{'-'.join(parts)}.npz", tested.predictions)
    return {
        "run": run.id,
        "checkpoint": f"{which} (step {tested.step})",
        "data": data or run.config().data.name,
        "protocol": "center",
        "crop": tested.view.crop,
        "Q": tested.view.scale,
        "left_out": tested.left_out,
        **error_counts(tested.predictions),
    }


@dataclass(frozen=True)
class _Tested:
    """The predictions of a checkpoint's step at a view."""

    step: int
    view: resident.TestView
    predictions: Predictions
    left_out: int = 0  # images that can't be used


def _on_own_data(
    run: runs.Run,
    mesh: Mesh,
    which: str,
    Q: int | None,
    on_progress: Progress,
    on_bad: Callable[[str], None],
) -> _Tested:
    config = run.config()
    if Q is not None:
        config = configs.override(config, {"test.Q": Q}, f"--Q {Q}")
    step, arrays = checkpoints.load_network(run.checkpoints, which)
    opened = data_lib.open_data(config.data)
    runs.check_data(run, opened.fingerprint)
    kept = run.folder / "statistics.npz"
    data = data_lib.prepare(config, opened=opened, kept=kept, on_bad=on_bad)
    shape = (data.classes, data.channels)
    bones = skeleton(config, *shape, train=False)
    params = arrays.get("ema") or arrays["params"]
    bones.check(params, arrays["stats"], run.checkpoints)
    everywhere = NamedSharding(mesh, P())
    tester = Tester(
        skeleton=bones,
        data=data,
        constants=jax.device_put(data.constants, everywhere),
        mesh=mesh,
        batch=config.test.batch_size,
    )
    params, stats = jax.device_put((params, arrays["stats"]), everywhere)
    found = tester.run(params, stats, "test", on_progress)
    _, view = data_lib.resident_views(config)
    return _Tested(step, view, found.predictions, data.counts["test"] - len(found.labels))


def _on_other_data(
    run: runs.Run, mesh: Mesh, which: str, Q: int | None, data: str, on_progress: Progress
) -> _Tested:
    model = load(run.folder, which, Q)
    views, labels = _views(model, data)
    if labels.max() >= len(model.class_names):
        raise DataError(
            f"{data} has labels up to {labels.max()}, and {run.id} has {len(model.class_names)} "
            "classes"
        )
    size = -(-run.config().test.batch_size // mesh.size) * mesh.size
    spread = NamedSharding(mesh, P("data"))
    found: list[np.ndarray] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for places, mask in order.eval_batches(len(labels), size):
            batch = np.stack(list(threads.map(views, places.tolist())))
            found.append(model.log_posteriors(jax.device_put(batch, spread), size)[mask])
            on_progress(min(len(labels), len(found) * size), len(labels))
    ids: np.ndarray = np.arange(len(labels), dtype=np.int32)
    return _Tested(
        model.step, model.view, PartResult(np.concatenate(found), labels, ids).predictions
    )


def _views(model: Classifier, data: str) -> tuple[Callable[[int], np.ndarray], np.ndarray]:
    """(i -> the central view of test image i, labels) of a folder, an .npz or a named data set."""
    if Path(data).is_dir():
        files = image_files.image_folder(data, model.class_names)
        return (lambda i: model.read(files.files[i])), files.labels
    path = Path(data)
    known = {"name": "npz", "path": path} if path.suffix == ".npz" else {"name": data}
    dataset = input_pipeline.load(**known)
    test = dataset.test
    names = (dataset.class_names, model.class_names)
    if names[0] != names[1] and not any(all(map(str.isdecimal, given)) for given in names):
        raise DataError(
            f"the classes of {data} are {', '.join(names[0][:5])}, ..., and those of the network "
            f"are {', '.join(names[1][:5])}, ...: they must be the same in the same order"
        )
    if test.images.shape[-1] != model.preprocessing.channels:
        raise DataError(
            f"images of {data} have channels: {test.images.shape[-1]}, and the network takes "
            f"{model.preprocessing.channels}"
        )
    return (lambda i: model.see(test.images[i])), test.labels


def error_counts(found: Predictions) -> dict[str, int | float]:
    """n, and how many top-1 and top-5 errors, as numbers and in percent."""
    counts: dict[str, int | float] = {"n": len(found.labels)}
    for k in (1, 5):
        wrong = int(topk_wrong(found.posteriors, found.labels, k).sum())
        counts[f"top{k}_errors_count"] = wrong
        counts[f"top{k}_error"] = 100 * wrong / len(found.labels)
    return counts


def preprocessing(data: data_lib.Data) -> Preprocessing:
    """How the images of a run's data are prepared for a test."""
    return Preprocessing(
        data.test_normalise, data.class_names, data.channels, of_view=data.means_are_of_views
    )


def save_preprocessing(path: Path, found: Preprocessing) -> None:
    """Keeps with a run what its network needs to see images as in training."""
    whitening = found.normalise.whitening
    extra: dict[str, Any] = {} if whitening is None else {"whitening": whitening}
    np.savez(
        path,
        **extra,
        mean=found.normalise.mean,
        std=found.normalise.std,
        class_names=np.array(found.class_names),
        channels=found.channels,
        resize=np.array(found.resize),
        of_view=found.of_view,
    )


def load_preprocessing(path: Path) -> Preprocessing:
    """What `save_preprocessing` wrote. Raises RunError where it can't be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            resize = str(file["resize"]) if "resize" in file else "bilinear"
            return Preprocessing(
                resident.Normalisation(file["mean"], file["std"], file.get("whitening")),
                tuple(map(str, file["class_names"])),
                int(file["channels"]),
                "bicubic" if resize == "bicubic" else "bilinear",
                bool(file.get("of_view", False)),
            )
    except FileNotFoundError:
        raise runs.RunError(f"{path.parent} was never trained: it has no {path.name}") from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise runs.RunError(f"{path} can't be read: {error}") from error
