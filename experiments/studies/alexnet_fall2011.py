"""AlexNet with a sixth convolution, which learns more classes first (section 7 of its paper).

    cnn-depth table alexnet-2 --profile demo --rows '*CNN*'
    cnn-depth table alexnet-2 --profile paper --set data.path=ilsvrc2012 --sets other-sets
    cnn-depth sweep alexnet_fall2011:more=fall11_whole --set data.path=ilsvrc2012

The row `Fall 2011` learns the images of another set; `six_conv` starts from it, with a last layer
of its own, and learns those of `data.path`. Arguments and recipes are those of `alexnet`; `more=`
is the folder of the other set, a class a folder: ImageNet's release of Fall 2011. The profile cifar
has CIFAR-100 in its place, and demo twenty classes: digits and their mirror images.

What the paper leaves open: the width of the sixth convolution (that of the fifth), how long either
net is trained (here: the first for as many steps as without the other set, the second as long as
`two_gpu`), and the rate of the second (a tenth). A hundredth of the other set is its test.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import ConfigError, profiles
from experiments.studies import alexnet

# Profile -> the other set where it has a name, and how many times as many images it has.
OTHERS = {
    "demo": ("mirrored_digits", 2),
    "cifar": ("cifar100", 1),
    "folder": ("", 1),
    "paper": ("", 12),
}


def _arguments(arg: str | None) -> tuple[str, str]:
    """(the part of the argument that is `alexnet`'s, the folder of the other set)."""
    arguments = configs.arguments(arg, profile="paper", crop="", data="folder", more="")
    more = arguments.pop("more")
    return ",".join(f"{name}={value}" for name, value in arguments.items() if value), more


def get_config(arg: str | None = None) -> ConfigDict:
    own, more = _arguments(arg)
    if more and OTHERS[profiles.of(own).name][0]:
        raise ConfigError(f"more={more}: the profile {profiles.of(own).name} has a set of its own")
    return configs.override(alexnet.get_config(own), {"model.arch": "alexnet:six_conv"}, "its net")


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    own, more = _arguments(arg)
    config = alexnet.get_config(own)
    name, times = OTHERS[profiles.of(own).name]
    other_data = {"name": name or "folder", "path": more, "split": 0.0 if name else 0.01}
    yield (
        "Fall 2011",
        {
            "own_data": {**other_data, "classes": ()},
            "train.epochs": config.train.epochs / times,
        },
    )
    yield (
        "six_conv",
        {
            "seed_from": "Fall 2011",
            "seeding.classifier": "fresh",
            "schedule.lr": config.schedule.lr / 10,
        },
    )
