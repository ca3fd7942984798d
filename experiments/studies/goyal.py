"""ResNet-50 in large batches: rates, warm-ups and initial scales (Goyal et al. 2017, tables 1, 2).

    cnn-depth table goyal-1 --profile demo
    cnn-depth train goyal:data=tfds:imagenet2012 --row 'kn=8k lr=0.10*32' --devices 8

The argument is the profile, `paper` by default; crop= and data= are as in `vgg`. The paper's
recipe: ResNet-50 with its strides in the 3x3 convolutions, 90 epochs, rate 0.1 for a batch of 256,
times the batch's size over 256, divided by ten at epochs 30, 60 and 80, Nesterov's momentum 0.9,
weight decay 1e-4 but for batch normalisation, which is of 32 images and starts with scale 0 at each
block's end; crops of 8% to 100% of the image or their mirrors, the mean colour taken off and
divided by the deviation; tested on the central crop of short side 256. Batches of 8k (8,192) warm
up for 5 epochs from the small batch's rate to theirs, step by step, or stay there, or do not warm
up. Rows are named as in Table 2, which has all but two of those of Table 1.

What differs: one deviation for all colours; the fully connected layer starts from He's weights, not
from N(0, 0.01^2). Results are of the last epoch; the paper's are the median of the last five.

Small profiles shrink both batches alike: 8k stays 32 times the small batch, which is normalised as
a whole. The paper's 0.1 is a rate there that this batch learns at.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles

EPOCHS = 90
LARGER = 32  # 8k / 256
CHANGES = {
    "demo": {
        "model.width": 0.0625,
        "model.bn_group_size": 8,
        "schedule.lr": 0.0125,
        "train.batch_size": 8,
        "train.epochs": 18.0,
    },
    "cifar": {
        "model.width": 0.25,
        "model.bn_group_size": 32,
        "schedule.lr": 0.0125,
        "train.batch_size": 32,
        "train.epochs": 30.0,
    },
    "folder": {
        "model.width": 0.25,
        "model.bn_group_size": 8,
        "schedule.lr": 0.0125,
        "train.batch_size": 8,
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    profile = profiles.of(arg, demo=32, cifar=32, folder=64)
    config = configs.base()
    options = {"stride_in": "3x3", "zero_gamma": True, "bn_group_size": 32}
    config.model = configs.model("resnet:50", **options)
    config.data.update(name="folder", view="area", mirror=True, normalise="per_channel")
    config.data.update(S=(profile.side(256),) * 2, divide_by_std=True, holdout=0.0)
    config.optimizer.update(nesterov=True, decay=("*kernel", "fc/bias"))
    milestones = tuple(epoch / EPOCHS for epoch in (30, 60, 80))
    config.schedule.update(kind="steps", lr=0.1, milestones=milestones)
    config.train.update(batch_size=256, epochs=float(EPOCHS))
    config.test.Q = profile.side(256)
    config.checkpoint.every_seconds = 600.0
    return profile.adapt(config, **CHANGES)


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    config = get_config(arg)
    base, batch = config.schedule.lr, config.train.batch_size

    def large(lr: float, times: float = LARGER, warmup: str = "linear") -> dict[str, Any]:
        """8k at a multiple of what would be the small batch's rate."""
        warm_up = {"schedule.warmup_lr": lr, "schedule.warmup_part": 5 / EPOCHS}
        return {
            "train.batch_size": LARGER * batch,
            "schedule.lr": times * lr,
            "schedule.warmup": warmup,
            **({} if warmup == "none" else warm_up),
        }

    rates = {"0.05": base / 2, "0.10": base, "0.20": 2 * base}
    for rate, lr in rates.items():
        yield f"kn=256 lr={rate}", {"schedule.lr": lr}
    for rate, lr in rates.items():
        yield f"kn=8k lr={rate}*32", large(lr)
    yield "kn=8k lr=0.10", large(base, 1)
    yield "kn=8k lr=0.10*sqrt(32)", large(base, LARGER**0.5)
    yield "kn=8k no warm-up", large(base, warmup="none")
    yield "kn=8k constant warm-up", large(base, warmup="constant")
    for size, options in (("256", {}), ("8k", large(base))):
        yield f"kn={size} gamma=1.0", {"model.zero_gamma": False, **options}
    for size, options in (("256", {}), ("8k", large(base))):
        yield f"ResNet-101 kn={size}", {"model.arch": "resnet:101", **options}
