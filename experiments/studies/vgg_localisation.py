"""VGG's localisation: D with a last layer that says a box (VGG paper, appendix A).

    cnn-depth table vgg-8 --profile demo
    cnn-depth sweep vgg_localisation:demo
    cnn-depth table vgg-9 --profile folder --set data.path=photographs --set data.boxes=boxes.csv

The classifiers are those of `vgg`, whose arguments and recipes this has, and from which localisers
start: their last layer is fresh and has four numbers for the one box (SCR), or for each class's
(PCR), with the Euclidean loss, at an initial rate of 1e-3. Rows are named `D 384 PCR`; of those
with `fc6-7` only the first two fully connected layers are fine-tuned, and the convolutions stay as
they are.

What the paper leaves open: the unit of the boxes (here the crop's side), how much of a box a crop
has to show (half of it, as OverFeat has it), and how long is trained: as the nets with S=384 are,
with two drops of the rate.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.config import profiles
from experiments.studies import vgg

CLASSIFIERS = ("A 256", "D 256", "D 384")
LOCALISERS: Mapping[str, Mapping[str, Any]] = {
    "D 384 SCR fc6-7": {"train.boxes": "single", "optimizer.freeze": ("conv*",)},
    "D 384 PCR fc6-7": {"train.boxes": "per_class", "optimizer.freeze": ("conv*",)},
    "D 384 PCR": {"train.boxes": "per_class"},
    "D 256 PCR": {"train.boxes": "per_class"},
}
# Digits that lie anywhere among clutter are not learnt by D without batch normalisation (measured:
# its error stays that of chance).
RATE = 0.01  # of the demo's nets, its localisers too: 1e-3 leaves these far from the boxes
DEMO = {
    "data.name": "placed_digits",
    "model.batch_norm": True,
    "schedule.lr": RATE,
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = vgg.get_config(arg)
    return configs.override(config, DEMO, "demo") if profiles.of(arg).name == "demo" else config


def sweep(arg: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    classifiers = {name: row for name, row in vgg.sweep(arg) if name in CLASSIFIERS}
    yield from classifiers.items()
    own = {"data.boxes": "own"} if profiles.of(arg).name in ("demo", "cifar") else {}
    rate = RATE if profiles.of(arg).name == "demo" else 1e-3
    drops = vgg.get_config(arg).schedule.drops - 1
    for name, more in LOCALISERS.items():
        classifier = " ".join(name.split()[:2])
        row = {key: value for key, value in classifiers[classifier].items() if key != "seed_from"}
        yield (
            name,
            {
                **row,
                "seed_from": classifier,
                "seeding.classifier": "fresh",
                **own,
                "schedule.lr": rate,
                "schedule.drops": drops,
                **more,
            },
        )
