"""Plain and residual nets on ImageNet: every net of the paper's tables (ResNet paper, section 4.1).

    cnn-depth table resnet-2 --profile demo
    cnn-depth train resnet:50,data=folder --set data.path=/data/imagenet
    cnn-depth sweep resnet:data=tfds:imagenet2012 --parallel 8

The argument is the depth (or an architecture's name), the profile, the side of the network's input
and where the images are: `resnet:34,profile=folder,crop=96`; data=folder, ilsvrc, shards or
tfds:NAME. The paper's recipe: SGD with momentum 0.9, weight decay 1e-4, batches of 256 normalised
in groups of 32 (it had eight GPUs), rate 0.1 divided by ten when the error stalls, 600k iterations,
He weights, no dropout; the short side drawn from [256, 480], a random 224 crop of the image or its
mirror, the per-pixel mean taken off, AlexNet's colour shifts. Rows are named by what Table 3 tells
apart: `resnet-34 A` has identity shortcuts only.

What the paper leaves open: the plateaus are judged on 1% of the training images, which are held
out; colours shift by the public constants; the mean is that of 10,000 central squares. The authors'
published nets have batch normalisation's means and variances taken anew after training; here they
are running averages (`cnn-depth evaluate --batch-statistics` takes them anew).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles

SMALL = {
    "model.bn_group_size": 0,
    "data.divide_by_std": True,
    "data.holdout": 0.1,
    "schedule.lr": 0.025,  # 0.1 for batches of 128, by the linear rule (Goyal et al. 2017)
    "train.batch_size": 32,
    "train.steps": 0,
}
CHANGES = {
    "demo": {
        **SMALL,
        "model.width": 0.125,
        "schedule.patience": 2,
        "train.epochs": 12.0,
        "train.validate_every_epochs": 2.0,
    },
    "cifar": {
        **SMALL,
        "model.width": 0.25,
        "schedule.lr": 0.1,
        "train.batch_size": 128,
        "train.epochs": 60.0,
    },
    "folder": {**SMALL, "model.width": 0.25, "train.epochs": 60.0},
}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments = configs.arguments(arg, depth="50", profile="paper", crop="", data="folder")
    profile = profiles.chosen(arguments, demo=64, cifar=64, folder=64)
    depth = arguments["depth"]
    config = configs.base()
    config.model = configs.model(
        f"resnet:{depth}" if depth.isdecimal() else depth, bn_group_size=32
    )
    config.data.update(name="folder", S=(profile.side(256), profile.side(480)), mirror=True)
    config.data.update(colour="pca_public", normalise="per_pixel", holdout=0.01)
    config.schedule.update(kind="plateau", lr=0.1)
    config.train.update(batch_size=256, steps=600_000)
    config.test.Q = profile.side(256)
    config.checkpoint.every_seconds = 600.0
    return profile.adapt(config, **CHANGES)


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    for depth in (18, 34):
        yield f"plain-{depth}", {"model.arch": f"plain:{depth}"}
    for depth, shortcuts in ((18, "A"), (34, "ABC")):
        for shortcut in shortcuts:
            options = {"model.arch": f"resnet:{depth}", "model.shortcut": shortcut}
            yield f"resnet-{depth} {shortcut}", options
    for depth in (50, 101, 152):
        yield f"resnet-{depth}", {"model.arch": f"resnet:{depth}"}
