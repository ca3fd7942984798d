"""Every key that a config has: its default, what it means, and what it may be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from cnn_arch import execution, seeding

CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer.kind": ("sgd", "sdlm"),
    "model.precision": execution.PRECISIONS,
    "train.scan": ("auto", "always", "never"),
    "seeding.kind": seeding.KINDS,
    "seeding.classifier": ("copy", "fresh", "in_order"),
    "seeding.normalise": ("inherit", "fit"),
    "data.view": ("scale", "square", "area"),
    "data.colour": (
        "none",
        "pca_public",
        "pca_fitted",
        "pca_paper",
        "photometric",
        "photometric+pca_public",
    ),
    "data.normalise": ("per_pixel", "per_channel", "fixed", "none", "gcn_zca", "lenet"),
    "data.bad": ("skip", "raise"),
    "schedule.kind": ("constant", "steps", "cosine", "plateau"),
    "schedule.warmup": ("none", "constant", "linear", "until_error"),
}


class Bounds(NamedTuple):
    """What a number may be: from `low` to `high`, these included unless told otherwise."""

    low: float
    high: float
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded

    def hold(self, value: float) -> bool:
        """Whether `value` lies within; NaN does not."""
        low, high = self.low, self.high
        return (low < value if self.above else low <= value) and (
            value < high if self.below else value <= high
        )

    def __str__(self) -> str:
        low, high = (int(v) if v == int(v) else v for v in (self.low, self.high))
        return f"{'above' if self.above else 'at least'} {low} and " + (
            f"{'below' if self.below else 'at most'} {high}"
        )


# Every number that a config has, and each part of a tuple of numbers. A high bound lies far beyond
# whatever is useful, so that a slip of the hand is told before any work.
MOST = 2**31 - 1  # steps, images, seeds: as JAX counts
SIDE, BATCH, EPOCHS = 16384, 2**20, 1e6
BOUNDS: dict[str, Bounds] = {
    "data.image_size": Bounds(1, SIDE),
    "data.S": Bounds(0, SIDE),
    "data.pad": Bounds(0, SIDE),
    "data.frame": Bounds(0, SIDE),
    "data.distort": Bounds(0, 1),
    "data.area": Bounds(0, 1, above=True),
    "data.aspect": Bounds(0.01, 100),
    "data.mean": Bounds(0, 255),
    "data.split": Bounds(0, 0.9),
    "data.holdout": Bounds(0, 0.9),
    "data.statistics_images": Bounds(0, MOST),
    "data.max_bad": Bounds(0, 1),
    "data.threads": Bounds(0, 1024),
    "optimizer.mu": Bounds(1e-9, 1e9),
    "optimizer.patterns": Bounds(1, MOST),
    "optimizer.momentum": Bounds(0, 0.9999),
    "optimizer.weight_decay": Bounds(0, 10),
    "optimizer.clip_norm": Bounds(0, 1e9),
    "optimizer.rates": Bounds(0, 1e4, above=True),
    "schedule.lr": Bounds(1e-12, 1e4),
    "schedule.milestones": Bounds(0, 1, above=True, below=True),
    "schedule.factor": Bounds(0, 1, above=True, below=True),
    "schedule.factors": Bounds(1e-9, 1e4),
    "schedule.drops": Bounds(0, 1000),
    "schedule.patience": Bounds(1, 1e6),
    "schedule.warmup_lr": Bounds(0, 1e4),
    "schedule.warmup_steps": Bounds(0, MOST),
    "schedule.warmup_part": Bounds(0, 1, below=True),
    "schedule.warmup_error": Bounds(0, 100, above=True, below=True),
    "train.batch_size": Bounds(1, BATCH),
    "train.epochs": Bounds(0, EPOCHS),
    "train.steps": Bounds(0, MOST),
    "train.accumulate": Bounds(1, BATCH),
    "train.label_smoothing": Bounds(0, 0.999),
    "train.until_error": Bounds(0, 100, below=True),
    "train.ema": Bounds(0, 0.999999),
    "train.steps_per_dispatch": Bounds(0, 1e6),
    "train.log_every_epochs": Bounds(1e-9, EPOCHS),
    "train.validate_every_epochs": Bounds(1e-9, EPOCHS),
    "test.Q": Bounds(0, SIDE),
    "test.batch_size": Bounds(1, BATCH),
    "test.curve_epochs": Bounds(0, EPOCHS),
    "checkpoint.every_seconds": Bounds(0, 1e9),
    "checkpoint.every_steps": Bounds(0, MOST),
    "seed": Bounds(0, MOST),
}


# What to write instead, where the number that was given shows what was meant.
HINTS = {
    "schedule.milestones": "they are parts of the training: epoch 30 of 90 is 30/90",
    "schedule.factor": "it is what the rate is multiplied by; schedule.kind=constant keeps a rate",
    "schedule.warmup_part": "it is a part of the training: 5 epochs of 90 are 5/90",
    "optimizer.rates": "optimizer.freeze keeps parameters as they are",
    "data.area": "it is a share of the image, such as 0.08,1",
}


# Where and how a run executes, not what it computes: no part of its identity.
# `data.path` is no part of it either: what the file holds is.
EXECUTION = (
    "checkpoint",
    "train.steps_per_dispatch",
    "train.scan",
    "train.remat",
    "train.deterministic",
    "train.log_every_epochs",
    "test.curve_epochs",
    "test.curve_seen",
    "data.path",
    "data.bad",
    "data.max_bad",
    "data.threads",
)


# Keys that are newer than the identity's format, and the values at which runs are what they were
# before: with these they are no part of the identity.
ADDED: dict[str, Any] = {
    "data.frame": 0,
    "data.distort": 0.0,
    "optimizer.kind": "sgd",
    "optimizer.mu": 0.02,
    "optimizer.patterns": 500,
    "schedule.factors": (),
    "train.until_error": 0.0,
    "data.exif": False,
    "optimizer.rates": (),
    "schedule.warmup_part": 0.0,
    "model.precision": "default",
    "seeding.normalise": "inherit",
    "model.head": "average",
    "model.head_dropout": 0.0,
    "data.split": 0.0,
}


# Of encoded images only: of small sets, they are no part of the identity.
STREAMED_ONLY = ("view", "area", "aspect", "colour", "mean", "statistics_images", "exif")
FITTED = ("pca_fitted", "pca_paper")  # colours whose constants the training images give
# What the parts of a tuple are.
PARTS: dict[str, type] = {
    "data.S": int,
    "data.area": float,
    "data.aspect": float,
    "data.mean": float,
    "optimizer.decay": str,
    "optimizer.freeze": str,
    "optimizer.rates": tuple,
    "schedule.milestones": float,
    "schedule.factors": float,
    "seeding.mapping": tuple,
}


# Tuples that always have so many parts; a single number stands for all of them.
LENGTHS = {"data.S": 2, "data.area": 2, "data.aspect": 2, "data.mean": 3}
# Of tuples of pairs: what the second part of a pair is, and what the pair is called.
PAIRS: dict[str, tuple[Any, str]] = {
    "seeding.mapping": (str, "patterns (old, new)"),
    "optimizer.rates": (int | float, "a pattern and a number (names, factor)"),
}


def base() -> ml_collections.ConfigDict:
    """Every key that a config has, with its default. Sizes are pixels, errors percent."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            # `arch` and the options of its builder (see `cnn_arch.options`); fill with `model()`.
            # precision: at which float32 is multiplied, in training and in tests. `default` is
            # the device's own: float32 on a CPU, TF32 on an NVIDIA GPU, one pass in bfloat16 on a
            # TPU. `high` is TF32 and three passes; `highest` is float32 (on a TPU, six passes).
            "model": {"arch": "", "precision": "default"},
            "data": {
                "name": "digits",
                "path": "",  # file or folder of a data set that is read from there
                # Of a folder of classes without train and val: the share of each class that is the
                # test. File names alone decide which images these are, not `seed`. 0 is off.
                "split": 0.0,
                "image_size": 32,  # the network's input: the train and test crop
                "S": (0, 0),  # short side in training, drawn from S[0]..S[1]; 0 is the crop's size
                "pad": 0,  # shift: pad by this much, then crop at random
                "mirror": False,
                # Of small sets: so many black pixels are put around each image, which is not
                # scaled; 2 makes MNIST's 28 pixels the 32 that LeNet-5 sees.
                "frame": 0,
                # Of small sets: this share of the training images is shown distorted by a random
                # planar affine map (translation, scale, squeeze, shear), drawn anew in each pass.
                "distort": 0.0,
                # Of encoded images: a crop at scale S, one of AlexNet's square, or GoogLeNet's.
                "view": "scale",
                "area": (0.08, 1.0),  # view "area": share of the image, drawn from area[0]..area[1]
                "aspect": (3 / 4, 4 / 3),  # and width / height
                "colour": "none",  # how the colours of training views are changed
                # Mean that is taken off; gcn_zca whitens; lenet: black is -0.1 and white 1.175.
                "normalise": "per_channel",
                "mean": (123.68, 116.779, 103.939),  # normalise "fixed": VGG's of ILSVRC, R, G, B
                "divide_by_std": False,  # one deviation over all pixels
                "statistics_images": 10000,  # encoded images that means are taken from; 0: all
                # Whether images are turned as their EXIF orientation says. ImageNet's published
                # networks saw them as they are stored.
                "exif": False,
                "holdout": 0.1,  # part of the training set kept for `best` and the plateaus
                "bad": "skip",  # files that are no images: skip or raise
                "max_bad": 0.001,  # share of the images that may be skipped
                "threads": 0,  # that decode images; 0: one a core
            },
            "optimizer": {
                # sgd; or sdlm, stochastic diagonal Levenberg-Marquardt, LeNet-5's: each weight's
                # rate is divided by `mu` plus its second derivative, over so many training images.
                "kind": "sgd",
                "mu": 0.02,
                "patterns": 500,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,  # L2, added to the gradient
                "decay": ("*kernel",),  # name patterns of the parameters that it touches
                "lr_in_velocity": False,  # v <- mu v - lr g, as AlexNet's paper has it
                "clip_norm": 0.0,  # global norm; 0 is off
                # Name patterns of the parameters that stay as they are, such as ("stage*",): their
                # gradients are not computed. A batch normalisation whose scale and bias are both
                # frozen keeps its running statistics, and is normalised with them in training too.
                "freeze": (),
                # ((name pattern, factor), ...): what the rate is multiplied by for parameters that
                # a pattern matches; of several, all.
                "rates": (),
            },
            "schedule": {
                "kind": "steps",
                "lr": 0.1,
                "milestones": (0.5, 0.75),  # steps: where lr drops, as parts of the training
                "factor": 0.1,
                # Steps: what lr is multiplied by from each milestone on, instead of by powers of
                # `factor`; as many numbers as milestones.
                "factors": (),
                "drops": 3,  # plateau: lr drops at most this often
                "patience": 5,  # plateau: validations without a better error
                "warmup": "none",
                "warmup_lr": 0.01,
                "warmup_steps": 0,  # where it ends; until_error: at latest (0: no end)
                # Where it ends as a part of the training; if not 0, counts instead of warmup_steps.
                "warmup_part": 0.0,
                "warmup_error": 80.0,  # until_error: training error below which it ends
            },
            "train": {
                "batch_size": 128,
                "epochs": 10.0,
                "steps": 0,  # if not 0, counts instead of epochs
                # If not 0, training ends where a line of the log has a lower training error, in
                # percent: the mean over the `log_every_epochs` before it, in training.
                "until_error": 0.0,
                "accumulate": 1,  # micro-batches a step
                "label_smoothing": 0.0,
                # Decay of the averages of parameters and of batch normalisation's running
                # statistics, which are tested; 0 is off. After t steps the decay is at most
                # (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage: until `ema` is
                # reached, the average is of about the last tenth of the steps. Dividing by
                # 1 - ema^t, as Adam does, would average all steps of a short training, its bad
                # beginning too (measured: 4.4% against 2.8% on digits, 0.9999 over 219 steps).
                "ema": 0.0,
                "steps_per_dispatch": 0,  # 0: 1 on CPU, where a scan is slow, else 32
                "scan": "auto",  # stages of equal blocks as a loop: compiled faster, slower steps
                "remat": False,  # stages' inner maps computed again for the gradients: less memory
                "deterministic": False,  # on GPU: the same bits each time, by slower kernels
                "log_every_epochs": 1.0,
                "validate_every_epochs": 1.0,
            },
            "test": {
                "Q": 0,  # short side of the test image; 0 is the crop's size
                "batch_size": 128,
                "curve_epochs": 0.0,  # if not 0: epochs between test errors that are only logged
                "curve_seen": False,  # whether the training images are tested too, each time
            },
            "checkpoint": {"every_seconds": 60.0, "every_steps": 0},
            "seeding": {
                "run": "",  # set by `seed_from`: the run whose network seeds this one
                "weights": "",  # and, where that was imported, what its weights are
                "kind": "copy",  # or "grow": new layers start as the identity
                # What is copied, ((old pattern, new pattern), ...); none: all of the same
                # architecture, and of a shallower VGG what its paper copies.
                "mapping": (),
                # "copy": the last layer too, and the classes must be the same in the same order;
                # "in_order": whatever they are called; "fresh": not the last layer.
                "classifier": "copy",
                # "inherit": mean, deviation, whitening and resizing of images are the seeding
                # run's, whose network learnt with them, and data.normalise, data.mean and
                # data.divide_by_std do not count. "fit": as these say, from this run's own images.
                "normalise": "inherit",
            },
        }
    ).lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.batch_size": 128, ...}` of a config or a nested dict."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
