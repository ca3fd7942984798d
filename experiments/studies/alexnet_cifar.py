"""AlexNet's four-layer nets on CIFAR-10: ReLU beside tanh, and normalisation (sections 3.1, 3.3).

    cnn-depth table alexnet-cifar --profile cifar
    cnn-depth table alexnet-relu --profile demo

The argument is the profile; `paper` and `cifar` are the same. `LRN` and `no LRN` are section 3.3's
nets; `relu` and `tanh` are Figure 1's, without regularisation of any kind, each at several rates.

The paper leaves the nets to the files published with cuda-convnet, layers-conv-local-11pct and
-13pct. This study also trains them as layer-params-conv-local-11pct says. Batches have 128 images,
random crops of 24 of the 32 pixels and their mirrors, less the per-pixel mean. Momentum is 0.9,
with the rate inside the velocity. The rate is 0.001, twice that for biases, and divided by ten for
the last twenty and again for the last ten epochs. Weight decay, 0.004, is of the locally connected
and the fully connected layers. The first weights of conv1, which sees pixels of 0 to 255, are a
hundred times smaller. The file's 300 epochs on 40,000 images and 150 on all are as many steps as
our 390 on all. Tests are on ten crops.

Figure 1 leaves its nets open. They are assumed to be these, without normalisation, with one rate
for all values, and to start from N(0, 0.01^2) in conv1 too. Their rates were "chosen independently
to make training as fast as possible", and are not printed: here each net is trained at each of
several rates until its training error over a tenth of an epoch is below 25%, for 60 epochs at most,
and the one that is there first counts. What another rate has outrun can't be the first any more:
`table` interrupts its training, and does not take it up again. The nets see whole images, scaled to
the crop: no crops either.

Inputs are as in the rest of the paper: less their mean, and not divided. `divided` is our own
addition: the same nets on inputs that are divided by their deviation, where tanh is much faster.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles
from experiments.papers.alexnet import RATES, RATES_DIVIDED, UNTIL

CROP = 24  # of cuda-convnet's files
EPOCHS = 300 * 40_000 / 50_000 + 150 + 10 + 10
SMALL = {
    "model.init": "he",
    "model.first_scale": 1.0,
    "data.divide_by_std": True,
    "data.holdout": 0.1,
    "schedule.lr": 0.01,
    "train.batch_size": 32,
}
DEMO = {"model.width": 0.25, "train.epochs": 16.0, "train.validate_every_epochs": 2.0}
CHANGES = {"demo": {**SMALL, **DEMO}, "folder": {**SMALL, "train.epochs": 60.0}}
_profile = partial(profiles.of, paper_crop=CROP, demo=12)


def get_config(arg: str | None = None) -> ConfigDict:
    profile = _profile(arg)
    config = configs.base()
    config.model = configs.model("alexnet:cifar", first_scale=0.01)
    config.data.update(name="cifar10", S=(profile.side(32),) * 2, mirror=True)
    config.data.update(normalise="per_pixel", holdout=0.0)
    config.optimizer.update(weight_decay=0.004, decay=("local*kernel", "fc5/kernel"))
    config.optimizer.update(rates=(("*/bias", 2.0),), lr_in_velocity=True)
    milestones = ((EPOCHS - 20) / EPOCHS, (EPOCHS - 10) / EPOCHS)
    config.schedule.update(kind="steps", lr=0.001, milestones=milestones)
    # Figure 1 asks for the epochs to an error: lines ten times an epoch.
    config.train.update(batch_size=128, epochs=EPOCHS, log_every_epochs=0.1)
    config.test.Q = profile.side(32)
    return profile.adapt(config, **CHANGES)


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "LRN", {}
    yield "no LRN", {"model.lrn": "none"}
    bare = {"model.lrn": "none", "data.mirror": False, "data.S": (0, 0), "test.Q": 0}
    bare |= {"optimizer.weight_decay": 0.0, "schedule.kind": "constant"}
    bare |= {"optimizer.rates": (), "optimizer.lr_in_velocity": False}
    bare |= {"train.until_error": UNTIL, "model.init": "gaussian", "model.first_scale": 1.0}
    if _profile(arg).name not in CHANGES:
        bare |= {"train.epochs": 60.0}
    for how, rates in (("", RATES), (" divided", RATES_DIVIDED)):
        for activation in ("relu", "tanh"):
            for rate in rates:
                changes = {"model.activation": activation, "schedule.lr": rate}
                changes["data.divide_by_std"] = bool(how)
                yield f"{activation}{how} {rate}", {**bare, **changes}
