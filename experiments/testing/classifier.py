"""A trained network as a function: uint8 images in, posteriors out. `load(run)` is the way in."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cnn_arch
from cnn_arch import execution
from experiments import config as configs
from experiments.data import preprocessing
from experiments.data.preprocessing import Preprocessing
from experiments.network import for_tests, skeleton
from experiments.runs import checkpoints, names, runs
from experiments.training import memory
from input_pipeline import crops, image_files, resident


@dataclass(frozen=True)
class Classifier:
    """A trained network and its preprocessing: uint8 images in, posteriors out.

    Where images may be of several classes (`preprocessing.several`) each class has a posterior of
    its own, the sigmoid of its logit; else an image's sum to 1.
    """

    network: cnn_arch.Network  # in eval mode
    preprocessing: Preprocessing
    view: crops.CentreView
    step: int  # of the checkpoint
    precision: execution.Precision = "default"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.preprocessing.class_names

    def __call__(self, images: np.ndarray, batch: int = 128) -> np.ndarray:
        """Posteriors (n, classes) float32 of images (n, H, W, C) or (n, H, W), uint8.

        They are scaled and cropped on the device, without rounding. Where the network was trained
        on other views they are scaled and cropped as image files are.
        """
        images = images[..., None] if images.ndim == 3 else images
        prep = self.preprocessing
        if prep.resize != "bilinear" or prep.warp or prep.of_view or prep.frame:
            return np.exp(self.log_posteriors(np.stack(list(map(self.see, images))), batch))
        return np.exp(self._log_posteriors(self.view, images, batch))

    def see(self, image: np.ndarray) -> np.ndarray:
        """The central view of an image (H, W, C) uint8 of any size, for `log_posteriors`."""
        view, side = self.view, self.preprocessing.small_side(self.view.crop)
        if side is not None:
            view = crops.CentreView(crop=side, Q=side)
        cropped = image_files.central_view(image, view, self.preprocessing.resize)
        return image_files.framed(cropped, self.preprocessing.frame)

    def read(self, path: str | Path) -> np.ndarray:
        """The view of an image file. Raises DataError, naming the file."""
        return self.see(
            image_files.read_image(path, self.preprocessing.channels, exif=self.preprocessing.exif)
        )

    def log_posteriors(self, views: np.ndarray, batch: int = 128) -> np.ndarray:
        """(n, classes) float32 natural logarithms for views (n, h, w, C) uint8 of `see`."""
        view = self.view
        if self.preprocessing.small_side(view.crop) is None:  # it is scaled and cropped already
            view = crops.CentreView(crop=self.view.crop, Q=self.view.crop)
        return self._log_posteriors(view, views, batch)

    def _log_posteriors(self, view: crops.CentreView, images: np.ndarray, batch: int) -> np.ndarray:
        forward, logs = self._forward(view), []
        for at in range(0, len(images), batch):
            part = images[at : at + batch]
            with memory.enough_to_test(len(part)):
                logs.append(np.asarray(forward(part)))
        return np.concatenate(logs)

    @functools.cache  # noqa: B019  a classifier lives as long as its program
    def _forward(self, view: crops.CentreView) -> Callable[[Any], jax.Array]:
        graphdef, state = nnx.split(self.network)
        several = self.preprocessing.several

        @functools.partial(jax.jit, compiler_options=execution.compiler_options())
        def forward(state: Any, images: jax.Array) -> jax.Array:
            places = jnp.arange(len(images))
            x = resident.view_batch(images, places, view, self.preprocessing.normalise)[:, 0]
            with jax.default_matmul_precision(self.precision):
                scores = nnx.merge(graphdef, state)(x, tape=execution.tape())
            return jax.nn.log_sigmoid(scores) if several else jax.nn.log_softmax(scores)

        return functools.partial(forward, state)


def load(run: str | Path, which: str = "last", Q: int | None = None) -> Classifier:
    """The trained network of a run: its folder, its id, its `study/row` or the id's unique part.

    which: the `last` checkpoint, or the `best` on held-out images. A run that averages its
    parameters gives the averages. Q: test scale, pixels; the run's by default.

    Raises:
        RunError, CheckpointError: no such run, or nothing that can be read in it.
        ConfigError: Q is smaller than the crop, or the run says boxes.
    """
    trained = names.find_run(str(run), runs.root())
    config = trained.config()
    if config.train.boxes != "none":
        hint = f", such as {config.seeding.run}, which seeds it" if config.seeding.run else ""
        raise configs.ConfigError(
            f"{trained.id} says boxes (train.boxes={config.train.boxes!r}), not classes; expected "
            f"a classifier{hint}"
        )
    if Q is not None:
        config = configs.override(config, {"test.Q": Q}, f"--Q {Q}")
    prep = preprocessing.load(trained.folder / preprocessing.FILE)
    network, step = restored(trained, which, prep)
    crop = config.data.image_size
    view = crops.CentreView(crop=crop, Q=config.test.Q or crop, warp=prep.warp)
    return Classifier(network, prep, view, step, config.model.precision)


def restored(run: runs.Run, which: str, prep: Preprocessing) -> tuple[cnn_arch.Network, int]:
    """A run's network in eval mode, whatever its last layer says, and its checkpoint's step.

    Raises RunError or CheckpointError where it can't be read.
    """
    step, arrays = checkpoints.load_network(run.checkpoints, which)
    eval_skeleton = skeleton(run.config(), len(prep.class_names), prep.channels, train=False)
    params, stats = for_tests(arrays)
    eval_skeleton.check(params, stats, run.checkpoints)
    return eval_skeleton.merge(params, stats), step
