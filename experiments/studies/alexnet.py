"""AlexNet on ImageNet: the net, and those that its paper compares it with (sections 3 to 7).

    cnn-depth table alexnet-2 --profile demo
    cnn-depth sweep alexnet:demo
    cnn-depth train alexnet:data=ilsvrc --row two_gpu --set data.path=/data/imagenet

The argument is the profile, `paper` by default; crop= and data= are as in `vgg`. The paper's
recipe: SGD with momentum 0.9 in batches of 128, the rate inside the velocity, weight decay 5e-4,
dropout, rate 0.01 divided by ten when the error stalls, thrice, 90 epochs; the central square of
the image at short side 256, a random 224 crop of it or its mirror, colour shifts, the per-pixel
mean taken off; weights from N(0, 0.01^2) and biases of 1 where the paper has them. Each other row
changes the net or the data in the one thing that it is named after.

What the paper leaves open: the plateaus are judged on 1% of the training images, which are held
out; colours shift by the public constants (the formula to the letter is data.colour=pca_paper); the
mean is that of 10,000 squares. Which layers are "middle" ones (section 7) it does not say: conv3
and conv4 are those that no pooling follows.

Small profiles start from He's weights with inputs divided by their deviation, and with biases of
0.1: the paper's need its width, its unscaled inputs and far more steps. Digits and CIFAR-10 have no
colour shifts, so that `without colours` is `two_gpu` there.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles

SMALL = {
    "model.init": "he",
    "model.positive_bias": 0.1,
    "model.inverted_dropout": True,
    "data.divide_by_std": True,
    "data.holdout": 0.1,
    "train.batch_size": 32,
}
CHANGES = {
    "demo": {
        **SMALL,
        "model.width": 0.125,
        "schedule.patience": 2,
        "train.epochs": 16.0,
        "train.validate_every_epochs": 2.0,
    },
    "cifar": {**SMALL, "model.width": 0.25, "train.batch_size": 128, "train.epochs": 60.0},
    "folder": {**SMALL, "model.width": 0.25, "train.epochs": 60.0},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "one_gpu": {"model.arch": "alexnet:one_gpu"},
    "without LRN": {"model.lrn": "none"},
    "without overlap": {"model.overlapping": False},
    "without colours": {"data.colour": "none"},
    "without conv3": {"model.without": "conv3"},
    "without conv4": {"model.without": "conv4"},
}


def get_config(arg: str | None = None) -> ConfigDict:
    profile = profiles.of(arg, demo=64, cifar=64, folder=96)
    config = configs.base()
    config.model = configs.model("alexnet:two_gpu")
    config.data.update(name="folder", view="square", mirror=True, colour="pca_public")
    config.data.update(S=(profile.side(256),) * 2, normalise="per_pixel", holdout=0.01)
    config.optimizer.update(weight_decay=5e-4, lr_in_velocity=True)
    config.schedule.update(kind="plateau", lr=0.01, drops=3)
    config.train.update(batch_size=128, epochs=90.0)
    config.test.Q = profile.side(256)
    config.checkpoint.every_seconds = 600.0
    return profile.adapt(config, **CHANGES)


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "two_gpu", {}
    yield from WITHOUT.items()
