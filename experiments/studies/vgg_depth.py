"""VGG against depth, from scratch and seeded from configuration A (VGG paper, section 3.1).

    cnn-depth sweep vgg_depth
    cnn-depth sweep vgg_depth --seeds 5

scikit-learn's 1,797 digits, scaled to 32x32, stand in for ImageNet, and the networks have an
eighth of the paper's width. SGD with momentum 0.9, weight decay 5e-4 and dropout 0.5, the rate
divided by ten when the validation error stalls, and the rate itself, 0.01, are the paper's. Initial
weights are He's and inputs are divided by their deviation: the paper's Gaussian weights need far
more steps than a demo has. "seeded" nets start with A's conv1_1, conv2_1, conv3_1, conv3_2 and
fully connected layers, the rest fresh, at the full rate. At half the rate
(`--set schedule.lr=0.005`) E trains from scratch too: seeding buys a wider choice of rates.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs


def get_config(arg: str | None = None) -> ConfigDict:
    configs.arguments(arg)
    config = configs.base()
    config.model = configs.model("vgg:A", width=0.125, init="he")
    config.data.update(name="digits", image_size=32, pad=2, normalise="per_channel")
    config.data.divide_by_std = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.update(kind="plateau", lr=0.01, patience=2)
    config.train.update(batch_size=32, epochs=16.0, validate_every_epochs=2.0)
    return config


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "A", {"model.arch": "vgg:A"}
    for variant in ("B", "D", "E"):
        yield variant, {"model.arch": f"vgg:{variant}"}
        yield f"{variant} seeded", {"model.arch": f"vgg:{variant}", "seed_from": "A"}
