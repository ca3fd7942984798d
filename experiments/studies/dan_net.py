"""Dan-net on CIFAR-10: nets of 100, 200 and 300 maps, shifted images or not (Ciresan et al. 2011).

    cnn-depth table dan_net-cifar --profile cifar
    cnn-depth sweep dan_net:demo

The argument is the profile; `paper` is 500 epochs of 50,000 images, one by one: 25 million steps.
The paper's recipe: on-line back-propagation without momentum or decay, rate 0.001 times 0.993 an
epoch, down to 3e-5; images shifted by up to 5% of their side, or not; initial weights uniform
between +-0.05. Rows are named by their maps and their shifts.

What is open, as the paper itself was not at hand: inputs lie about 0 with deviation 1; the rate
falls every ten epochs, by 0.993^10; a shift of 5%, 1.6 pixels, is one of up to 2.

Other profiles take batches and momentum, and are shorter. Narrow nets need larger initial weights:
Glorot's.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles
from input_pipeline.crops import CIFAR_CROP

EPOCHS = 500
STEP = 10  # epochs between two falls of the rate
ROWS = ((100, 0), (100, 5), (200, 5), (300, 5))  # maps, largest shift in percent
BATCHES = {"optimizer.momentum": 0.9, "schedule.lr": 0.01, "train.batch_size": 32}
CHANGES: dict[str, dict[str, Any]] = {
    "demo": {
        **BATCHES,
        "model.width": 0.25,
        "model.init": "glorot",
        "data.holdout": 0.1,
        "train.epochs": 16.0,
        "train.validate_every_epochs": 2.0,
    },
    "cifar": {**BATCHES, "train.epochs": 60.0},
    "folder": {**BATCHES, "data.holdout": 0.1, "train.epochs": 60.0},
}
_profile = partial(profiles.of, paper_crop=CIFAR_CROP)


def get_config(arg: str | None = None) -> ConfigDict:
    profile = _profile(arg)
    config = configs.base()
    config.model = configs.model("dan_net:100")
    config.data.update(name="cifar10", normalise="per_channel", divide_by_std=True, holdout=0.0)
    config.optimizer.update(momentum=0.0, weight_decay=0.0)
    config.schedule.update(kind="steps", lr=0.001, factor=0.993**STEP)
    config.schedule.milestones = tuple(epoch / EPOCHS for epoch in range(STEP, EPOCHS, STEP))
    config.train.update(batch_size=1, epochs=float(EPOCHS))
    return profile.adapt(config, **CHANGES)


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    profile = _profile(arg)
    for maps, percent in ROWS:
        by = round(profile.crop * percent / 100)
        # Encoded images are not padded: a crop of a larger image shifts as far.
        side = (profile.crop + 2 * by) if percent else 0
        larger = {"data.S": (side, side), "test.Q": side}
        shifts = larger if profile.name == "folder" else {"data.pad": by}
        yield f"{maps} maps, {percent}%", {"model.arch": f"dan_net:{maps}", **shifts}
