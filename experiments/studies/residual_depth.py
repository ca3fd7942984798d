"""Plain and residual nets against depth (ResNet paper, section 4.2), on handwritten digits.

    cnn-depth sweep residual_depth

scikit-learn's 1,797 digits, scaled to 16x16, stand in for CIFAR-10; the networks are the paper's,
at full width, and so is the recipe but for its length and batch: SGD with momentum 0.9, weight
decay 1e-4, the rate divided by ten at one half and three quarters. The paper's 0.1 for batches
of 128 is 0.025 for batches of 32 (Goyal et al. 2017). Expect the deepest plain net to be worse
than shallower ones, and the residual nets not.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs

DEPTHS = (8, 14, 20, 44)


def get_config(arg: str | None = None) -> ConfigDict:
    configs.arguments(arg)
    config = configs.base()
    config.model = configs.model("cifar_resnet:20")
    config.data.update(name="digits", image_size=16, pad=2, normalise="per_pixel")
    config.data.divide_by_std = True
    config.schedule.update(kind="steps", lr=0.025, milestones=(0.5, 0.75))
    config.train.update(batch_size=32, epochs=8.0, validate_every_epochs=2.0)
    return config


def sweep() -> Iterator[tuple[str, dict[str, Any]]]:
    for depth in DEPTHS:
        for kind in ("plain", "resnet"):
            yield f"{kind}-{depth}", {"model.arch": f"cifar_{kind}:{depth}"}
