"""GoogLeNet on ImageNet (Szegedy et al., CVPR 2015, sections 6 and 7).

    cnn-depth table googlenet-3 --profile demo
    cnn-depth train googlenet:data=ilsvrc --set data.path=/data/imagenet

The argument is the profile, `paper` by default; crop= and data= are as in `vgg`. The paper's
recipe: SGD with momentum 0.9, the rate 4% lower every 8 epochs, Polyak's averages of the weights
tested, two auxiliary classifiers that count 0.3 each, dropout of 40% (70% in those); crops of 8% to
100% of the image with sides 3:4 to 4:3, or their mirrors, Howard's photometric distortions, the
mean colour taken off.

What the paper leaves open is Caffe's quick_solver here: rate 0.01, batches of 32, weight decay 2e-4
and 2.4M iterations, 60 epochs. The average is exponential, over about 10,000 steps; weights are
He's. Its gradients came late, from many machines; here all are of the same weights. Its seven
models had the same initial weights by mistake, and one of them was wider; ours differ in their seed
alone, and so in their initial weights too.

Small profiles are narrow and average over fewer steps. Digits and CIFAR-10 are cropped at random
from short side 256, in ratio: their views are no areas, and their colours stay.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles

EPOCHS = 60  # 2.4M batches of 32 images of ILSVRC-2012
SMALL = {"data.divide_by_std": True, "train.steps": 0}
MIDDLE = {**SMALL, "model.width": 0.25, "train.ema": 0.999, "train.epochs": float(EPOCHS)}
CHANGES = {
    "demo": {
        **SMALL,
        "model.width": 0.125,
        "data.holdout": 0.1,
        "train.batch_size": 32,
        "train.ema": 0.98,
        "train.epochs": 16.0,
        "train.validate_every_epochs": 2.0,
    },
    "cifar": MIDDLE,
    "folder": MIDDLE,
}


def get_config(arg: str | None = None) -> ConfigDict:
    profile = profiles.of(arg, demo=32, cifar=32, folder=64)
    config = configs.base()
    config.model = configs.model("googlenet")
    config.data.update(name="folder", view="area", mirror=True, colour="photometric")
    config.data.update(S=(profile.side(256),) * 2, normalise="per_channel", holdout=0.0)
    config.optimizer.weight_decay = 2e-4
    config.schedule.update(kind="steps", lr=0.01, factor=0.96)
    config.schedule.milestones = tuple(epoch / EPOCHS for epoch in range(8, EPOCHS, 8))
    config.train.update(batch_size=32, steps=2_400_000, ema=0.9999)
    config.test.Q = profile.side(256)
    config.checkpoint.every_seconds = 600.0
    return profile.adapt(config, **CHANGES)


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "googlenet", {}
