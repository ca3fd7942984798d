"""Plain and residual nets on CIFAR-10: the nets of Table 6 and Figure 6 (ResNet, section 4.2).

    cnn-depth table resnet-6 --profile cifar
    cnn-depth train cifar_resnet --row resnet-20 --set data.name=npz --set data.path=cifar10.npz
    cnn-depth table resnet-6 --profile demo

The argument is the profile; `paper` and `cifar` are the same: SGD with momentum 0.9, weight decay
1e-4, batches of 128 normalised in groups of 64 (it had two GPUs), rate 0.1 divided by ten at 32k
and 48k of 64k iterations, He weights; padded by 4 and cropped at random, mirrors, the per-pixel
mean taken off; shortcuts A. Nets of 110 layers start at rate 0.01 until the training error is below
80%. Trained on all 50,000 images: the paper chose the schedule on 45,000 and does not say which of
them its results are of; `--set data.holdout=0.1` is the other reading. The test error is logged for
the curves, and decides nothing.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles
from input_pipeline.crops import CIFAR_CROP

DEPTHS = (20, 32, 44, 56, 110, 1202)
SMALL: dict[str, Any] = {
    "model.bn_group_size": 0,
    "data.divide_by_std": True,
    "data.holdout": 0.1,
    "schedule.lr": 0.025,
    "schedule.warmup_lr": 0.0025,
    "train.batch_size": 32,
    "train.steps": 0,
}
# The demo of `residual_depth`, so that they share their runs.
DEMO = {"train.epochs": 8.0, "train.validate_every_epochs": 2.0, "test.curve_epochs": 0.0}


def get_config(arg: str | None = None) -> ConfigDict:
    profile = profiles.of(arg, CIFAR_CROP, demo=16)
    config = configs.base()
    config.model = configs.model("cifar_resnet:20", bn_group_size=64)
    config.data.update(name="cifar10", pad=profile.side(4), mirror=True, normalise="per_pixel")
    config.data.update(holdout=0.0)
    config.schedule.update(kind="steps", lr=0.1, milestones=(0.5, 0.75))
    config.train.update(batch_size=128, steps=64_000)
    config.test.curve_epochs = 2.0
    # Encoded images are not padded: a crop of a larger image shifts as far.
    larger = profile.crop + 2 * profile.side(4)
    shifts = {"data.pad": 0, "data.S": (larger, larger), "test.Q": larger}
    folder = {**SMALL, **shifts, "train.epochs": 60.0}
    return profile.adapt(config, demo={**SMALL, **DEMO}, folder=folder)


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    warmup = {"schedule.warmup": "until_error", "schedule.warmup_error": 80.0}
    for kind in ("plain", "resnet"):
        for depth in DEPTHS:
            if (kind, depth) != ("plain", 1202):
                more = warmup if depth == 110 else {}
                yield f"{kind}-{depth}", {"model.arch": f"cifar_{kind}:{depth}", **more}
