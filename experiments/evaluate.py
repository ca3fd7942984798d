"""Testing a trained network: every example exactly once, posteriors kept.

`load(run)` is the way in for programs: it gives a `Classifier` that maps images to posteriors.
"""

import functools
from collections.abc import Iterator
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

from experiments import checkpoints, runs
from experiments import config as configs
from experiments import data as data_lib
from experiments.network import Skeleton, skeleton
from experiments.predictions import Predictions, save
from experiments.statistics import topk_wrong
from input_pipeline import resident


@dataclass(frozen=True)
class Tester:
    """The jitted test of one architecture on resident images, in batches of a fixed size.

    images: (N, H, W, C) uint8, on every device of `mesh`. The batch is spread over the mesh.
    """

    skeleton: Skeleton  # in eval mode
    images: jax.Array
    view: resident.TestView
    normalise: resident.Normalisation
    mesh: Mesh
    batch: int

    @functools.cached_property
    def _forward(self) -> Any:
        def forward(params: Any, stats: Any, images: jax.Array, indices: jax.Array) -> jax.Array:
            x = resident.test_batch(images, indices, self.view, self.normalise)
            return jax.nn.log_softmax(self.skeleton.merge(params, stats)(x))

        return jax.jit(forward, out_shardings=NamedSharding(self.mesh, P()))

    def log_posteriors(self, params: Any, stats: Any, part: range) -> np.ndarray:
        """(n, classes) float32 natural logarithms for the images at `part`, in order."""
        spread = NamedSharding(self.mesh, P("data"))
        size = -(-self.batch // self.mesh.size) * self.mesh.size
        results = []
        for places, mask in resident.eval_batches(len(part), size):
            indices = jax.device_put(places + np.int32(part.start), spread)
            results.append((self._forward(params, stats, self.images, indices), mask))
        return np.concatenate([np.asarray(logs)[mask] for logs, mask in results])


def mean_loss(log_posteriors: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    return float(-log_posteriors[np.arange(len(labels)), labels].mean(dtype=np.float64))


def error_percent(log_posteriors: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 error in percent."""
    return 100 * float(topk_wrong(log_posteriors, labels).mean())


def predictions(log_posteriors: np.ndarray, labels: np.ndarray) -> Predictions:
    """What is saved of a test: example ids in the test set's order, labels, posteriors."""
    return Predictions(np.arange(len(labels), dtype=np.int32), labels, np.exp(log_posteriors))


@dataclass(frozen=True)
class Classifier:
    """A trained network and its preprocessing: uint8 images in, posteriors out."""

    network: nnx.Module
    normalise: resident.Normalisation
    view: resident.TestView
    class_names: tuple[str, ...]

    def __call__(self, images: np.ndarray, batch: int = 128) -> np.ndarray:
        """Posteriors (n, classes) float32 of images (n, H, W, C) or (n, H, W), uint8."""
        images = images[..., None] if images.ndim == 3 else images
        graphdef, state = nnx.split(self.network)

        @jax.jit
        def forward(state: Any, images: jax.Array) -> jax.Array:
            x = resident.test_batch(images, jnp.arange(len(images)), self.view, self.normalise)
            return jax.nn.softmax(nnx.merge(graphdef, state)(x))

        return np.concatenate([np.asarray(forward(state, part)) for part in _parts(images, batch)])


def _parts(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), batch):
        yield images[start : start + batch]


def load(run: str | Path, which: str = "last") -> Classifier:
    """The trained network of a run: its folder, its id or the id's unique part.

    which: the `last` checkpoint, or the `best` on held-out images. A run that averages its
    parameters gives the averages.

    Raises:
        RunError, CheckpointError: no such run, or nothing that can be read in it.
    """
    found = runs.find(str(run), runs.root())
    config = found.config()
    _, arrays = checkpoints.load_network(found.checkpoints, which)
    normalise, class_names, channels = load_preprocessing(found.folder / "preprocessing.npz")
    bones = skeleton(config, len(class_names), channels, train=False)
    params = arrays.get("ema") or arrays["params"]
    bones.check(params, arrays["stats"], found.checkpoints)
    _, view = data_lib.views(config)
    return Classifier(bones.merge(params, arrays["stats"]), normalise, view, class_names)


def evaluate(
    run: runs.Run, mesh: Mesh, which: str = "last", Q: int | None = None
) -> dict[str, Any]:
    """Tests a trained run on its test images, central crop at test scale Q (pixels).

    Saves the posteriors as predictions/test-center[-best][-Q].npz. Returns n, the numbers of
    top-1 and top-5 errors and what was tested.

    Raises:
        RunError, CheckpointError, DataError, ConfigError: something of it is missing or unfit.
    """
    config = run.config()
    if Q is not None:
        config = configs.override(config, {"test.Q": Q}, f"--Q {Q}")
    step, arrays = checkpoints.load_network(run.checkpoints, which)
    data = data_lib.prepare(config)
    runs.check_data(run, data.dataset.fingerprint)
    shape = (data.dataset.classes, data.dataset.channels)
    bones = skeleton(config, *shape, train=False)
    params = arrays.get("ema") or arrays["params"]
    bones.check(params, arrays["stats"], run.checkpoints)
    everywhere = NamedSharding(mesh, P())
    tester = Tester(
        skeleton=bones,
        images=jax.device_put(data.images, everywhere),
        view=data.test_view,
        normalise=data.normalise,
        mesh=mesh,
        batch=config.test.batch_size,
    )
    params, stats = jax.device_put((params, arrays["stats"]), everywhere)
    part = data.parts["test"]
    found = predictions(tester.log_posteriors(params, stats, part), data.labels[part])
    name = "-".join(
        ["test-center", *(["best"] if which == "best" else []), *([f"Q{Q}"] if Q else [])]
    )
    save(run.folder / "predictions" / f"{name}.npz", found)
    return {
        "run": run.id,
        "checkpoint": f"{which} (step {step})",
        "protocol": "center",
        "crop": data.test_view.crop,
        "Q": data.test_view.scale,
        **error_counts(found),
    }


def error_counts(found: Predictions) -> dict[str, int | float]:
    """n, and how many top-1 and top-5 errors, as numbers and in percent."""
    counts: dict[str, int | float] = {"n": len(found.labels)}
    for k in (1, 5):
        wrong = int(topk_wrong(found.posteriors, found.labels, k).sum())
        counts[f"top{k}_errors_count"] = wrong
        counts[f"top{k}_error"] = 100 * wrong / len(found.labels)
    return counts


def save_preprocessing(path: Path, data: data_lib.Data) -> None:
    """Keeps with a run what its network needs to see images as in training."""
    np.savez(
        path,
        mean=data.normalise.mean,
        std=data.normalise.std,
        class_names=np.array(data.dataset.class_names),
        channels=data.images.shape[-1],
    )


def load_preprocessing(path: Path) -> tuple[resident.Normalisation, tuple[str, ...], int]:
    """(normalisation, class names, channels) that `save_preprocessing` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            normalise = resident.Normalisation(file["mean"], file["std"])
            return normalise, tuple(map(str, file["class_names"])), int(file["channels"])
    except FileNotFoundError:
        raise runs.RunError(f"{path.parent} was never trained: it has no {path.name}") from None
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise runs.RunError(f"{path} can't be read: {error}") from error
