"""LeNet-5 on handwritten digits (LeCun et al. 1998, section III).

    cnn-depth table lenet --profile cifar
    cnn-depth train lenet:demo

The argument is the profile; `paper` and `cifar` are MNIST, 60,000 images and 20 passes over them.
The paper's recipe: pattern by pattern, no momentum and no decay, the loss of equation 9, weights
uniform between +-2.4 / fan-in, inputs of mean about 0 and variance about 1, the rate falling from
pass 3, 6, 9 and 13 on, to a fiftieth.

The paper's second-order method, stochastic diagonal Levenberg-Marquardt, is not there: it gives
each weight its own rate, from 7e-5 to 0.016 in the first pass, and here all have 0.001. It falls
by one factor, 0.4 (printed: to 0.4, 0.2, 0.1 and 0.02 of the first). Digits are scaled to 32
pixels, not framed, and so are a seventh larger than the paper's.

`demo` is the same on other digits; `cifar` and `folder` take batches and momentum. LeNet-5's output
knows the drawings of ten digits, and so a folder of other images is shown to lenet5:modern.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments import profiles

PASSES = 20
FALLS = (2, 5, 8, 12)  # passes after which the rate is lower
BATCHES = {"optimizer.momentum": 0.9, "schedule.lr": 0.01, "train.batch_size": 32}
CHANGES: dict[str, dict[str, Any]] = {
    "demo": {"data.holdout": 0.1, "train.validate_every_epochs": 2.0},
    "cifar": {**BATCHES, "data.name": "mnist"},
    "folder": {**BATCHES, "model.arch": "lenet5:modern", "data.holdout": 0.1},
}


def get_config(arg: str | None = None) -> ConfigDict:
    given = configs.arguments(arg, profile="paper", crop="", data="folder")
    profile = profiles.of(given, 32)
    config = configs.base()
    config.model = configs.model("lenet5")
    config.data.update(name="mnist", normalise="per_channel", divide_by_std=True, holdout=0.0)
    config.optimizer.update(momentum=0.0, weight_decay=0.0)
    milestones = tuple(passes / PASSES for passes in FALLS)
    config.schedule.update(kind="steps", lr=0.001, factor=0.4, milestones=milestones)
    config.train.update(batch_size=1, epochs=float(PASSES))
    return profile.adapt(config, **CHANGES)


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "LeNet-5", {}
