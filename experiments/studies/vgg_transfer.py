"""VGG's D and E on some classes of a set, whose features are to tell the others apart (section B).

    cnn-depth table vgg-11 --profile demo
    cnn-depth table vgg-11 --profile folder --set data.path=photographs

The nets of Table 11 and those that seed them, as in `vgg`, whose argument and recipes it has. In
the profiles demo and cifar they learn some of the classes (`data.classes`); of a folder, and of
other sets, `table` has them learn the first four fifths by name. In the profile paper they are
those of `vgg`, which learn all of ILSVRC-2012.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.config import profiles
from experiments.studies import vgg

# Profile -> the classes that are learnt; the others are digits, animals and vehicles too.
CLASSES = {
    "demo": tuple("01234567"),
    "cifar": ("airplane", "automobile", "bird", "cat", "deer", "dog"),
}
NETS = ("A 256", *(f"{net} {S}" for net in "DE" for S in ("256", "384", "[256;512]")))


def get_config(arg: str | None = None) -> ConfigDict:
    config = vgg.get_config(arg)
    config.data.classes = CLASSES.get(profiles.of(arg).name, ())
    return config


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, overrides in vgg.sweep(arg):
        if name in NETS:
            yield name, overrides
