"""Plain and residual nets on ImageNet (ResNet paper, section 4.1).

    cnn-depth train resnet:50,data=folder --set data.path=/data/imagenet
    cnn-depth sweep resnet:data=tfds:imagenet2012 --devices 8

The argument is the depth (or an architecture's name) and where the images are: data=folder, ilsvrc,
shards or tfds:NAME. SGD with momentum 0.9, weight decay 1e-4, batches of 256, rate 0.1 divided by
ten when the error stalls, 600k iterations, He weights, no dropout: all the paper's. So are the
views: the short side drawn from [256, 480], a random 224 crop of the image or its mirror, the
per-pixel mean taken off, AlexNet's colour shifts. What the paper leaves open: the plateaus are
judged on 1% of the training images, which are held out; colours shift by the public constants; the
mean is that of 10,000 central squares.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs

ROWS = ("plain:18", "resnet:18", "plain:34", "resnet:34", "resnet:50", "resnet:101", "resnet:152")


def get_config(arg: str | None = None) -> ConfigDict:
    given = configs.arguments(arg, depth="50", data="folder")
    depth = given["depth"]
    config = configs.base()
    config.model = configs.model(f"resnet:{depth}" if depth.isdecimal() else depth)
    config.data.update(name=given["data"], image_size=224, S=(256, 480), mirror=True)
    config.data.update(colour="pca_public", normalise="per_pixel", holdout=0.01)
    config.schedule.update(kind="plateau", lr=0.1)
    config.train.update(batch_size=256, steps=600_000)
    config.test.Q = 256
    config.checkpoint.every_seconds = 600.0
    return config


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    for arch in ROWS:
        yield arch.replace(":", "-"), {"model.arch": arch}
